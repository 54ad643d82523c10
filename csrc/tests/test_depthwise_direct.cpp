// The depthwise convolution alone reads its tensors where they lie, and has the bits of the path through gathered rows:
// every cut of a row into tiles, both strides, rows at the edges, pixels that collide in the first cache, results past
// the caches. That its numbers are right is test_train's.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/depthwise_train.h"
#include "cpu/detect.h"
#include "cpu/registry.h"

using namespace mobilenet_ext;

namespace {

// Tables whose direct functions count their calls.
const IsaTable* under;
const TrainTable* train_under;
int rows_forward, rows_back, streamed;
void forward_row(const PixelRowArgs& d) {
  ++rows_forward;
  streamed += d.stream;
  under->depthwise_pixels(d);
}
void back_row(const PixelBackArgs& d) {
  ++rows_back;
  streamed += d.stream;
  train_under->depthwise_pixels_back(d);
}

struct Case {
  int n, c, h, w, stride, top, left;
  bool back = true;     // whether both gradients are made directly too
  bool groups = false;  // whether channels go in several
};

// 64-byte aligned, which results past the caches ask for.
struct Aligned {
  explicit Aligned(size_t size) : buffer(size), size(size) { std::fill_n(buffer.data(), size, NAN); }
  float* data() { return buffer.data(); }
  Buffer buffer;
  size_t size;
};

std::vector<float> random_values(size_t count) {
  static std::mt19937 engine(1);
  std::uniform_real_distribution<float> uniform(-2.0f, 2.0f);
  std::vector<float> values(count);
  for (float& v : values) v = uniform(engine);
  return values;
}

bool same_bits(const float* a, const float* b, size_t count) { return std::memcmp(a, b, count * sizeof(float)) == 0; }

void check(const IsaTable& isa, const TrainTable& train, const Case& t, size_t l3) {
  pretend_cache_sizes({32 << 10, 1 << 20, l3});
  DepthwiseShape s{};
  s.n = t.n, s.channels = t.c, s.h = t.h, s.w = t.w;
  s.kh = s.kw = 3, s.sh = s.sw = t.stride, s.dh = s.dw = 1, s.top = t.top, s.left = t.left;
  s.oh = (t.h + 2 * t.top - 3) / t.stride + 1, s.ow = (t.w + 2 * t.left - 3) / t.stride + 1;
  const size_t in = static_cast<size_t>(t.n) * t.h * t.w * t.c, out = static_cast<size_t>(t.n) * s.oh * s.ow * t.c;
  const std::vector<float> x = random_values(in), g = random_values(out), weight = random_values(t.c * 9),
                           bias = random_values(t.c), ones(t.c, 1.0f), zeros(t.c, 0.0f);
  // What leaves every value as it is, but is applied to gathered rows.
  const Prologue none, identity{ones.data(), zeros.data(), -HUGE_VALF, HUGE_VALF};
  const Parallel parallel = [](int, const Worker& worker) { worker(0); };
  const Threads threads{3, parallel};  // of three workers one comes, and does what was the others'
  Aligned y(out), dx(in);
  std::vector<float> y_gathered(out), dx_gathered(in), dw(weight.size()), dw_gathered(weight.size());
  std::vector<double> sums(2 * t.c);
  // A call for each row and group.
  auto calls = [&](int found, int rows) { return t.groups ? found > rows && found % rows == 0 : found == rows; };
  const int back_rows = t.back ? t.n * t.h : 0;
  const float* with_bias = l3 ? bias.data() : nullptr;  // with one, no result goes past the caches
  rows_forward = rows_back = streamed = 0;
  depthwise_forward(isa, train, s, x.data(), none, weight.data(), with_bias, y.data(), nullptr, nullptr, threads);
  CHECK(calls(rows_forward, t.n * s.oh));
  depthwise_forward(isa, train, s, x.data(), identity, weight.data(), with_bias, y_gathered.data(), nullptr, nullptr,
                    threads);
  CHECK(calls(rows_forward, t.n * s.oh));
  CHECK(same_bits(y.data(), y_gathered.data(), out));
  depthwise_backward(isa, train, s, g.data(), {}, x.data(), none, nullptr, weight.data(), dx.data(), dw.data(), nullptr,
                     threads);
  // Of a stride of 2 with padding above, no row of the input is without a part in the output here.
  CHECK(calls(rows_back, back_rows));
  depthwise_backward(isa, train, s, g.data(), {}, x.data(), identity, nullptr, weight.data(), dx_gathered.data(),
                     dw_gathered.data(), sums.data(), threads);
  CHECK(calls(rows_back, back_rows));
  CHECK(same_bits(dx.data(), dx_gathered.data(), in));
  // One gradient alone is the same one.
  std::vector<float> dw_alone(weight.size());
  Aligned dx_alone(in);
  depthwise_backward(isa, train, s, g.data(), {}, x.data(), none, nullptr, weight.data(), nullptr, dw_alone.data(),
                     nullptr, threads);
  depthwise_backward(isa, train, s, g.data(), {}, x.data(), none, nullptr, weight.data(), dx_alone.data(), nullptr,
                     nullptr, threads);
  CHECK(calls(rows_back, 3 * back_rows));
  CHECK(same_bits(dx.data(), dx_alone.data(), in));
  CHECK(same_bits(dw.data(), dw_alone.data(), dw.size()));
  // The same products, their sums cut elsewhere: each has the bound of docs/numerics.md for one sum.
  auto magnitudes = [](std::vector<float> v) {
    for (float& value : v) value = std::fabs(value);
    return v;
  };
  const std::vector<float> x_size = magnitudes(x), g_size = magnitudes(g);
  std::vector<float> dw_size(weight.size());
  depthwise_backward(isa, train, s, g_size.data(), {}, x_size.data(), identity, nullptr, weight.data(), nullptr,
                     dw_size.data(), nullptr, threads);
  const double bound = 2 * 2 * std::numeric_limits<float>::epsilon() * std::sqrt(static_cast<double>(out) / t.c);
  for (size_t i = 0; i < dw.size(); ++i) CHECK(std::fabs(dw[i] - dw_gathered[i]) <= bound * dw_size[i]);
  const bool whole_lines = t.c % 16 == 0;
  if (l3) {
    CHECK(streamed == 0);
  } else if (whole_lines) {
    CHECK(streamed == rows_forward + rows_back / 3 * 2);  // the weights alone write no tensor
  }
}

}  // namespace

