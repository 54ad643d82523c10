// The depthwise kernels, forward and both gradients, against double precision: dtypes, kernel sizes, strides, even and
// odd paddings, channels on and off the vector.
#include "cuda_cases.h"

namespace test {
namespace {

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
  const DepthwiseForward p{d, x.data.data(), weight.data.data(), scale.data.data(), shift.data.data(), y.data.data(),
                           2};
  in_every_order(y, "forward " + text(c), [&] { return depthwise_forward(p, kDtype<T>, nullptr); });
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
  const DepthwiseBackwardData data{d, dy.data.data(), weight.data.data(), dx.data.data()};
  const DepthwiseBackwardWeight sums{d, x.data.data(), dy.data.data(), partial.data.data(), dw.data.data()};
  in_every_order(dx, "backward data " + text(c), [&] { return depthwise_backward_data(data, kDtype<T>, nullptr); });
  in_every_order(dw, "backward weight " + text(c), [&] { return depthwise_backward_weight(sums, kDtype<T>, nullptr); });
  std::vector<double> gx(in), mx(in), gw(taps_c), mw(taps_c);
  taps(d, [&](size_t o, size_t i, size_t k) {
    gx[i] += dy[o] * weight[k];
    mx[i] += std::fabs(dy[o] * weight[k]);
    gw[k] += dy[o] * x[i];
    mw[k] += std::fabs(dy[o] * x[i]);
  });
  compare(dx, gx, mx, d.kernel * d.kernel, "backward data " + text(c));
  compare(dw, gw, mw, static_cast<double>(d.n) * d.oh * d.ow, "backward weight " + text(c));
}

template <class T>
void all_shapes() {
  for (int kernel : {3, 5})
    for (int stride : {1, 2})
      for (int channels : {8, 40, 21})
        for (const Case& c : {Case{2, 9, 11, channels, kernel, stride, kernel / 2, kernel / 2},
                              Case{1, 1, 1, channels, kernel, stride, kernel / 2, kernel / 2},
                              Case{1, 6, 13, channels, kernel, stride, kernel / 2, kernel / 2 - 1},  // the other parity
                              Case{1, 34, 19, channels, kernel, stride, kernel / 2 - 1, kernel / 2}}) {
          test_forward<T>(c);
          test_backward<T>(c);
        }
  for (int stride : {1, 2}) {  // large enough that the weight gradient is summed in two stages
    const Case c{4, 66, 21, 21, 3, stride, 1, 1};
    CHECK(weight_chunks(shape_of(c), kDtype<T>) > 1);
    test_backward<T>(c);
  }
}

}  // namespace

void depthwise_cases() {
  all_shapes<float>();
  all_shapes<Half>();
  all_shapes<BFloat16>();
}

}  // namespace test
