// Every CUDA kernel, run on the CPU by the emulation, against double precision: dtypes, kernel sizes, strides,
// paddings, channels on and off the vector, threads forwards, backwards and shuffled.
#include <cstdlib>
#include <random>

#include "check.h"
#include "cuda/device.h"

namespace {

using namespace mobilenet_ext::cuda;  // NOLINT

std::mt19937 rng(7);

template <class T>
constexpr Dtype kDtype = sizeof(T) == 4 ? Dtype::kFloat : Dtype::kHalf;
template <>
constexpr Dtype kDtype<BFloat16> = Dtype::kBFloat16;
template <class T>
constexpr double kEps = 1.2e-7;
template <>
constexpr double kEps<Half> = 9.8e-4;
template <>
constexpr double kEps<BFloat16> = 7.9e-3;

// Half of the distance between the smallest numbers.
template <class T>
constexpr double kSmallest = sizeof(T) == 4 ? 1e-30 : 3e-8;

// A registered buffer between guards, at a 32-byte boundary; NaN where nothing was given.
template <class T>
struct Buffer {
  std::vector<T> data;
  Buffer(const std::string& name, size_t count, double scale, double shift = 0) : data(count) {
    std::uniform_real_distribution<double> draw(-1, 1);
    for (T& v : data) v = from_float<T>(static_cast<float>(scale ? draw(rng) * scale + shift : NAN));
    emulation::add_buffer(name, data.data(), count * sizeof(T));
  }
  double operator[](size_t i) const { return to_float(data[i]); }
};

double act(double v, int activation) {
  if (activation >= 1 && v < 0) v = 0;
  if (activation == 2 && v > 6) v = 6;
  return v;
}

struct Case {
  int n, h, w, c, kernel, stride, top, left;
};

Depthwise shape_of(const Case& c) {
  const int oh = (c.h + c.top + c.kernel / 2 - c.kernel) / c.stride + 1;
  const int ow = (c.w + c.left + c.kernel / 2 - c.kernel) / c.stride + 1;
  return {c.n, c.h, c.w, c.c, oh, ow, c.kernel, c.stride, c.top, c.left};
}

std::string text(const Case& c) {
  std::string s;
  for (int v : {c.n, c.h, c.w, c.c, c.kernel, c.stride, c.top, c.left}) s += std::to_string(v) + " ";
  return s;
}

// Calls f(n, oh, ow, ih, iw, kh, kw) for every tap inside the image.
template <class F>
void taps(const Depthwise& d, F f) {
  for (int n = 0; n < d.n; ++n)
    for (int oh = 0; oh < d.oh; ++oh)
      for (int ow = 0; ow < d.ow; ++ow)
        for (int kh = 0; kh < d.kernel; ++kh)
          for (int kw = 0; kw < d.kernel; ++kw) {
            const int ih = oh * d.stride + kh - d.top, iw = ow * d.stride + kw - d.left;
            if (ih >= 0 && ih < d.h && iw >= 0 && iw < d.w)
              for (int c = 0; c < d.c; ++c)
                f((static_cast<size_t>(n * d.oh + oh) * d.ow + ow) * d.c + c,
                  (static_cast<size_t>(n * d.h + ih) * d.w + iw) * d.c + c,
                  static_cast<size_t>(kh * d.kernel + kw) * d.c + c);
          }
}

template <class T>
void compare(const Buffer<T>& actual, const std::vector<double>& expected, const std::vector<double>& magnitude,
             double terms, const std::string& what) {
  double worst = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double limit =
        kEps<T> * (0.5 * std::fabs(expected[i])) + 2 * 1.2e-7 * std::sqrt(terms) * magnitude[i] + kSmallest<T>;
    const double error = std::fabs(actual[i] - expected[i]) / limit;
    worst = error <= worst ? worst : error;  // NaN wins
  }
  CHECK_MESSAGE(worst <= 1.01, what + " off by " + std::to_string(worst) + " times the bound");
}

template <class T>
void test_forward(const Case& c) {
  emulation::clear_buffers();
  const Depthwise d = shape_of(c);
  const size_t in = static_cast<size_t>(d.n) * d.h * d.w * d.c, out = static_cast<size_t>(d.n) * d.oh * d.ow * d.c;
  Buffer<T> x("x", in, 3), weight("weight", static_cast<size_t>(d.kernel) * d.kernel * d.c, 1), y("y", out, 0);
  Buffer<float> scale("scale", d.c, 1, 1.5), shift("shift", d.c, 2, 1);
  CHECK(
      depthwise_forward({d, x.data.data(), weight.data.data(), scale.data.data(), shift.data.data(), y.data.data(), 2},
                        kDtype<T>, nullptr) == 0);
  std::vector<double> sum(out), magnitude(out);
  taps(d, [&](size_t o, size_t i, size_t k) {
    sum[o] += x[i] * weight[k];
    magnitude[o] += std::fabs(x[i] * weight[k]);
  });
  for (size_t o = 0; o < out; ++o) {
    sum[o] = act(sum[o] * scale[o % d.c] + shift[o % d.c], 2);
    magnitude[o] = magnitude[o] * scale[o % d.c] + std::fabs(shift[o % d.c]);
  }
  compare(y, sum, magnitude, d.kernel * d.kernel + 2, "forward " + text(c));
}

