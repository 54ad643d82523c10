#include "peak.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "registry.h"

namespace mobilenet_ext {

// The tallest tile of the main kind over a panel that stays in L1: nothing but FMAs, with operands from the first
// cache.
double peak_flops(double seconds) {
  const PanelKind& kind = active_isa().kinds[0];
  constexpr int kDepth = 128;
  std::vector<float> a(static_cast<size_t>(kind.max_rows) * kDepth, 1e-3f),
      b(static_cast<size_t>(kind.width) * kDepth, 1e-3f), bias(kind.width, 0.0f),
      c(static_cast<size_t>(kind.max_rows) * kind.width);
  const ptrdiff_t segment = 0;
  GemmArgs g{};
  g.a = a.data();
  g.a_pixel = kDepth;
  g.segments = &segment;
  g.segment_count = 1;
  g.segment_length = kDepth;
  g.b = b.data();
  g.bias = bias.data();
  g.c = c.data();
  g.c_pixel = kind.width;
  g.c_vector = kind.vector;
  g.m = kind.max_rows;
  g.n_valid = kind.width;
  g.lo = -1e30f;
  g.hi = 1e30f;
  using Clock = std::chrono::steady_clock;
  const double flops = 2.0 * kind.max_rows * kind.width * kDepth;
  double best = 0;
  const auto start = Clock::now();
  do {
    constexpr int kCalls = 500;
    const auto t = Clock::now();
    for (int i = 0; i < kCalls; ++i) kind.gemm(g);
    best = std::max(best, kCalls * flops / std::chrono::duration<double>(Clock::now() - t).count());
  } while (std::chrono::duration<double>(Clock::now() - start).count() < seconds);
  return best;
}

}  // namespace mobilenet_ext
