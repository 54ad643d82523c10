// Training kernels of every instruction set against plain loops in double: passes, depthwise forward and backward,
// products. Sizes off the vector, every stride and dilation, bands, several workers.
#include <cmath>
#include <random>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/depthwise_train.h"
#include "cpu/passes.h"
#include "cpu/product.h"
#include "cpu/registry.h"

using namespace mobilenet_ext;

namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

std::mt19937 engine(1);

Floats random_floats(size_t count, float low = -2.0f, float high = 2.0f) {
  std::uniform_real_distribution<float> uniform(low, high);
  Floats values(count);
  for (float& v : values) v = uniform(engine);
  return values;
}

void run_in_threads(int workers, const Worker& worker) {
  std::vector<std::thread> threads;
  for (int i = 1; i < workers; ++i) threads.emplace_back(worker, i);
  worker(0);
  for (std::thread& t : threads) t.join();
}
const Parallel parallel = run_in_threads;

void check_near(const char* what, double found, double expected, double scale) {
  CHECK_MESSAGE(std::fabs(found - expected) <= 2e-5 * scale,
                std::string(what) + ": " + std::to_string(found) + " where " + std::to_string(expected) + " belongs");
}

double masked(double g, double z, double lo, double hi) { return z <= lo || z >= hi ? 0.0 : g; }

void test_passes(const TrainTable& isa, int pixels, int channels) {
  const size_t size = static_cast<size_t>(pixels) * channels;
  const Floats g = random_floats(size), x = random_floats(size), r = random_floats(size);
  const Floats scale = random_floats(channels), shift = random_floats(channels), a = random_floats(channels),
               b = random_floats(channels), c = random_floats(channels), center = random_floats(channels);
  const Threads threads{3, parallel};
  Floats y(size, NAN);
  Pass p{pixels, channels};
  p.g = g.data();
  p.x = x.data();
  p.r = r.data();
  p.y = y.data();
  p.scale = scale.data();
  p.shift = shift.data();
  p.hi = 1.5f;
  p.a = a.data();
  p.b = b.data();
  p.c = c.data();
  p.center = center.data();
  run_apply(isa, p, threads);
  for (size_t i = 0; i < size; ++i) {
    const double z = std::fma(x[i], scale[i % channels], shift[i % channels]);
    check_near("apply", y[i], std::fmin(1.5, std::fmax(0.0, z)) + r[i], 4);
  }
  std::fill(y.begin(), y.end(), NAN);
  run_gradient(isa, p, threads);
  Doubles sums(2 * channels, 0.0), mean(channels, 0.0), var(channels, 0.0);
  for (size_t i = 0; i < size; ++i) {
    const int k = static_cast<int>(i % channels);
    const float z = std::fma(x[i], scale[k], shift[k]);
    const double kept = masked(g[i], z, 0.0, 1.5);
    check_near("gradient", y[i], a[k] * kept + b[k] * (static_cast<double>(x[i]) - center[k]) + c[k], 10);
    sums[k] += kept;
    sums[channels + k] += kept * (static_cast<double>(x[i]) - center[k]);
    mean[k] += static_cast<double>(x[i]) / pixels;
  }
  for (size_t i = 0; i < size; ++i) var[i % channels] += std::pow(x[i] - mean[i % channels], 2) / pixels;
  Doubles found(2 * channels), found_mean(channels), found_var(channels);
  p.y = nullptr;
  run_reduce(isa, p, found.data(), threads);
  run_moments(isa, p, found_mean.data(), found_var.data(), threads);
  for (int k = 0; k < 2 * channels; ++k) check_near("reduce", found[k], sums[k], 4 * std::sqrt(1.0 * pixels));
  for (int k = 0; k < channels; ++k) {
    check_near("mean", found_mean[k], mean[k], 1);
    check_near("variance", found_var[k], var[k], 1);
  }
}

struct Case {
  int n, c, h, w, k, s, p, d;
};

