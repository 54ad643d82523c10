// The integer program of a chain, decoded. mobilenet_ext/spec.py writes it; field order and codes must agree.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace mobilenet_ext {

// Reduce and excite are the two layers of squeeze-and-excitation: one pixel, the mean of the depthwise output.
enum class Role { kExpand = 0, kDepthwise = 1, kReduce = 2, kExcite = 3, kProject = 4 };
enum class Activation {
  kNone = 0,
  kRelu = 1,
  kRelu6 = 2,
  kHardswish = 3,
  kSilu = 4,
  kHardsigmoid = 5,
  kLeakyRelu = 6,
  kSigmoid = 7,
};
constexpr int64_t kLastActivation = 7;
// The first three are clamps; the others take a pass of their own over what a tile has stored.
inline bool is_clamp(Activation a) { return a <= Activation::kRelu6; }

// Which tensors exist for a stage, in this order in the flat source list.
enum SourceBit : unsigned {
  kWeight = 1,
  kConvBias = 2,
  kBnWeight = 4,
  kBnBias = 8,
  kRunningMean = 16,
  kRunningVar = 32,
  kBatchesTracked = 64,
};

// Flags of a program's second value.
constexpr int64_t kFollowInputFlag = 1, kTransientFlag = 2;

// Sizes in pixels. With `same`, the pads follow from the input size (TensorFlow's rule: the odd pixel at bottom,
// right).
struct Geometry {
  int kh = 1, kw = 1, sh = 1, sw = 1, dh = 1, dw = 1;
  bool same = false;
  int top = 0, bottom = 0, left = 0, right = 0;
};

// A convolution placed on an input of h x w.
struct Placed {
  int h = 0, w = 0, out_h = 0, out_w = 0, top = 0, left = 0;
};
Placed place(const Geometry& g, int h, int w);

struct StageDesc {
  Role role = Role::kExpand;
  int in = 0, out = 0;
  Geometry geometry;
  Activation activation = Activation::kNone;
  unsigned sources = kWeight;
  double eps = 0;
  double slope = 0;  // LeakyReLU's, below zero

  int source_count() const { return __builtin_popcount(sources); }
  // A 1x1 convolution that reads each pixel where it lies.
  bool pointwise() const;
  // A larger dense convolution of so many channels that its operand is pixels with their channels together and its sums
  // run over (ky, kx, channel); with fewer, planes and (channel, ky, kx).
  bool by_pixels() const { return role == Role::kExpand && !pointwise() && in >= 8; }
};

struct ItemDesc {
  bool linear = false;
  bool residual = false, pool = false;
  bool mean = false;              // the mean over the image alone: pool, and one stage without weights
  bool residual_back = false;     // the shortcut starts at the input of the item before this one
  std::vector<StageDesc> stages;  // a linear item has one stage with a 1x1 geometry

  const StageDesc* find(Role role) const;
  int in() const { return stages.front().in; }
  int out() const { return stages.back().out; }
  bool squeezed() const { return find(Role::kExcite) != nullptr; }
  // "block" (several stages in one kernel), "conv" or "linear": how reports and counters count it.
  const char* kind() const { return linear ? "linear" : mean ? "pool" : stages.size() > 1 ? "block" : "conv"; }
};

struct ChainDesc {
  bool transient = false;     // packed weights are not kept
  bool follow_input = false;  // memory format of the result: that of the input instead of channels_last
  std::vector<ItemDesc> items;

  int source_count() const;
  bool flat_output() const { return items.back().linear || items.back().pool; }  // (N, C) instead of (N, C, H, W)
};

// Throws std::invalid_argument in one sentence when the program is not well formed.
ChainDesc decode(const std::vector<int64_t>& program, const std::vector<double>& constants);

}  // namespace mobilenet_ext
