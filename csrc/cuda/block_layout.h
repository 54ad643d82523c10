// Where things lie in the shared memory of a whole-block kernel: one function for host and device.
#pragma once
#include "launch.h"

#if defined(__CUDACC__)
#define MNX_BOTH __host__ __device__ inline
#else
#define MNX_BOTH inline
#endif

namespace mobilenet_ext {
namespace cuda {

constexpr int kWarps = kBlockThreads / 32;
constexpr int kPad = 8;  // elements after each row, so that the rows of a tile lie in different banks

// Hidden channels of one step: fp32 has half as many, which keeps the bytes alike.
MNX_BOTH int hidden_step(size_t element) { return element == 4 ? 16 : 32; }

// 16x16 tiles of project sums per warp, eight registers each; fp32 products need more registers of their own.
MNX_BOTH constexpr int most_tiles(size_t element) { return element == 4 ? 6 : 10; }

// Offsets in bytes from the start of shared memory, all multiples of 128, and row strides in elements.
struct BlockLayout {
  int halo_h, halo_w, halo_rows, out_rows;  // rows are pixels, rounded up to tiles of 16
  int inputs, outputs;                      // widths rounded up to 16
  int image_stride, hidden_stride, outputs_stride;
  size_t image, expand, project, hidden, filtered, scratch, total;
};

MNX_BOTH int tiles_up(int value) { return (value + 15) / 16 * 16; }

MNX_BOTH BlockLayout block_layout(const Block& b, int tile_h, int tile_w, size_t element) {
  BlockLayout l;
  const int step = hidden_step(element);
  l.halo_h = (tile_h - 1) * b.stride + 3;
  l.halo_w = (tile_w - 1) * b.stride + 3;
  l.halo_rows = tiles_up(l.halo_h * l.halo_w);
  l.out_rows = tiles_up(tile_h * tile_w);
  l.inputs = tiles_up(b.cin);
  l.outputs = tiles_up(b.cout);
  l.image_stride = l.inputs + kPad;
  l.hidden_stride = step + kPad;
  l.outputs_stride = l.outputs + kPad;
  size_t at = 0;
  auto take = [&at](size_t bytes) {
    const size_t here = at;
    at += (bytes + 127) / 128 * 128;
    return here;
  };
  l.image = take(element * l.halo_rows * l.image_stride);
  l.expand = take(element * l.inputs * l.hidden_stride);
  l.project = take(element * step * l.outputs_stride);
  l.hidden = take(element * l.halo_rows * l.hidden_stride);
  l.filtered = take(element * l.out_rows * l.hidden_stride);
  l.scratch = take(sizeof(float) * kWarps * 16 * 20);
  l.total = at;
  return l;
}

}  // namespace cuda
}  // namespace mobilenet_ext