template <class T>
void test_backward(const Case& c) {
  emulation::clear_buffers();
  const Depthwise d = shape_of(c);
  const size_t in = static_cast<size_t>(d.n) * d.h * d.w * d.c, out = static_cast<size_t>(d.n) * d.oh * d.ow * d.c;
  const size_t taps_c = static_cast<size_t>(d.kernel) * d.kernel * d.c;
  Buffer<T> x("x", in, 3), dy("dy", out, 1), weight("weight", taps_c, 1), dx("dx", in, 0);
  Buffer<float> dw("dw", taps_c, 0), partial("partial", static_cast<size_t>(weight_partials(d, kDtype<T>)), 0);
  CHECK(depthwise_backward_data({d, dy.data.data(), weight.data.data(), dx.data.data()}, kDtype<T>, nullptr) == 0);
  const DepthwiseBackwardWeight p{d, x.data.data(), dy.data.data(), partial.data.data(), dw.data.data()};
  CHECK(depthwise_backward_weight(p, kDtype<T>, nullptr) == 0);
  std::vector<double> gx(in), mx(in), gw(taps_c), mw(taps_c);
  taps(d, [&](size_t o, size_t i, size_t k) {
    gx[i] += dy[o] * weight[k];
    mx[i] += std::fabs(dy[o] * weight[k]);
    gw[k] += dy[o] * x[i];
    mw[k] += std::fabs(dy[o] * x[i]);
  });
  compare(dx, gx, mx, d.kernel * d.kernel, "backward data " + text(c));
  compare(dw, gw, mw, static_cast<double>(d.n) * d.oh * d.ow, "backward weight " + text(c));
  const std::vector<float> first = dw.data;
  emulation::set_order(emulation::Order::kShuffled, 5);
  CHECK(depthwise_backward_weight(p, kDtype<T>, nullptr) == 0);
  CHECK(dw.data == first);
}

template <class T>
void test_block(int n, int h, int w, int cin, int hidden, int cout, int stride, bool residual, int ctas, size_t limit) {
  emulation::clear_buffers();
  const int oh = (h - 1) / stride + 1, ow = (w - 1) / stride + 1;
  const size_t in = static_cast<size_t>(n) * h * w * cin, out = static_cast<size_t>(n) * oh * ow * cout;
  const double ke = std::sqrt(3.0 / cin), kp = std::sqrt(3.0 / hidden);
  Buffer<T> x("x", in, 2), expand("expand", static_cast<size_t>(cin) * hidden, ke), y("y", out, 0);
  Buffer<T> depthwise("depthwise", 9 * static_cast<size_t>(hidden), 0.6);
  Buffer<T> project("project", static_cast<size_t>(hidden) * cout, kp);
  Buffer<float> es("vectors", hidden, 1, 2), eb("vectors", hidden, 2, 1), ds("vectors", hidden, 1, 1.5);
  Buffer<float> db("vectors", hidden, 2, 1), ps("vectors", cout, 1, 1.5), pb("vectors", cout, 1);
  Block b{n,
          h,
          w,
          cin,
          hidden,
          cout,
          oh,
          ow,
          stride,
          1,
          1,
          x.data.data(),
          expand.data.data(),
          depthwise.data.data(),
          project.data.data(),
          es.data.data(),
          eb.data.data(),
          ds.data.data(),
          db.data.data(),
          ps.data.data(),
          pb.data.data(),
          y.data.data(),
          nullptr,
          2,
          2,
          0,
          residual,
          false};
  const BlockPlan plan = plan_block(b, kDtype<T>, limit, ctas);
  const std::string what = "block " + std::to_string(h) + "x" + std::to_string(w) + " " + std::to_string(cin) + "->" +
                           std::to_string(hidden) + "->" + std::to_string(cout) + " tile " +
                           std::to_string(plan.tile_h) + "x" + std::to_string(plan.tile_w) + " splits " +
                           std::to_string(plan.splits) + " of " + std::to_string(sizeof(T)) + " bytes";
  CHECK_MESSAGE(plan.tile_h > 0 && plan.shared <= limit, what);
  CHECK_MESSAGE((plan.splits > 1) == (ctas > 1), what);
  Buffer<float> partial("partial", plan.splits > 1 ? plan.splits * out : 1, 0);
  b.partial = partial.data.data();
  CHECK(inverted_residual(b, plan, kDtype<T>, nullptr) == 0);

  auto rounded = [](double v) { return static_cast<double>(to_float(from_float<T>(static_cast<float>(v)))); };
  std::vector<double> mid(static_cast<size_t>(n) * h * w * hidden), sum(out), bound(out);
  for (size_t p = 0; p < mid.size() / hidden; ++p)
    for (int k = 0; k < hidden; ++k) {
      double s = 0;
      for (int c = 0; c < cin; ++c) s += x[p * cin + c] * expand[static_cast<size_t>(c) * hidden + k];
      mid[p * hidden + k] = rounded(act(s * es[k] + eb[k], 2));
    }
  for (size_t p = 0; p < out / cout; ++p) {
    std::vector<double> f(hidden);
    const int ox = static_cast<int>(p % ow), oy = static_cast<int>(p / ow % oh), image = static_cast<int>(p / ow / oh);
    for (int k = 0; k < hidden; ++k) {
      double s = 0;
      for (int t = 0; t < 9; ++t) {
        const int iy = oy * stride + t / 3 - 1, ix = ox * stride + t % 3 - 1;
        if (iy >= 0 && iy < h && ix >= 0 && ix < w)
          s += mid[(static_cast<size_t>(image * h + iy) * w + ix) * hidden + k] * depthwise[t * hidden + k];
      }
      f[k] = rounded(act(s * ds[k] + db[k], 2));
    }
    for (int o = 0; o < cout; ++o) {
      double s = 0, m = 0;
      for (int k = 0; k < hidden; ++k) {
        s += f[k] * project[static_cast<size_t>(k) * cout + o];
        m += std::fabs(f[k] * project[static_cast<size_t>(k) * cout + o]);
      }
      sum[p * cout + o] = s * ps[o] + pb[o] + (residual ? x[p * cout + o] : 0);
      // A hidden value that lies on a rounding boundary may round to the other side: one unit in a few of many terms.
      bound[p * cout + o] =
          4 * kEps<T> * m * ps[o] / std::sqrt(hidden) + kEps<T> * std::fabs(sum[p * cout + o]) + 4e-6 * (m * ps[o] + 1);
    }
  }
  double worst = 0;
  for (size_t i = 0; i < out; ++i) {
    const double error = std::fabs(y[i] - sum[i]) / bound[i];
    worst = error <= worst ? worst : error;
  }
  CHECK_MESSAGE(worst <= 1, what + " off by " + std::to_string(worst) + " times the bound");
}