// `plain`: of the tensors as they are, nothing applied as they are read.
void test_depthwise(const IsaTable& isa, const TrainTable& train, const Case& t, bool plain) {
  DepthwiseShape s{};
  s.n = t.n, s.channels = t.c, s.h = t.h, s.w = t.w;
  s.kh = s.kw = t.k, s.sh = s.sw = t.s, s.dh = s.dw = t.d, s.top = s.left = t.p;
  s.oh = (t.h + 2 * t.p - t.d * (t.k - 1) - 1) / t.s + 1;
  s.ow = (t.w + 2 * t.p - t.d * (t.k - 1) - 1) / t.s + 1;
  const size_t in = static_cast<size_t>(t.n) * t.h * t.w * t.c, out = static_cast<size_t>(t.n) * s.oh * s.ow * t.c;
  const int taps = t.k * t.k;
  const Floats x = random_floats(in), g = random_floats(out), y = random_floats(out);
  const Floats weight = random_floats(static_cast<size_t>(t.c) * taps), center = random_floats(t.c);
  const Floats scale = random_floats(t.c), shift = random_floats(t.c), yscale = random_floats(t.c),
               yshift = random_floats(t.c), a = random_floats(t.c), b = random_floats(t.c), c = random_floats(t.c);
  Prologue prologue;
  GradientPrologue gradient;
  if (!plain) {
    prologue = {scale.data(), shift.data(), 0.0f, 1.5f};
    gradient = {y.data(), {yscale.data(), yshift.data(), 0.0f, 1.5f}, a.data(), b.data(), c.data(), center.data()};
  }

  Doubles value(in), arriving(out), expected_y(out, 0.0), expected_dx(in, 0.0), expected_dw(weight.size(), 0.0);
  for (size_t i = 0; i < in; ++i) {
    value[i] = plain ? x[i] : std::fmin(1.5f, std::fmax(0.0f, std::fma(x[i], scale[i % t.c], shift[i % t.c])));
  }
  for (size_t i = 0; i < out; ++i) {
    const int k = static_cast<int>(i % t.c);
    const float z = std::fma(y[i], yscale[k], yshift[k]);
    arriving[i] =
        plain ? g[i] : a[k] * masked(g[i], z, 0.0, 1.5) + b[k] * (static_cast<double>(y[i]) - center[k]) + c[k];
  }
  for (int n = 0; n < t.n; ++n) {
    for (int oy = 0; oy < s.oh; ++oy) {
      for (int ox = 0; ox < s.ow; ++ox) {
        for (int ky = 0; ky < t.k; ++ky) {
          for (int kx = 0; kx < t.k; ++kx) {
            const int iy = oy * t.s - t.p + ky * t.d, ix = ox * t.s - t.p + kx * t.d;
            if (iy < 0 || iy >= t.h || ix < 0 || ix >= t.w) continue;
            for (int k = 0; k < t.c; ++k) {
              const size_t o = ((static_cast<size_t>(n) * s.oh + oy) * s.ow + ox) * t.c + k;
              const size_t i = ((static_cast<size_t>(n) * t.h + iy) * t.w + ix) * t.c + k;
              const size_t at = static_cast<size_t>(k) * taps + ky * t.k + kx;
              expected_y[o] += value[i] * weight[at];
              expected_dx[i] += arriving[o] * weight[at];
              expected_dw[at] += arriving[o] * value[i];
            }
          }
        }
      }
    }
  }
  Doubles sums(2 * t.c, 0.0), mean(t.c, 0.0);
  for (size_t i = 0; i < in; ++i) {
    const int k = static_cast<int>(i % t.c);
    if (plain) break;
    expected_dx[i] = masked(expected_dx[i], std::fma(x[i], scale[k], shift[k]), 0.0, 1.5);
    sums[k] += expected_dx[i];
    sums[t.c + k] += expected_dx[i] * (static_cast<double>(x[i]) - center[k]);
  }
  for (size_t i = 0; i < out; ++i) mean[i % t.c] += expected_y[i] * t.c / out;

  for (int workers : {1, 3}) {
    const Threads threads{workers, parallel};
    Floats found(out, NAN), dx(in, NAN), dw(weight.size(), NAN);
    Doubles found_mean(t.c), found_var(t.c), found_sums(2 * t.c);
    depthwise_forward(isa, train, s, x.data(), prologue, weight.data(), nullptr, found.data(), found_mean.data(),
                      found_var.data(), threads);
    depthwise_backward(isa, train, s, g.data(), gradient, x.data(), prologue, plain ? nullptr : center.data(),
                       weight.data(), dx.data(), dw.data(), plain ? nullptr : found_sums.data(), threads);
    for (size_t i = 0; i < out; ++i) check_near("y", found[i], expected_y[i], 2 * taps);
    for (size_t i = 0; i < in; ++i) check_near("dx", dx[i], expected_dx[i], 8 * taps);
    for (size_t i = 0; i < dw.size(); ++i) check_near("dw", dw[i], expected_dw[i], 8 * std::sqrt(1.0 * out / t.c) + 8);
    for (int k = 0; k < t.c; ++k) check_near("moments", found_mean[k], mean[k], 2 * taps);
    for (int k = 0; k < 2 * t.c; ++k) check_near("sums", found_sums[k], sums[k], 32 * taps * std::sqrt(1.0 * in / t.c));
  }
}

