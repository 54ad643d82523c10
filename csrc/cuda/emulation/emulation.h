// CUDA kernels on a CPU: one fibre per thread of a block, blocks in turn, barriers as switches.
//
// What it proves: indexing, bounds (every global access lies in a registered buffer and is aligned; shared memory ends
// at a page that traps), barriers that all threads of a block or warp reach, independence of the order of threads
// (forwards, backwards, shuffled), no reliance on what shared memory held before (it starts as NaN).  What it cannot
// prove: memory ordering within a warp, asynchronous copies, the layout of tensor core fragments.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <typeinfo>
#include <vector>

#define __global__
#define __launch_bounds__(...)
#define MNX_DEVICE inline
#define MNX_SHARED(name) unsigned char* name = emulation::shared_memory()

namespace mobilenet_ext {
namespace cuda {

// IEEE binary16 and bfloat16 with CUDA's rounding (to nearest even), without CUDA's headers.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
inline float half_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
  uint32_t u = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
  if (exponent == 0) {  // zero, or a multiple of 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    std::memcpy(&u, &magnitude, 4);
    u |= sign;
  }
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
uint16_t float_to_half(float v);
inline float to_float(float v) { return v; }
inline float to_float(Half v) { return half_to_float(v.bits); }
inline float to_float(BFloat16 v) {
  const uint32_t u = static_cast<uint32_t>(v.bits) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
template <class T>
T from_float(float v);
template <>
inline float from_float<float>(float v) {
  return v;
}
template <>
inline Half from_float<Half>(float v) {
  return {float_to_half(v)};
}
template <>
inline BFloat16 from_float<BFloat16>(float v) {
  uint32_t u;
  std::memcpy(&u, &v, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>(u >> 16 | 0x40)};
  return {static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}

namespace emulation {

// Ten bits of the fraction, to nearest, ties away from zero: wmma::__float_to_tf32.
inline float to_tf32(float v) {
  uint32_t u;
  std::memcpy(&u, &v, 4);
  if ((u & 0x7f800000u) != 0x7f800000u) u = (u + 0x1000) & ~0x1fffu;
  std::memcpy(&v, &u, 4);
  return v;
}

struct Dim {
  int x = 1, y = 1, z = 1;
};

enum class Order { kForwards, kBackwards, kShuffled };

// One registered buffer and what a kernel did to it.  `requested` counts bytes as threads asked for them; `per_block`
// counts bytes of distinct 32-byte sectors within each block, summed over blocks: the traffic of a GPU whose L1 holds
// what one block touches; `distinct` counts bytes of sectors touched at all: the least that memory must move.
struct Traffic {
  std::string name;
  int64_t requested = 0, per_block = 0, distinct = 0;
};

void set_order(Order order, unsigned seed = 0);
// Buffers that kernels may touch from now on; memory outside them is an error. Names label the traffic.
void add_buffer(const std::string& name, const void* data, size_t bytes);
void clear_buffers();
std::vector<Traffic> traffic();  // by name, writes under "name (w)"

// One kernel that a launcher can launch, spelled as nvcc's demangled name without namespaces, and how often it ran with
// the threads in each order.
struct Kernel {
  std::string name;
  int64_t runs[3] = {};
};

// Every kernel that the launchers instantiate is listed before main begins, so that one that never runs is known too.
template <auto Function>
struct KernelTag {};
int register_kernel(const std::type_info& tag);
const std::vector<Kernel>& kernels();
template <auto Function>
inline const int kKernel = register_kernel(typeid(KernelTag<Function>));

// Runs `body` once per thread, as a run of `kernel` unless that is -1. Aborts with a sentence on an access outside
// every buffer, a misaligned one, or a barrier that some thread never reaches.
void run(int kernel, int64_t blocks_x, int blocks_y, Dim threads, size_t shared_bytes,
         const std::function<void()>& body);

unsigned char* shared_memory();
void touch(const void* p, size_t bytes, bool write);
void block_barrier();
void warp_barrier();
void fail(const char* what);

const Dim& thread();
const Dim& block_size();
int64_t block_x();
int block_y();

}  // namespace emulation
}  // namespace cuda
}  // namespace mobilenet_ext

// The names by which kernels know them.
#define threadIdx (::mobilenet_ext::cuda::emulation::thread())
#define blockDim (::mobilenet_ext::cuda::emulation::block_size())
inline void __syncthreads() { ::mobilenet_ext::cuda::emulation::block_barrier(); }
inline void __syncwarp() { ::mobilenet_ext::cuda::emulation::warp_barrier(); }