int main() {
  for (const Isa& isa : isas()) {
    if (!isa.supported) continue;
    under = isa.table;
    train_under = isa.train;
    IsaTable counted = *isa.table;
    counted.depthwise_pixels = &forward_row;
    TrainTable counted_train = *isa.train;
    counted_train.depthwise_pixels_back = &back_row;
    auto run = [&](const Case& t, size_t l3) { check(counted, counted_train, t, l3); };
    const size_t large = size_t{1} << 30;
    for (int width = 1; width <= 18; ++width) {
      for (int stride : {1, 2}) {
        for (int height : {1, 2, 3, 6}) run({2, 32, height, width, stride, 1, 1}, large);
        run({1, 35, 5, width, stride, 1, 1}, large);
        run({1, 48, 4, width, stride, 1, 1}, 0);
      }
    }
    // Pixels some powers of two apart; more of them than one ring holds.
    for (int channels : {512, 1024, 1536}) {
      for (int stride : {1, 2}) run({1, channels, 9, 7, stride, 1, 1}, large);
    }
    // A row wider than the rows in flight have room for: channels in groups.
    run({1, 64, 3, 1100, 1, 1, 1, true, true}, large);
    run({1, 72, 3, 1101, 2, 1, 1, true, true}, 0);
    // Other paddings: gradients go through gathered rows, or see rows that are all padding.
    run({1, 32, 6, 6, 1, 1, 0, false}, large);
    run({1, 32, 6, 7, 1, 0, 1}, large);
    run({1, 32, 6, 7, 1, 2, 1}, large);
    // Many images and long ones: bands.
    run({17, 16, 7, 7, 1, 1, 1}, large);
    run({4, 64, 28, 28, 1, 1, 1}, large);
    run({1, 16, 40, 5, 2, 1, 1}, large);
  }
  return test::report();
}
