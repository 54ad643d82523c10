// Gradients of the depthwise convolution. Both read each tensor a constant number of times and add in a fixed order.
#pragma once
#include "depthwise.cuh"

namespace mobilenet_ext {
namespace cuda {

// dx: a gather over the taps that hit. Odd is left % 2: with strips that start at even columns the parity of every tap
// is known at compile time, so stride 2 loads no value that it does not use.
template <class T, int V, int K, int S, int Odd>
__global__ void __launch_bounds__(256, 2) depthwise_backward_data_kernel(const DepthwiseBackwardData p) {
  constexpr int TW = kColumns, kShift = S == 1 ? 0 : Odd;
  constexpr int kVectors = (TW - 1 + K - 1 + kShift) / S + 1;
  const Depthwise& d = p.shape;
  const Place at = place<V>(d.c, d.w, d.h);
  if (at.c >= d.c || at.column >= d.w || at.row >= d.h) return;
  const T* dy = static_cast<const T*>(p.dy) + at.image * d.oh * d.ow * d.c + at.c;
  const T* weight = static_cast<const T*>(p.weight) + at.c;
  const int first = (at.column + d.left - (K - 1) - kShift) / S;  // exact: the numerator is a multiple of S
  float acc[TW][V] = {};
#pragma unroll
  for (int kh = 0; kh < K; ++kh) {
    const int high = at.row + d.top - kh;
    if (high < 0 || (S == 2 && (high & 1)) || high / S >= d.oh) continue;
    Vec<T, V> w[K];
#pragma unroll
    for (int kw = 0; kw < K; ++kw) w[kw] = load<V>(weight + (kh * K + kw) * d.c);
    const T* row = dy + static_cast<int64_t>(high / S) * d.ow * d.c;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int ow = first + i;
      if (ow < 0 || ow >= d.ow) continue;
      const Vec<T, V> g = load<V>(row + static_cast<int64_t>(ow) * d.c);
#pragma unroll
      for (int j = 0; j < TW; ++j) {
        const int kw = j + K - 1 + kShift - S * i;
        if (kw < 0 || kw >= K) continue;
#pragma unroll
        for (int v = 0; v < V; ++v) acc[j][v] += to_float(g.v[v]) * to_float(w[kw].v[v]);
      }
    }
  }
  T* dx = static_cast<T*>(p.dx) + at.image * d.h * d.w * d.c + at.c;
#pragma unroll
  for (int j = 0; j < TW; ++j) {
    const int iw = at.column + j;
    if (iw >= d.w) continue;
    Vec<T, V> out;
#pragma unroll
    for (int v = 0; v < V; ++v) out.v[v] = from_float<T>(acc[j][v]);
    store<V>(dx + (static_cast<int64_t>(at.row) * d.w + iw) * d.c, out);
  }
}

constexpr int kWeightThreads = 128;

// dw, first stage: block (channel groups, strips at a time); a thread keeps all K * K sums of V channels and walks the
// strips of kColumns output columns of its chunk. partial is (chunks, K * K, c).
template <class T, int V, int K, int S>
__global__ void __launch_bounds__(kWeightThreads, 3)
    depthwise_backward_weight_kernel(const DepthwiseBackwardWeight p, int chunks) {
  constexpr int TW = kColumns, kVectors = (TW - 1) * S + K;
  MNX_SHARED(memory);
  float* sums = reinterpret_cast<float*>(memory);  // (blockDim.y, blockDim.x * V)
  const Depthwise& d = p.shape;
  const int c_span = blockDim.x * V, c_blocks = (d.c + c_span - 1) / c_span;
  const int c = static_cast<int>(grid_x() % c_blocks) * c_span + threadIdx.x * V;
  const int64_t chunk = grid_x() / c_blocks;
  const int strips = (d.ow + TW - 1) / TW;
  const int64_t total = d.n * d.oh * strips;
  const int64_t begin = total * chunk / chunks, end = total * (chunk + 1) / chunks;
  float acc[K * K][V] = {};
  if (c < d.c) {
    for (int64_t item = begin + threadIdx.y; item < end; item += blockDim.y) {
      const int column = static_cast<int>(item % strips) * TW, oh = static_cast<int>(item / strips % d.oh);
      const int64_t image = item / strips / d.oh;
      const T* x = static_cast<const T*>(p.x) + image * d.h * d.w * d.c + c;
      const T* dy = static_cast<const T*>(p.dy) + (image * d.oh + oh) * d.ow * d.c + c;
      Vec<T, V> g[TW];
#pragma unroll
      for (int j = 0; j < TW; ++j)
        g[j] = column + j < d.ow ? load<V>(dy + static_cast<int64_t>(column + j) * d.c) : zero_vec<T, V>();
#pragma unroll
      for (int kh = 0; kh < K; ++kh) {
        const int ih = oh * S + kh - d.top;
        if (ih < 0 || ih >= d.h) continue;
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
          const int iw = column * S + i - d.left;
          if (iw < 0 || iw >= d.w) continue;
          const Vec<T, V> in = load<V>(x + (static_cast<int64_t>(ih) * d.w + iw) * d.c);
#pragma unroll
          for (int j = 0; j < TW; ++j) {
            const int kw = i - j * S;
            if (kw < 0 || kw >= K) continue;
#pragma unroll
            for (int v = 0; v < V; ++v) {
              // Beyond the row the gradient is zero and the image may hold NaN: no product there.
              if (column + j < d.ow) acc[kh * K + kw][v] += to_float(in.v[v]) * to_float(g[j].v[v]);
            }
          }
        }
      }
    }
  }
#pragma unroll
  for (int tap = 0; tap < K * K; ++tap) {
#pragma unroll
    for (int v = 0; v < V; ++v) sums[threadIdx.y * c_span + threadIdx.x * V + v] = acc[tap][v];
    __syncthreads();
    for (int e = threadIdx.y * blockDim.x + threadIdx.x; e < c_span; e += blockDim.x * blockDim.y) {
      const int channel = static_cast<int>(grid_x() % c_blocks) * c_span + e;
      if (channel >= d.c) continue;
      float sum = 0.f;
      for (int y = 0; y < static_cast<int>(blockDim.y); ++y) sum += sums[y * c_span + e];
      store<1>(p.partial + (chunk * (K * K) + tap) * d.c + channel, Vec<float, 1>{{sum}});
    }
    __syncthreads();
  }
}

// dw, second stage: total[e] = sum over chunks of partial[chunk][e].
MNX_DEVICE float sum_chunks(const float* partial, int64_t elements, int64_t e, int chunks) {
  float sum = 0.f;
  for (int chunk = 0; chunk < chunks; ++chunk) sum += load_float(partial + chunk * elements + e);
  return sum;
}

__global__ void __launch_bounds__(256) depthwise_weight_sum_kernel(const DepthwiseBackwardWeight p, int chunks) {
  const int64_t elements = static_cast<int64_t>(p.shape.kernel) * p.shape.kernel * p.shape.c;
  const int64_t e = grid_x() * blockDim.x + threadIdx.x;
  if (e < elements) store<1>(p.dw + e, Vec<float, 1>{{sum_chunks(p.partial, elements, e, chunks)}});
}

}  // namespace cuda
}  // namespace mobilenet_ext
