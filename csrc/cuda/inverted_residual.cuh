// A whole inverted residual: a CTA makes a tile of output pixels. The tile's input with its halo lies in shared memory;
// hidden channels pass through in steps: expand (tensor cores) -> clamp, zero outside the image -> depthwise -> project
// (tensor cores), whose sums stay in registers. The hidden tensor is never written to memory.
//
// Depthwise padding is applied after the activation, so a hidden pixel outside the image is zero and not act(shift).
#pragma once
#include "block_layout.h"
#include "tensor_core.h"

namespace mobilenet_ext {
namespace cuda {

template <class T, int S, int MaxTiles, bool Tf32>
struct BlockKernel {
  using Tile = typename TileOf<T, Tf32>::type;
  static constexpr int V = 16 / sizeof(T);  // elements of a 16-byte access
  static constexpr int kStep = sizeof(T) == 4 ? 16 : 32;

  const Block& p;
  const BlockPlan& plan;
  BlockLayout l;
  T *image, *expand, *project, *hidden, *filtered;
  float* scratch;  // of this warp
  int64_t n;
  int oh0, ow0, thread, warp, lane;

  MNX_DEVICE BlockKernel(const Block& block, const BlockPlan& block_plan, unsigned char* memory)
      : p(block), plan(block_plan), l(block_layout(block, block_plan.tile_h, block_plan.tile_w, sizeof(T))) {
    image = reinterpret_cast<T*>(memory + l.image);
    expand = reinterpret_cast<T*>(memory + l.expand);
    project = reinterpret_cast<T*>(memory + l.project);
    hidden = reinterpret_cast<T*>(memory + l.hidden);
    filtered = reinterpret_cast<T*>(memory + l.filtered);
    thread = static_cast<int>(threadIdx.x);
    warp = thread / 32;
    lane = thread & 31;
    scratch = reinterpret_cast<float*>(memory + l.scratch) + warp * kTile * kScratchStride;
    const int tiles_w = (p.ow + plan.tile_w - 1) / plan.tile_w, tiles_h = (p.oh + plan.tile_h - 1) / plan.tile_h;
    int64_t tile = grid_x();
    ow0 = static_cast<int>(tile % tiles_w) * plan.tile_w;
    tile /= tiles_w;
    oh0 = static_cast<int>(tile % tiles_h) * plan.tile_h;
    n = tile / tiles_h;
  }

  MNX_DEVICE int halo_y(int pixel) const { return oh0 * S - p.top + pixel / l.halo_w; }
  MNX_DEVICE int halo_x(int pixel) const { return ow0 * S - p.left + pixel % l.halo_w; }
  MNX_DEVICE bool inside(int pixel) const {
    const int y = halo_y(pixel), x = halo_x(pixel);
    return pixel < l.halo_h * l.halo_w && y >= 0 && y < p.h && x >= 0 && x < p.w;
  }

  MNX_DEVICE void load_image() {
    const T* x = static_cast<const T*>(p.x) + n * p.h * p.w * p.cin;
    const int vectors = l.inputs / V;
    for (int i = thread; i < l.halo_rows * vectors; i += kBlockThreads) {
      const int pixel = i / vectors, c = i % vectors * V;
      Vec<T, V> value = zero_vec<T, V>();
      if (c < p.cin && inside(pixel))
        value = load<V>(x + (static_cast<int64_t>(halo_y(pixel)) * p.w + halo_x(pixel)) * p.cin + c);
      *reinterpret_cast<Vec<T, V>*>(image + pixel * l.image_stride + c) = value;
    }
  }

  // rows x columns of a matrix in global memory into shared memory; zero beyond limit_rows and limit_columns.
  MNX_DEVICE void load_matrix(T* to, int stride, const T* from, int from_stride, int rows, int columns, int limit_rows,
                              int limit_columns) {
    const int vectors = columns / V;
    for (int i = thread; i < rows * vectors; i += kBlockThreads) {
      const int row = i / vectors, column = i % vectors * V;
      Vec<T, V> value = zero_vec<T, V>();
      if (row < limit_rows && column < limit_columns)
        value = load<V>(from + static_cast<int64_t>(row) * from_stride + column);
      *reinterpret_cast<Vec<T, V>*>(to + row * stride + column) = value;
    }
  }

