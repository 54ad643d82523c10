// Per-channel sums over many pixels: fp32 over at most 512 pixels, then double, then over tasks in their order.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "train_table.h"

namespace mobilenet_ext {

constexpr int kFloatPixels = 512;

// One task's pair of sums for some channels: the first at `sums`, the second `distance` further on; `floats` is scratch
// of 2 * channels.
class PairSum {
 public:
  static size_t scratch_floats(int channels) { return 2 * static_cast<size_t>(channels); }

  PairSum(double* sums, ptrdiff_t distance, float* floats, int channels)
      : sums_(sums), distance_(distance), floats_(floats), channels_(channels) {
    std::fill_n(sums_, channels, 0.0);
    std::fill_n(sums_ + distance, channels, 0.0);
    std::fill_n(floats_, 2 * channels, 0.0f);
  }

  // Runs `kernel` (moments or reduce) over args.pixels pixels that begin at args.x, args.g and args.y.
  template <class Kernel>
  void add(const Kernel& kernel, PassArgs args) {
    args.sum = floats_;
    args.sum_x = floats_ + channels_;
    for (int left = args.pixels; left > 0;) {
      args.pixels = std::min(left, kFloatPixels - pending_);
      kernel(args);
      const ptrdiff_t step = args.pixels * args.pitch;
      args.x += step;
      if (args.g) args.g += step;
      if (args.y) args.y += step;
      left -= args.pixels;
      pending_ += args.pixels;
      if (pending_ == kFloatPixels) flush();
    }
  }

  void flush() {
    for (int i = 0; i < channels_; ++i) {
      sums_[i] += floats_[i];
      sums_[distance_ + i] += floats_[channels_ + i];
    }
    std::fill_n(floats_, 2 * channels_, 0.0f);
    pending_ = 0;
  }

 private:
  double* sums_;
  ptrdiff_t distance_;
  float* floats_;
  int channels_, pending_ = 0;
};

// Mean and population variance of all tasks from each one's (count, center, sums of d and d * d), as in Chan, Golub and
// LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
class MergedMoments {
 public:
  MergedMoments(double* mean, double* var, int channels) : mean_(mean), m2_(var), channels_(channels) {
    std::fill_n(mean_, channels, 0.0);
    std::fill_n(m2_, channels, 0.0);
  }
  void add(int64_t count, const float* center, const double* sums) {
    if (count == 0) return;
    const double n = static_cast<double>(count), all = static_cast<double>(total_) + n;
    for (int c = 0; c < channels_; ++c) {
      const double s = sums[c], mean = center[c] + s / n, m2 = std::max(0.0, sums[channels_ + c] - s * s / n);
      const double delta = mean - mean_[c];
      // NaN must stay: max() above returns its first operand when the second is NaN, s carries it on.
      m2_[c] += m2 + delta * delta * (static_cast<double>(total_) * n / all) + (s - s);
      mean_[c] += delta * (n / all);
    }
    total_ += count;
  }
  void finish() {
    for (int c = 0; c < channels_; ++c) m2_[c] /= static_cast<double>(std::max<int64_t>(1, total_));
  }

 private:
  double *mean_, *m2_;
  int channels_;
  int64_t total_ = 0;
};

// The mean of the first pixels of a task: near enough to the true one for sums of squares around it to keep digits.
inline void center_of(const float* x, int64_t pixels, ptrdiff_t pitch, int channels, float* center) {
  const int count = static_cast<int>(std::min<int64_t>(pixels, 16));
  for (int c = 0; c < channels; ++c) {
    float sum = 0.0f;
    for (int i = 0; i < count; ++i) sum += x[i * pitch + c];
    center[c] = count ? sum / static_cast<float>(count) : 0.0f;
  }
}

}  // namespace mobilenet_ext
