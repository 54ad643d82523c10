// Depthwise forward: one thread makes four output columns of V channels in one row. A block covers up to 16 rows and 16
// columns, so that the halo costs 13 % of the reads; rows shared by its threads come out of L1.
#pragma once
#include "device.h"

namespace mobilenet_ext {
namespace cuda {

constexpr int kColumns = 4;  // output columns of a thread

// Where the thread of a block (channel groups, column strips, rows) and the block of a one-dimensional grid stand.
struct Place {
  int c, column, row;
  int64_t image;
};

// Grid order: channel blocks fastest, then columns, rows, images.
template <int V>
MNX_DEVICE Place place(int channels, int width, int height) {
  const int c_span = blockDim.x * V, w_span = blockDim.y * kColumns, h_span = blockDim.z;
  const int c_blocks = (channels + c_span - 1) / c_span, w_blocks = (width + w_span - 1) / w_span;
  const int h_blocks = (height + h_span - 1) / h_span;
  int64_t block = grid_x();
  Place p;
  p.c = static_cast<int>(block % c_blocks) * c_span + threadIdx.x * V;
  block /= c_blocks;
  p.column = static_cast<int>(block % w_blocks) * w_span + threadIdx.y * kColumns;
  block /= w_blocks;
  p.row = static_cast<int>(block % h_blocks) * h_span + threadIdx.z;
  p.image = block / h_blocks;
  return p;
}

template <class T, int V, int K, int S>
__global__ void __launch_bounds__(256, 2) depthwise_kernel(const DepthwiseForward p) {
  constexpr int TW = kColumns, kVectors = (TW - 1) * S + K;
  const Depthwise& d = p.shape;
  const Place at = place<V>(d.c, d.ow, d.oh);
  if (at.c >= d.c || at.column >= d.ow || at.row >= d.oh) return;
  const T* x = static_cast<const T*>(p.x) + at.image * d.h * d.w * d.c + at.c;
  const T* weight = static_cast<const T*>(p.weight) + at.c;
  float acc[TW][V] = {};
#pragma unroll
  for (int kh = 0; kh < K; ++kh) {
    const int ih = at.row * S + kh - d.top;
    if (ih < 0 || ih >= d.h) continue;
    Vec<T, V> w[K];
#pragma unroll
    for (int kw = 0; kw < K; ++kw) w[kw] = load<V>(weight + (kh * K + kw) * d.c);
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      const int iw = at.column * S + j - d.left;
      if (iw < 0 || iw >= d.w) continue;
      const Vec<T, V> in = load<V>(x + (static_cast<int64_t>(ih) * d.w + iw) * d.c);
#pragma unroll
      for (int tw = 0; tw < TW; ++tw) {
        const int kw = j - tw * S;
        if (kw < 0 || kw >= K) continue;
#pragma unroll
        for (int v = 0; v < V; ++v) acc[tw][v] += to_float(in.v[v]) * to_float(w[kw].v[v]);
      }
    }
  }
  float scale[V], shift[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    scale[v] = load_float(p.scale + at.c + v);
    shift[v] = load_float(p.shift + at.c + v);
  }
  T* y = static_cast<T*>(p.y) + (at.image * d.oh + at.row) * d.ow * d.c + at.c;
#pragma unroll
  for (int tw = 0; tw < TW; ++tw) {
    if (at.column + tw >= d.ow) continue;
    Vec<T, V> out;
#pragma unroll
    for (int v = 0; v < V; ++v) out.v[v] = from_float<T>(activate(acc[tw][v] * scale[v] + shift[v], p.activation));
    store<V>(y + static_cast<int64_t>(at.column + tw) * d.c, out);
  }
}

}  // namespace cuda
}  // namespace mobilenet_ext