void test_conversions() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float v = half_to_float(static_cast<uint16_t>(bits));
    if (std::isnan(v))
      CHECK(std::isnan(half_to_float(float_to_half(v))));
    else
      CHECK(float_to_half(v) == bits);
  }
  CHECK(float_to_half(65520.f) == 0x7c00 && float_to_half(65519.f) == 0x7bff);
  CHECK(float_to_half(1.f + 0.00048828125f) == 0x3c00 && float_to_half(1.f + 3 * 0.00048828125f) == 0x3c02);
  CHECK(to_float(from_float<BFloat16>(1.f + 0.00390625f)) == 1.f);
  CHECK(std::isnan(to_float(from_float<BFloat16>(NAN))));
}

template <class T>
void test_all() {
  int number = 0;
  for (int kernel : {3, 5})
    for (int stride : {1, 2})
      for (int channels : {8, 40, 21})
        for (const Case& c : {Case{2, 9, 11, channels, kernel, stride, kernel / 2, kernel / 2},
                              Case{1, 1, 1, channels, kernel, stride, kernel / 2, kernel / 2},
                              Case{1, 34, 19, channels, kernel, stride, kernel / 2 - 1, kernel / 2}}) {
          ++number;
          emulation::set_order(static_cast<emulation::Order>(number % 3), number);
          test_forward<T>(c);
          test_backward<T>(c);
        }
  for (int stride : {1, 2}) {  // large enough that the weight gradient is summed in two stages
    const Case c{4, 66, 21, 21, 3, stride, 1, 1};
    CHECK(weight_chunks(shape_of(c), kDtype<T>) > 1);
    test_backward<T>(c);
  }
  constexpr size_t kShared = 164 * 1024;
  emulation::set_order(emulation::Order::kForwards);
  test_block<T>(1, 9, 11, 8, 40, 8, 1, true, 1, kShared);
  emulation::set_order(emulation::Order::kBackwards);
  test_block<T>(2, 15, 7, 24, 72, 32, 2, false, 1, kShared);
  emulation::set_order(emulation::Order::kShuffled, 3);
  test_block<T>(1, 7, 7, 16, 320, 24, 1, false, 132, kShared);
  test_block<T>(1, 17, 18, 16, 96, 24, 2, false, 1, 48 * 1024);
  test_block<T>(1, 1, 1, 16, 32, 8, 1, false, 1, kShared);
  test_block<T>(1, 7, 7, 40, 64, 320, 1, false, 1, kShared);
}

// Each provokes one fault; the emulation must end the program. Reached only by name.
int provoke(const std::string& fault) {
  std::vector<float> data(64);
  emulation::clear_buffers();
  emulation::add_buffer("data", data.data(), data.size() * sizeof(float));
  emulation::run(1, 1, {64, 1, 1}, 256, [&] {
    if (fault == "out_of_bounds") load<1>(data.data() + threadIdx.x + 1);
    if (fault == "misaligned") load<4>(data.data() + 1);
    if (fault == "divergence" && threadIdx.x < 40) __syncthreads();
    if (fault == "shared") emulation::shared_memory()[threadIdx.x + 193] = 1;
  });
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1) return provoke(arguments[1]);
  test_conversions();
  test_all<float>();
  test_all<Half>();
  test_all<BFloat16>();
  return test::report();
}
