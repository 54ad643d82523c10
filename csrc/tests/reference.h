// A chain in float64, written for reading, and the bound of its fp32 error (docs/numerics.md).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "cpu/pack.h"

namespace test {

using namespace mobilenet_ext;

// One stage's tensors, dense: weight (out, in / groups, kh, kw) and the BatchNorm vectors.
struct StageTensors {
  std::vector<float> weight, bias, gamma, beta, mean, var;
};

struct Image {
  int c = 0, h = 0, w = 0;
  std::vector<double> v, bound;  // values and the bound of an fp32 result's error, NCHW
  double& at(std::vector<double>& a, int ci, int y, int x) { return a[(static_cast<size_t>(ci) * h + y) * w + x]; }
};

inline StageDesc stage(Role role, int in, int out, Geometry g, Activation a = Activation::kRelu6) {
  StageDesc s;
  s.role = role;
  s.in = in;
  s.out = out;
  s.geometry = g;
  s.activation = a;
  s.sources = kWeight | kBnWeight | kBnBias | kRunningMean | kRunningVar;
  s.eps = 1e-5;
  s.slope = a == Activation::kLeakyRelu ? 0.1 : 0;
  return s;
}

inline Geometry square(int k, int stride = 1, int dilation = 1) {
  Geometry g;
  g.kh = g.kw = k;
  g.sh = g.sw = stride;
  g.dh = g.dw = dilation;
  g.top = g.bottom = g.left = g.right = (k - 1) * dilation / 2;
  return g;
}

// Values signed and scaled so that both clamps of ReLU6 bite.
inline StageTensors random_tensors(const StageDesc& s, std::mt19937& rng) {
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform(0.5f, 2.0f);
  StageTensors t;
  const int fan = (s.role == Role::kDepthwise ? 1 : s.in) * s.geometry.kh * s.geometry.kw;
  t.weight.resize(static_cast<size_t>(s.out) * fan);
  for (float& w : t.weight) w = normal(rng) / std::sqrt(static_cast<float>(fan));
  for (int i = 0; i < s.out; ++i) {
    t.bias.push_back(normal(rng));
    t.gamma.push_back(uniform(rng) * 2);
    t.beta.push_back(normal(rng) + 1);
    t.mean.push_back(normal(rng) / 2);
    t.var.push_back(uniform(rng));
  }
  return t;
}

inline std::vector<SourceView> views(const StageDesc& s, const StageTensors& t) {
  std::vector<SourceView> v;
  const int64_t in = s.role == Role::kDepthwise ? 1 : s.in, kh = s.geometry.kh, kw = s.geometry.kw;
  v.push_back({t.weight.data(), {in * kh * kw, kh * kw, kw, 1}});
  if (s.sources & kConvBias) v.push_back({t.bias.data(), {}});
  if (s.sources & kBnWeight) v.push_back({t.gamma.data(), {}});
  if (s.sources & kBnBias) v.push_back({t.beta.data(), {}});
  if (s.sources & kRunningMean) v.push_back({t.mean.data(), {}});
  if (s.sources & kRunningVar) v.push_back({t.var.data(), {}});
  return v;
}

constexpr double kEps = std::numeric_limits<float>::epsilon() / 2;

inline double activate(const StageDesc& s, double x) {
  const double six = std::min(std::max(x + 3, 0.0), 6.0);
  switch (s.activation) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kRelu6:
      return std::min(std::max(x, 0.0), 6.0);
    case Activation::kHardswish:
      return x * six / 6;
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kHardsigmoid:
      return six / 6;
    case Activation::kLeakyRelu:
      return x < 0 ? x * s.slope : x;
    case Activation::kSigmoid:
      return 1 / (1 + std::exp(-x));
  }
  return x;
}

// Steepest slope, and the activation's own rounding relative to its value.
inline double activation_bound(const StageDesc& s, double y, double bound) {
  if (is_clamp(s.activation) || s.activation == Activation::kLeakyRelu) return bound + kEps * std::fabs(y);
  const double slope = s.activation == Activation::kHardswish ? 1.5 : s.activation == Activation::kSilu ? 1.1 : 0.25;
  return slope * bound + 4 * kEps * std::fabs(y);
}