  MNX_DEVICE void make_hidden(int h0) {
    constexpr int kColumns16 = kStep / kTile;
    for (int t = warp; t < l.halo_rows / kTile * kColumns16; t += kWarps) {
      const int row0 = t / kColumns16 * kTile, column0 = t % kColumns16 * kTile;
      Tile sum;
      sum.clear();
      for (int k = 0; k < l.inputs; k += kTile)
        sum.multiply(image + row0 * l.image_stride + k, l.image_stride, expand + k * l.hidden_stride + column0,
                     l.hidden_stride);
      sum.store(scratch);
      __syncwarp();
      const int pixel = row0 + (lane >> 1), c = column0 + (lane & 1) * 8;
      const bool in = inside(pixel);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float value = 0.f;
        if (in && h0 + c < p.hidden) {
          const float raw = scratch[(lane >> 1) * kScratchStride + (lane & 1) * 8 + i];
          value = activate(raw * load_float(p.expand_scale + h0 + c + i) + load_float(p.expand_shift + h0 + c + i),
                           p.expand_activation);
        }
        hidden[pixel * l.hidden_stride + c + i] = from_float<T>(value);
      }
      __syncwarp();
    }
  }

  MNX_DEVICE void filter(int h0) {
    constexpr int kGroups = kStep / 8;
    const T* weight = static_cast<const T*>(p.depthwise) + h0;
    for (int i = thread; i < l.out_rows * kGroups; i += kBlockThreads) {
      const int pixel = i / kGroups, c = i % kGroups * 8;
      float sum[8] = {};
      const bool in = pixel < plan.tile_h * plan.tile_w && h0 + c < p.hidden;
      if (in) {
        const int corner = pixel / plan.tile_w * S * l.halo_w + pixel % plan.tile_w * S;
#pragma unroll
        for (int kh = 0; kh < 3; ++kh) {
#pragma unroll
          for (int kw = 0; kw < 3; ++kw) {
            const T* from = hidden + (corner + kh * l.halo_w + kw) * l.hidden_stride + c;
#pragma unroll
            for (int part = 0; part < 8; part += V) {
              const Vec<T, V> w = load<V>(weight + (kh * 3 + kw) * p.hidden + c + part);
              const Vec<T, V> in_values = *reinterpret_cast<const Vec<T, V>*>(from + part);
#pragma unroll
              for (int v = 0; v < V; ++v) sum[part + v] += to_float(in_values.v[v]) * to_float(w.v[v]);
            }
          }
        }
      }
#pragma unroll
      for (int v = 0; v < 8; ++v) {
        float value = 0.f;
        if (in)
          value =
              activate(sum[v] * load_float(p.depthwise_scale + h0 + c + v) + load_float(p.depthwise_shift + h0 + c + v),
                       p.depthwise_activation);
        filtered[pixel * l.hidden_stride + c + v] = from_float<T>(value);
      }
    }
  }

