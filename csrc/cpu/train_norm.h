// BatchNorm of one stage of a block in training as coefficients: forward a scale and a shift, backward three more
// vectors. mobilenet_ext/training/norm.py has the formulas and their source; both make them in double.
#pragma once
#include <cstdint>
#include <vector>

#include "depthwise_train.h"
#include "passes.h"
#include "program.h"

namespace mobilenet_ext {

// The tensors of a stage; null: there is none. Vectors hold one value per output channel.
struct StageTensors {
  const float *weight = nullptr, *conv_bias = nullptr, *bn_weight = nullptr, *bn_bias = nullptr;
  const float *running_mean = nullptr, *running_var = nullptr;
};

// Where the gradients of a stage's tensors go; null: not wanted.
struct StageGradients {
  float *weight = nullptr, *conv_bias = nullptr, *bn_weight = nullptr, *bn_bias = nullptr;
};

// Two sums per channel, [2][channels]: of g' and of g' * (u - center).
using ChannelSums = std::vector<double>;

class Norm {
 public:
  // `mean` and `var` are the batch's, [channels]; null: the running ones, or no BatchNorm at all.
  Norm(const StageDesc& stage, const StageTensors& tensors, const double* mean, const double* var);

  int channels() const { return static_cast<int>(scale_.size()); }
  bool batch() const { return batch_; }
  // clamp(u * scale + shift, lo, hi) is what the next stage reads.
  Prologue act() const { return {act_scale_.data(), act_shift_.data(), lo_, hi_}; }
  const float* center() const { return center_.data(); }
  const float* scale() const { return act_scale_.data(); }
  const std::vector<double>& exact_scale() const { return scale_; }
  bool clamps() const { return lo_ > -kNoBound || hi_ < kNoBound; }

  // The factor of (u - mean) that the batch's variance takes off the gradient; `count` values per channel.
  std::vector<double> slope(const ChannelSums& sums, int64_t count) const;
  void gradients(const ChannelSums& sums, const StageGradients& to) const;

  // What makes g' the gradient of u: a * g' + b * (u - center) + c, b and c empty with running statistics.
  struct Coefficients {
    const float* a;
    std::vector<float> b, c;
    const float* center;
    const float* b_or_null() const { return b.empty() ? nullptr : b.data(); }
    const float* c_or_null() const { return c.empty() ? nullptr : c.data(); }
  };
  Coefficients coefficients(const ChannelSums& sums, int64_t count) const;

 private:
  static constexpr float kNoBound = __builtin_huge_valf();
  // The kernels subtract the rounded mean.
  double about_mean(const ChannelSums& sums, int c) const {
    return sums[scale_.size() + c] - (mean_[c] - static_cast<double>(center_[c])) * sums[c];
  }

  bool batch_, has_bn_;
  float lo_, hi_;
  std::vector<double> mean_, rstd_, scale_;
  std::vector<float> act_scale_, act_shift_, center_;
};

}  // namespace mobilenet_ext
