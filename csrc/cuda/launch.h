// The C launchers of the CUDA kernels: raw device pointers and plain structs, no torch. Every tensor is dense NHWC.
#pragma once
#include <cstddef>
#include <cstdint>

namespace mobilenet_ext {
namespace cuda {

enum class Dtype { kFloat, kHalf, kBFloat16 };

// Depthwise convolution; weight (k, k, c) in the tensors' dtype. Sizes in pixels; n * h * w * c may exceed 2^31, one
// image may not.
struct Depthwise {
  int64_t n;
  int h, w, c;    // of the input
  int oh, ow;     // of the output
  int kernel;     // 3 or 5
  int stride;     // 1 or 2
  int top, left;  // padding
};

struct DepthwiseForward {
  Depthwise shape;
  const void* x;
  const void* weight;
  const float* scale;
  const float* shift;
  void* y;
  int activation;  // 0 none, 1 ReLU, 2 ReLU6
};

struct DepthwiseBackwardData {
  Depthwise shape;
  const void* dy;
  const void* weight;
  void* dx;
};

struct DepthwiseBackwardWeight {
  Depthwise shape;
  const void* x;
  const void* dy;
  float* partial;  // workspace of weight_partials(shape) floats
  float* dw;       // (k, k, c)
};

// expand 1x1 -> depthwise 3x3 -> project 1x1, each with scale, shift and activation; weights (cin, hidden),
// (3, 3, hidden), (hidden, cout) in the tensors' dtype. All three widths are multiples of 8.
struct Block {
  int64_t n;
  int h, w, cin, hidden, cout, oh, ow, stride, top, left;
  const void* x;
  const void* expand;
  const void* depthwise;
  const void* project;
  const float *expand_scale, *expand_shift, *depthwise_scale, *depthwise_shift, *project_scale, *project_shift;
  void* y;
  float* partial;  // workspace of plan.splits * n * oh * ow * cout floats where plan.splits > 1
  int expand_activation, depthwise_activation, project_activation;
  bool residual;
  bool tf32;  // fp32 products on the tensor cores in TF32
};

// How a block runs: a tile of output pixels per CTA, hidden channels split over `splits` CTAs.
struct BlockPlan {
  int tile_h, tile_w;
  int splits, hidden_per_split;
  int tiles_per_warp;  // 16x16 tiles of project sums in registers
  size_t shared;       // bytes
};

constexpr int kBlockThreads = 256;

// The batch up to a power of two. Plans look at nothing else of it, so that one check, made once per such class, is of
// the code that every batch of the class runs.
inline int64_t batch_class(int64_t n) {
  int64_t up = 1;
  while (up < n) up *= 2;
  return up;
}

// A tile that fits into `shared_limit` bytes, and splits, for a device that runs `ctas` CTAs at once. tile_h == 0:
// nothing fits.
BlockPlan plan_block(const Block& b, Dtype dtype, size_t shared_limit, int ctas);

// Chunks of the weight gradient's first stage and the floats of its workspace: functions of the shape alone, the batch
// by its class.
int weight_chunks(const Depthwise& d, Dtype dtype);
int64_t weight_partials(const Depthwise& d, Dtype dtype);

// Whether this build has code for the device and the driver runs it: a cudaError_t as int.
int probe(int device);

// Each returns a cudaError_t as int: 0 or the error of the launch. `stream` is a cudaStream_t. n is at least 1.
int depthwise_forward(const DepthwiseForward& p, Dtype dtype, void* stream);
int depthwise_backward_data(const DepthwiseBackwardData& p, Dtype dtype, void* stream);
int depthwise_backward_weight(const DepthwiseBackwardWeight& p, Dtype dtype, void* stream);
int inverted_residual(const Block& p, const BlockPlan& plan, Dtype dtype, void* stream);

}  // namespace cuda
}  // namespace mobilenet_ext