void test_products(const IsaTable& isa, const TrainTable& train, int pixels, int k, int n) {
  const Threads threads{3, parallel};
  const Floats a = random_floats(static_cast<size_t>(pixels) * k), b = random_floats(static_cast<size_t>(k) * n),
               narrow = random_floats(static_cast<size_t>(pixels) * n), scale = random_floats(k),
               shift = random_floats(k), center = random_floats(n);
  for (const auto& [transposed, scaled] : {std::pair{false, true}, {true, true}, {false, false}, {true, false}}) {
    Floats out(static_cast<size_t>(pixels) * n, NAN);
    run_product(isa, train,
                {a.data(), b.data(), out.data(), pixels, k, n, transposed, scaled ? scale.data() : nullptr,
                 scaled ? shift.data() : nullptr, 0, 1},
                threads);
    for (int m = 0; m < pixels; ++m) {
      for (int j = 0; j < n; ++j) {
        double sum = 0;
        for (int i = 0; i < k; ++i) {
          const float x = a[static_cast<size_t>(m) * k + i],
                      z = scaled ? std::fmin(1.0f, std::fmax(0.0f, std::fma(x, scale[i], shift[i]))) : x;
          sum +=
              static_cast<double>(z) * b[transposed ? static_cast<size_t>(j) * k + i : static_cast<size_t>(i) * n + j];
        }
        check_near("product", out[static_cast<size_t>(m) * n + j], sum, k);
      }
    }
  }
  Floats total(static_cast<size_t>(k) * n, 0.5f);
  run_weight_product(train, {a.data(), narrow.data(), center.data(), total.data(), pixels, k, n, true}, threads);
  for (int i = 0; i < k; ++i) {
    for (int j = 0; j < n; ++j) {
      double sum = 0.5;
      for (int m = 0; m < pixels; ++m) {
        sum += static_cast<double>(a[static_cast<size_t>(m) * k + i]) *
               (narrow[static_cast<size_t>(m) * n + j] - center[j]);
      }
      check_near("weight product", total[static_cast<size_t>(i) * n + j], sum, 8 * std::sqrt(1.0 * pixels) + 8);
    }
  }
}

}  // namespace

int main() {
  for (const Isa& isa : isas()) {
    if (!isa.supported) continue;
    const TrainTable& train = *isa.train;
    CHECK(std::string(train.name) == isa.table->name);
    CHECK(train.vector == isa.table->vector);
    for (int channels : {1, 7, 16, 24, 35}) {
      for (int pixels : {1, 63, 200}) test_passes(train, pixels, channels);
    }
    for (const Case& t :
         {Case{2, 17, 9, 11, 3, 1, 1, 1}, Case{2, 16, 9, 12, 3, 2, 1, 1}, Case{1, 35, 24, 13, 5, 1, 2, 1},
          Case{3, 20, 17, 16, 5, 2, 2, 1}, Case{2, 5, 13, 14, 3, 1, 2, 2}, Case{2, 9, 13, 14, 3, 2, 1, 2},
          Case{1, 8, 20, 21, 4, 3, 3, 2}, Case{2, 8, 1, 1, 3, 1, 1, 1}, Case{2, 8, 7, 7, 2, 3, 0, 1},
          Case{1, 8, 40, 9, 3, 1, 0, 1}, Case{1, 20, 4, 2, 3, 2, 1, 1}, Case{1, 8, 2, 5, 3, 2, 1, 1},
          Case{1, 530, 3, 6, 3, 1, 1, 1}, Case{2, 512, 4, 5, 3, 1, 1, 1}, Case{1, 1024, 5, 5, 3, 2, 1, 1},
          Case{1, 16, 3, 600, 3, 1, 1, 1}}) {
      test_depthwise(*isa.table, train, t, false);
      test_depthwise(*isa.table, train, t, true);
    }
    for (int pixels : {1, 130, 300}) {
      test_products(*isa.table, train, pixels, 27, 300);
      test_products(*isa.table, train, pixels, 7, 5);
      test_products(*isa.table, train, pixels, 48, 40);
      test_products(*isa.table, train, pixels, 1024, 9);  // pixels a page apart
    }
  }
  return test::report();
}