// |error| <= 2 eps sqrt(K) sum |w||x|, plus what the inputs' own errors become.
inline Image run_stage(const StageDesc& s, const StageTensors& t, Image& x) {
  const Placed p = place(s.geometry, x.h, x.w);
  const Geometry& g = s.geometry;
  Image y;
  y.c = s.out;
  y.h = p.out_h;
  y.w = p.out_w;
  y.v.resize(static_cast<size_t>(y.c) * y.h * y.w);
  y.bound.resize(y.v.size());
  const int in = s.role == Role::kDepthwise ? 1 : s.in;
  const double root = std::sqrt(static_cast<double>(in) * g.kh * g.kw + 1);
  for (int o = 0; o < s.out; ++o) {
    const bool bn = s.sources & kRunningMean;
    const double scale = bn ? (s.sources & kBnWeight ? t.gamma[o] : 1.0) / std::sqrt(t.var[o] + s.eps) : 1.0;
    const double bias = s.sources & kConvBias ? t.bias[o] : 0.0;
    const double shift = bn ? (s.sources & kBnBias ? t.beta[o] : 0.0) + (bias - t.mean[o]) * scale : bias;
    for (int oy = 0; oy < y.h; ++oy) {
      for (int ox = 0; ox < y.w; ++ox) {
        double sum = shift, magnitude = std::fabs(shift), carried = 0;
        for (int i = 0; i < in; ++i) {
          const int c = s.role == Role::kDepthwise ? o : i;
          for (int ky = 0; ky < g.kh; ++ky) {
            for (int kx = 0; kx < g.kw; ++kx) {
              const int iy = oy * g.sh - p.top + ky * g.dh, ix = ox * g.sw - p.left + kx * g.dw;
              if (iy < 0 || iy >= x.h || ix < 0 || ix >= x.w) continue;
              const double w = scale * t.weight[((static_cast<size_t>(o) * in + i) * g.kh + ky) * g.kw + kx];
              sum += w * x.at(x.v, c, iy, ix);
              magnitude += std::fabs(w * x.at(x.v, c, iy, ix));
              carried += std::fabs(w) * x.at(x.bound, c, iy, ix);
            }
          }
        }
        sum = activate(s, sum);
        y.at(y.v, o, oy, ox) = sum;
        y.at(y.bound, o, oy, ox) = activation_bound(s, sum, 2 * kEps * root * magnitude + carried);
      }
    }
  }
  return y;
}

inline Image mean_of(Image& y);

// `shortcut` is what the residual adds.
inline Image run_item(const ItemDesc& item, const std::vector<StageTensors>& tensors, Image x, const Image& shortcut) {
  Image y = x, squeezed;
  if (item.mean) return mean_of(y);
  for (size_t i = 0; i < item.stages.size(); ++i) {
    if (item.stages[i].role == Role::kReduce) {
      squeezed = mean_of(y);
      squeezed = run_stage(item.stages[i], tensors[i], squeezed);
    } else if (item.stages[i].role == Role::kExcite) {
      squeezed = run_stage(item.stages[i], tensors[i], squeezed);
      const size_t pixels = static_cast<size_t>(y.h) * y.w;
      for (size_t j = 0; j < y.v.size(); ++j) {
        const double s = squeezed.v[j / pixels], e = squeezed.bound[j / pixels];
        y.bound[j] = y.bound[j] * (std::fabs(s) + e) + std::fabs(y.v[j]) * e + kEps * std::fabs(y.v[j] * s);
        y.v[j] *= s;
      }
    } else {
      y = run_stage(item.stages[i], tensors[i], y);
    }
  }
  if (item.residual) {
    for (size_t i = 0; i < y.v.size(); ++i) {
      y.v[i] += shortcut.v[i];
      y.bound[i] += shortcut.bound[i] + kEps * std::fabs(y.v[i]);
    }
  }
  return item.pool ? mean_of(y) : y;
}

inline Image mean_of(Image& y) {
  const int pixels = y.h * y.w;
  Image pooled;
  pooled.c = y.c;
  pooled.h = pooled.w = 1;
  for (int c = 0; c < y.c; ++c) {
    double sum = 0, bound = 0, magnitude = 0;
    for (int i = 0; i < pixels; ++i) {
      sum += y.v[static_cast<size_t>(c) * pixels + i];
      magnitude += std::fabs(y.v[static_cast<size_t>(c) * pixels + i]);
      bound += y.bound[static_cast<size_t>(c) * pixels + i];
    }
    pooled.v.push_back(sum / pixels);
    pooled.bound.push_back((bound + 2 * kEps * std::sqrt(pixels + 1.0) * magnitude) / pixels);
  }
  return pooled;
}

}  // namespace test
