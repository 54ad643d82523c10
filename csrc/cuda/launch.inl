// The launchers' common part: grids and template dispatch, shared by nvcc (launch through <<<>>>) and the emulation.
// Included where MNX_LAUNCH(kernel, grid_x, grid_y, threads, shared, ...) is defined; it returns an error code as int.
#pragma once
#include <algorithm>

#include "depthwise.cuh"
#include "depthwise_backward.cuh"
#include "inverted_residual.cuh"

namespace mobilenet_ext {
namespace cuda {
namespace {

struct Threads {
  int x, y, z;
};

int ceil_div(int a, int b) { return (a + b - 1) / b; }

bool aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

// Threads (channel groups, strips, rows) of a block of 256 for an image of height x width: no more strips and rows than
// there are, the rest goes to channels.
Threads image_threads(int channels, int vector, int height, int width) {
  Threads t;
  const int groups = ceil_div(channels, vector);
  t.y = std::min(4, ceil_div(width, kColumns));
  t.z = std::min(16, height);
  t.x = std::min(groups, std::max(1, 256 / (t.y * t.z)));
  return t;
}

int64_t image_blocks(const Threads& t, int64_t n, int channels, int vector, int height, int width) {
  return n * ceil_div(channels, t.x * vector) * ceil_div(width, t.y * kColumns) * ceil_div(height, t.z);
}

template <class T, int V, int K, int S>
int forward(const DepthwiseForward& p, void* stream) {
  const Depthwise& d = p.shape;
  const Threads t = image_threads(d.c, V, d.oh, d.ow);
  return MNX_LAUNCH((depthwise_kernel<T, V, K, S>), image_blocks(t, d.n, d.c, V, d.oh, d.ow), 1, t, 0, stream, p);
}

template <class T, int V, int K, int S>
int backward_data(const DepthwiseBackwardData& p, void* stream) {
  const Depthwise& d = p.shape;
  const Threads t = image_threads(d.c, V, d.h, d.w);
  const int64_t blocks = image_blocks(t, d.n, d.c, V, d.h, d.w);
  if constexpr (S == 2) {  // at stride 1 every tap hits, whatever the parity
    if (d.left % 2) return MNX_LAUNCH((depthwise_backward_data_kernel<T, V, K, S, 1>), blocks, 1, t, 0, stream, p);
  }
  return MNX_LAUNCH((depthwise_backward_data_kernel<T, V, K, S, 0>), blocks, 1, t, 0, stream, p);
}

template <int V>
Threads weight_threads(int channels) {
  Threads t;
  t.x = std::min(ceil_div(channels, V), 16);
  t.y = kWeightThreads / t.x;
  t.z = 1;
  return t;
}

template <class T, int V, int K, int S>
int backward_weight(const DepthwiseBackwardWeight& p, void* stream) {
  const Depthwise& d = p.shape;
  const Threads t = weight_threads<V>(d.c);
  const int chunks = weight_chunks(d, sizeof(T) == 4 ? Dtype::kFloat : Dtype::kHalf);
  const int64_t blocks = static_cast<int64_t>(chunks) * ceil_div(d.c, t.x * V);
  const size_t shared = sizeof(float) * t.x * V * t.y;
  if (chunks == 1) {  // the only partial sums are the sums
    DepthwiseBackwardWeight whole = p;
    whole.partial = p.dw;
    return MNX_LAUNCH((depthwise_backward_weight_kernel<T, V, K, S>), blocks, 1, t, shared, stream, whole, chunks);
  }
  const int error = MNX_LAUNCH((depthwise_backward_weight_kernel<T, V, K, S>), blocks, 1, t, shared, stream, p, chunks);
  if (error) return error;
  const int elements = K * K * d.c;
  return MNX_LAUNCH((depthwise_weight_sum_kernel), ceil_div(elements, 256), 1, (Threads{256, 1, 1}), 0, stream, p,
                    chunks);
}

// Sixteen-byte accesses where every pixel starts on one; else one channel at a time.
template <class T, template <class, int, int, int> class Call, int V, class P>
int by_shape(const P& p, void* stream) {
  const Depthwise& d = p.shape;
  if (d.kernel == 3) return d.stride == 1 ? Call<T, V, 3, 1>::run(p, stream) : Call<T, V, 3, 2>::run(p, stream);
  return d.stride == 1 ? Call<T, V, 5, 1>::run(p, stream) : Call<T, V, 5, 2>::run(p, stream);
}

template <class T, int V, int K, int S>
struct Forward {
  static int run(const DepthwiseForward& p, void* stream) { return forward<T, V, K, S>(p, stream); }
};
template <class T, int V, int K, int S>
struct BackwardData {
  static int run(const DepthwiseBackwardData& p, void* stream) { return backward_data<T, V, K, S>(p, stream); }
};
// 5x5 has 25 sums per channel: two channels at a time keep them in registers.
template <class T, int V, int K, int S>
struct BackwardWeight {
  static int run(const DepthwiseBackwardWeight& p, void* stream) {
    return backward_weight<T, (K == 5 && V > 2 ? 2 : V), K, S>(p, stream);
  }
};

template <class T, template <class, int, int, int> class Call, class P>
int by_vector(const P& p, bool wide, void* stream) {
  constexpr int V = 16 / sizeof(T);
  return wide && p.shape.c % V == 0 ? by_shape<T, Call, V>(p, stream) : by_shape<T, Call, 1>(p, stream);
}

template <template <class, int, int, int> class Call, class P>
int by_dtype(const P& p, Dtype dtype, bool wide, void* stream) {
  switch (dtype) {
    case Dtype::kFloat:
      return by_vector<float, Call>(p, wide, stream);
    case Dtype::kHalf:
      return by_vector<Half, Call>(p, wide, stream);
    default:
      return by_vector<BFloat16, Call>(p, wide, stream);
  }
}

template <class T, int S, int MaxTiles, bool Tf32>
int block_kernel(const Block& p, const BlockPlan& plan, void* stream) {
  const int64_t tiles = p.n * ceil_div(p.oh, plan.tile_h) * ceil_div(p.ow, plan.tile_w);
  const int error = MNX_LAUNCH((inverted_residual_kernel<T, S, MaxTiles, Tf32>), tiles, plan.splits,
                               (Threads{kBlockThreads, 1, 1}), plan.shared, stream, p, plan);
  if (error || plan.splits == 1) return error;
  const int64_t blocks = (p.n * p.oh * p.ow * p.cout / 4 + 255) / 256;
  return MNX_LAUNCH((block_sum_kernel<T>), blocks, 1, (Threads{256, 1, 1}), 0, stream, p, plan.splits);
}

template <class T, bool Tf32>
int block_by_shape(const Block& p, const BlockPlan& plan, void* stream) {
  constexpr int kMost = most_tiles(sizeof(T));
  if (p.stride == 1)
    return plan.tiles_per_warp <= 4 ? block_kernel<T, 1, 4, Tf32>(p, plan, stream)
                                    : block_kernel<T, 1, kMost, Tf32>(p, plan, stream);
  return plan.tiles_per_warp <= 4 ? block_kernel<T, 2, 4, Tf32>(p, plan, stream)
                                  : block_kernel<T, 2, kMost, Tf32>(p, plan, stream);
}

}  // namespace

// Enough chunks to fill a large GPU, each of at least eight strips per thread, so that few rows
// are read by two: of the shape alone, never of the device.
int weight_chunks(const Depthwise& d, Dtype dtype) {
  const int64_t strips = batch_class(d.n) * d.oh * ceil_div(d.ow, kColumns);
  const int span = 16 * (dtype == Dtype::kFloat ? 4 : 8);
  const int64_t most = std::max<int64_t>(1, 1024 / std::max(1, d.c / span));
  return static_cast<int>(std::clamp<int64_t>(strips / 128, 1, most));
}

int64_t weight_partials(const Depthwise& d, Dtype dtype) {
  return static_cast<int64_t>(weight_chunks(d, dtype)) * d.kernel * d.kernel * d.c;
}

int depthwise_forward(const DepthwiseForward& p, Dtype dtype, void* stream) {
  return by_dtype<Forward>(p, dtype, aligned(p.x, 16) && aligned(p.weight, 16) && aligned(p.y, 16), stream);
}

int depthwise_backward_data(const DepthwiseBackwardData& p, Dtype dtype, void* stream) {
  return by_dtype<BackwardData>(p, dtype, aligned(p.dy, 16) && aligned(p.weight, 16) && aligned(p.dx, 16), stream);
}

int depthwise_backward_weight(const DepthwiseBackwardWeight& p, Dtype dtype, void* stream) {
  return by_dtype<BackwardWeight>(p, dtype, aligned(p.x, 16) && aligned(p.dy, 16), stream);
}

int inverted_residual(const Block& p, const BlockPlan& plan, Dtype dtype, void* stream) {
  switch (dtype) {
    case Dtype::kFloat:
      return p.tf32 ? block_by_shape<float, true>(p, plan, stream) : block_by_shape<float, false>(p, plan, stream);
    case Dtype::kHalf:
      return block_by_shape<Half, false>(p, plan, stream);
    default:
      return block_by_shape<BFloat16, false>(p, plan, stream);
  }
}

}  // namespace cuda
}  // namespace mobilenet_ext
