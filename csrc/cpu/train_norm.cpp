#include "train_norm.h"

#include <cmath>

namespace mobilenet_ext {

Norm::Norm(const StageDesc& stage, const StageTensors& t, const double* mean, const double* var)
    : batch_(mean != nullptr),
      has_bn_((stage.sources & kRunningMean) != 0),
      lo_(stage.activation == Activation::kNone ? -kNoBound : 0.0f),
      hi_(stage.activation == Activation::kRelu6 ? 6.0f : kNoBound),
      mean_(stage.out, 0.0),
      rstd_(stage.out, 1.0),
      scale_(stage.out),
      act_scale_(stage.out),
      act_shift_(stage.out),
      center_(stage.out) {
  for (int c = 0; c < stage.out; ++c) {
    const double bias = t.conv_bias ? t.conv_bias[c] : 0.0;
    double gamma = 1.0, beta = bias;
    if (has_bn_) {
      gamma = t.bn_weight ? t.bn_weight[c] : 1.0;
      beta = t.bn_bias ? t.bn_bias[c] : 0.0;
      mean_[c] = mean ? mean[c] : t.running_mean[c] - bias;
      rstd_[c] = 1.0 / std::sqrt((mean ? var[c] : t.running_var[c]) + stage.eps);
    }
    scale_[c] = gamma * rstd_[c];
    act_scale_[c] = static_cast<float>(scale_[c]);
    act_shift_[c] = static_cast<float>(beta - mean_[c] * scale_[c]);
    center_[c] = static_cast<float>(mean_[c]);
  }
}

std::vector<double> Norm::slope(const ChannelSums& sums, int64_t count) const {
  std::vector<double> slope(scale_.size());
  for (int c = 0; c < channels(); ++c) {
    slope[c] = scale_[c] * (rstd_[c] * rstd_[c]) * (about_mean(sums, c) / static_cast<double>(count));
  }
  return slope;
}

void Norm::gradients(const ChannelSums& sums, const StageGradients& to) const {
  for (int c = 0; c < channels(); ++c) {
    if (to.bn_weight) to.bn_weight[c] = static_cast<float>(about_mean(sums, c) * rstd_[c]);
    if (to.bn_bias) to.bn_bias[c] = static_cast<float>(sums[c]);
    if (to.conv_bias) to.conv_bias[c] = batch_ ? 0.0f : static_cast<float>(sums[c] * scale_[c]);
  }
}

Norm::Coefficients Norm::coefficients(const ChannelSums& sums, int64_t count) const {
  Coefficients k{act_scale_.data(), {}, {}, center_.data()};
  if (!batch_) return k;
  const std::vector<double> slopes = slope(sums, count);
  k.b.resize(scale_.size());
  k.c.resize(scale_.size());
  for (int c = 0; c < channels(); ++c) {
    k.b[c] = static_cast<float>(-slopes[c]);
    k.c[c] = static_cast<float>(-scale_[c] * (sums[c] / static_cast<double>(count)) -
                                slopes[c] * (static_cast<double>(center_[c]) - mean_[c]));
  }
  return k;
}

}  // namespace mobilenet_ext