  MNX_DEVICE void run() {
    Tile sums[MaxTiles];
#pragma unroll
    for (int i = 0; i < MaxTiles; ++i) sums[i].clear();
    const int columns = l.outputs / kTile, count = l.out_rows / kTile * columns;
    load_image();
    const int first = grid_y() * plan.hidden_per_split;
    const int last = first + plan.hidden_per_split < p.hidden ? first + plan.hidden_per_split : p.hidden;
    for (int h0 = first; h0 < last; h0 += kStep) {
      load_matrix(expand, l.hidden_stride, static_cast<const T*>(p.expand) + h0, p.hidden, l.inputs, kStep, p.cin,
                  p.hidden - h0);
      load_matrix(project, l.outputs_stride, static_cast<const T*>(p.project) + static_cast<int64_t>(h0) * p.cout,
                  p.cout, kStep, l.outputs, p.hidden - h0, p.cout);
      __syncthreads();
      make_hidden(h0);
      __syncthreads();
      filter(h0);
      __syncthreads();
#pragma unroll
      for (int i = 0; i < MaxTiles; ++i) {
        const int t = warp + i * kWarps;
        if (t >= count) break;
        const int row0 = t / columns * kTile, column0 = t % columns * kTile;
#pragma unroll
        for (int k = 0; k < kStep; k += kTile)
          sums[i].multiply(filtered + row0 * l.hidden_stride + k, l.hidden_stride,
                           project + k * l.outputs_stride + column0, l.outputs_stride);
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < MaxTiles; ++i) {
      const int t = warp + i * kWarps;
      if (t >= count) break;
      sums[i].store(scratch);
      __syncwarp();
      write(t / columns * kTile + (lane >> 1), t % columns * kTile + (lane & 1) * 8);
      __syncwarp();
    }
  }

  // Eight outputs of one pixel from this warp's scratch.
  MNX_DEVICE void write(int pixel, int c) {
    const int oh = oh0 + pixel / plan.tile_w, ow = ow0 + pixel % plan.tile_w;
    if (pixel >= plan.tile_h * plan.tile_w || oh >= p.oh || ow >= p.ow || c >= p.cout) return;
    const float* sum = scratch + (lane >> 1) * kScratchStride + (lane & 1) * 8;
    const int64_t at = ((n * p.oh + oh) * p.ow + ow) * p.cout + c;
    if (plan.splits > 1) {
      float* partial = p.partial + static_cast<int64_t>(grid_y()) * p.n * p.oh * p.ow * p.cout + at;
#pragma unroll
      for (int part = 0; part < 8; part += 4)
        store<4>(partial + part, Vec<float, 4>{{sum[part], sum[part + 1], sum[part + 2], sum[part + 3]}});
      return;
    }
#pragma unroll
    for (int part = 0; part < 8; part += V) finish<V>(at + part, c + part, sum + part);
  }

  template <int N>
  MNX_DEVICE void finish(int64_t at, int c, const float* sum) const {
    finish_outputs<T, N>(p, at, c, sum);
  }

  template <class U, int N>
  static MNX_DEVICE void finish_outputs(const Block& p, int64_t at, int c, const float* sum) {
    Vec<U, N> shortcut = zero_vec<U, N>(), out;
    if (p.residual) shortcut = load<N>(static_cast<const U*>(p.x) + at);
#pragma unroll
    for (int v = 0; v < N; ++v) {
      float value = activate(sum[v] * load_float(p.project_scale + c + v) + load_float(p.project_shift + c + v),
                             p.project_activation);
      if (p.residual) value += to_float(shortcut.v[v]);
      out.v[v] = from_float<U>(value);
    }
    store<N>(static_cast<U*>(p.y) + at, out);
  }
};

template <class T, int S, int MaxTiles, bool Tf32>
__global__ void __launch_bounds__(kBlockThreads, 1) inverted_residual_kernel(const Block p, const BlockPlan plan) {
  MNX_SHARED(memory);
  BlockKernel<T, S, MaxTiles, Tf32>(p, plan, memory).run();
}

// Adds the splits in order and finishes: the same bits however many CTAs ran at once.
template <class T>
__global__ void __launch_bounds__(256) block_sum_kernel(const Block p, int splits) {
  const int64_t elements = p.n * p.oh * p.ow * p.cout;
  const int64_t at = (grid_x() * blockDim.x + threadIdx.x) * 4;
  if (at >= elements) return;
  float sum[4] = {};
  for (int split = 0; split < splits; ++split) {
    const Vec<float, 4> part = load<4>(p.partial + split * elements + at);
#pragma unroll
    for (int v = 0; v < 4; ++v) sum[v] += part.v[v];
  }
  BlockKernel<T, 1, 1, false>::template finish_outputs<T, 4>(p, at, static_cast<int>(at % p.cout), sum);
}

}  // namespace cuda
}  // namespace mobilenet_ext
