// A 16x16 tile of fp32 sums held by one warp, and its products: nvcuda::wmma for fp16, bf16 and TF32, plain FMAs for
// fp32. Fragments stay opaque, so the FMA body is a faithful stand-in for all of them where there is no tensor core.
#pragma once
#include "device.h"

#if defined(__CUDACC__)
#include <mma.h>
#endif

namespace mobilenet_ext {
namespace cuda {

constexpr int kTile = 16;
constexpr int kScratchStride = 20;  // floats between the rows of a stored tile: off the banks, 16-byte rows

MNX_DEVICE int lane_id() {
  return static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) & 31;
}

// Lane l owns columns (l % 2) * 8 .. + 8 of row l / 2. Tf32 only where it stands in for the tensor cores.
template <class T, bool Tf32 = false>
struct FmaTile {
  float v[8];
  static MNX_DEVICE float operand(T raw) {
#if !defined(__CUDACC__)
    if (Tf32) return emulation::to_tf32(to_float(raw));
#endif
    return to_float(raw);
  }
  MNX_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = 0.f;
  }
  // += a (16x16, row stride lda) * b (16x16, row stride ldb), both in shared memory.
  MNX_DEVICE void multiply(const T* a, int lda, const T* b, int ldb) {
    const T* row = a + (lane_id() >> 1) * lda;
    const T* column = b + (lane_id() & 1) * 8;
#pragma unroll 2
    for (int k = 0; k < kTile; ++k) {
      const float value = operand(row[k]);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] += value * operand(column[k * ldb + i]);
    }
  }
  MNX_DEVICE void store(float* scratch) const {
    float* to = scratch + (lane_id() >> 1) * kScratchStride + (lane_id() & 1) * 8;
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = v[i];
  }
};

#if defined(__CUDACC__)
namespace wmma = nvcuda::wmma;

template <class T>
struct TensorTile {
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
  MNX_DEVICE void clear() { wmma::fill_fragment(sum, 0.f); }
  MNX_DEVICE void multiply(const T* a, int lda, const T* b, int ldb) {
    wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> left;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::row_major> right;
    wmma::load_matrix_sync(left, a, lda);
    wmma::load_matrix_sync(right, b, ldb);
    wmma::mma_sync(sum, left, right, sum);
  }
  MNX_DEVICE void store(float* scratch) const {
    wmma::store_matrix_sync(scratch, sum, kScratchStride, wmma::mem_row_major);
  }
};

struct Tf32Tile {
  wmma::fragment<wmma::accumulator, 16, 16, 8, float> sum;
  MNX_DEVICE void clear() { wmma::fill_fragment(sum, 0.f); }
  MNX_DEVICE void multiply(const float* a, int lda, const float* b, int ldb) {
#pragma unroll
    for (int k = 0; k < kTile; k += 8) {
      wmma::fragment<wmma::matrix_a, 16, 16, 8, wmma::precision::tf32, wmma::row_major> left;
      wmma::fragment<wmma::matrix_b, 16, 16, 8, wmma::precision::tf32, wmma::row_major> right;
      wmma::load_matrix_sync(left, a + k, lda);
      wmma::load_matrix_sync(right, b + k * ldb, ldb);
#pragma unroll
      for (int i = 0; i < left.num_elements; ++i) left.x[i] = wmma::__float_to_tf32(left.x[i]);
#pragma unroll
      for (int i = 0; i < right.num_elements; ++i) right.x[i] = wmma::__float_to_tf32(right.x[i]);
      wmma::mma_sync(sum, left, right, sum);
    }
  }
  MNX_DEVICE void store(float* scratch) const {
    wmma::store_matrix_sync(scratch, sum, kScratchStride, wmma::mem_row_major);
  }
};

template <class T, bool Tf32>
struct TileOf {
  using type = TensorTile<T>;
};
template <>
struct TileOf<float, false> {
  using type = FmaTile<float>;
};
template <>
struct TileOf<float, true> {
  using type = Tf32Tile;
};
#else
template <class T, bool Tf32>
struct TileOf {
  using type = FmaTile<T, Tf32>;
};
#endif

}  // namespace cuda
}  // namespace mobilenet_ext
