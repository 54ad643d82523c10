// What the kernels use of CUDA, so that the same sources run on a CPU: types, vectors, conversions, checked accesses.
// Everything that an emulation must see goes through here: global loads and stores, barriers, dynamic shared memory.
#pragma once
#include "launch.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define MNX_DEVICE __device__ __forceinline__
#define MNX_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#else
#include "emulation/emulation.h"
#endif

namespace mobilenet_ext {
namespace cuda {

// The grid is one-dimensional in x, whose axis may exceed 65535; y is for splits.
MNX_DEVICE int64_t grid_x() {
#if defined(__CUDACC__)
  return blockIdx.x;
#else
  return emulation::block_x();
#endif
}
MNX_DEVICE int grid_y() {
#if defined(__CUDACC__)
  return blockIdx.y;
#else
  return emulation::block_y();
#endif
}

#if defined(__CUDACC__)
using Half = __half;
using BFloat16 = __nv_bfloat16;
MNX_DEVICE float to_float(float v) { return v; }
MNX_DEVICE float to_float(Half v) { return __half2float(v); }
MNX_DEVICE float to_float(BFloat16 v) { return __bfloat162float(v); }
template <class T>
MNX_DEVICE T from_float(float v);
template <>
MNX_DEVICE float from_float<float>(float v) {
  return v;
}
template <>
MNX_DEVICE Half from_float<Half>(float v) {
  return __float2half_rn(v);
}
template <>
MNX_DEVICE BFloat16 from_float<BFloat16>(float v) {
  return __float2bfloat16_rn(v);
}
#endif

// V neighbouring channels of one pixel; 16 bytes where V * sizeof(T) == 16.
template <class T, int V>
struct alignas(sizeof(T) * V) Vec {
  T v[V];
};

template <class T, int V>
MNX_DEVICE Vec<T, V> zero_vec() {
  Vec<T, V> r;
#pragma unroll
  for (int i = 0; i < V; ++i) r.v[i] = from_float<T>(0.f);
  return r;
}

// Global memory. The emulation replaces the two bodies by checked and counted ones.
template <int V, class T>
MNX_DEVICE Vec<T, V> load(const T* p) {
#if !defined(__CUDACC__)
  emulation::touch(p, sizeof(T) * V, false);
#endif
  return *reinterpret_cast<const Vec<T, V>*>(p);
}
template <int V, class T>
MNX_DEVICE void store(T* p, const Vec<T, V>& v) {
#if !defined(__CUDACC__)
  emulation::touch(p, sizeof(T) * V, true);
#endif
  *reinterpret_cast<Vec<T, V>*>(p) = v;
}
template <class T>
MNX_DEVICE float load_float(const T* p) {
  return to_float(load<1>(p).v[0]);
}

// By comparison, so that NaN passes as in PyTorch; fmaxf would drop it.
MNX_DEVICE float activate(float v, int activation) {
  if (activation >= 1) v = v < 0.f ? 0.f : v;
  if (activation == 2) v = v > 6.f ? 6.f : v;
  return v;
}

MNX_DEVICE int round_up(int value, int unit) { return (value + unit - 1) / unit * unit; }

}  // namespace cuda
}  // namespace mobilenet_ext
