// Whole inverted residuals against double precision: dtypes, strides, tiles, split hidden channels, TF32.
#include "cuda_cases.h"

namespace test {
namespace {

constexpr size_t kShared = 164 * 1024;

struct Case {
  int n, h, w, cin, hidden, cout, stride;
  bool residual = false;
  int ctas = 1;  // above one, so many that hidden channels are split
  size_t limit = kShared;
  bool tf32 = false;
};

// Returns the result, so that two ways of making it can be compared.
template <class T>
std::vector<T> test_block(const Case& c) {
  const auto [n, h, w, cin, hidden, cout, stride, residual, ctas, limit, tf32] = c;
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
          tf32};
  const BlockPlan plan = plan_block(b, kDtype<T>, limit, ctas);
  const std::string what = "block " + std::to_string(h) + "x" + std::to_string(w) + " " + std::to_string(cin) + "->" +
                           std::to_string(hidden) + "->" + std::to_string(cout) + " tile " +
                           std::to_string(plan.tile_h) + "x" + std::to_string(plan.tile_w) + " splits " +
                           std::to_string(plan.splits) + " of " + std::to_string(sizeof(T)) + " bytes" +
                           (tf32 ? " in TF32" : "");
  CHECK_MESSAGE(plan.tile_h > 0 && plan.shared <= limit, what);
  CHECK_MESSAGE((plan.splits > 1) == (ctas > 1), what);  // so that both ways are run
  Buffer<float> partial("partial", plan.splits > 1 ? plan.splits * out : 1, 0);
  b.partial = partial.data.data();
  in_every_order(y, what, [&] { return inverted_residual(b, plan, kDtype<T>, nullptr); });

  auto rounded = [](double v) { return static_cast<double>(to_float(from_float<T>(static_cast<float>(v)))); };
  const double eps = tf32 ? kEps<Half> : kEps<T>;  // TF32 has the fraction of fp16
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
          4 * eps * m * ps[o] / std::sqrt(hidden) + eps * std::fabs(sum[p * cout + o]) + 4e-6 * (m * ps[o] + 1);
    }
  }
  double worst = 0;
  for (size_t i = 0; i < out; ++i) {
    const double error = std::fabs(y[i] - sum[i]) / bound[i];
    worst = error <= worst ? worst : error;
  }
  CHECK_MESSAGE(worst <= 1, what + " off by " + std::to_string(worst) + " times the bound");
  return y.data;
}

template <class T>
void all_shapes() {
  test_block<T>({1, 9, 11, 8, 40, 8, 1, true});
  test_block<T>({2, 15, 7, 24, 72, 32, 2});
  test_block<T>({1, 7, 7, 40, 480, 48, 1, false, 132});
  test_block<T>({1, 17, 18, 16, 96, 24, 2, false, 1, 48 * 1024});
  test_block<T>({1, 1, 1, 16, 32, 8, 1});
  test_block<T>({1, 7, 7, 40, 64, 320, 1});  // as many sums per warp as there may be
  test_block<T>({1, 13, 14, 16, 32, 320, 2});
}

// A check is made once per class of batches: the code that it checks has to be that of all of them.
void test_one_plan_per_class() {
  for (const int64_t most : {1, 2, 4, 8, 64, 256}) {
    Block b{};
    b.h = b.w = b.oh = b.ow = 7;
    b.cin = b.cout = 160;
    b.hidden = 960;
    b.stride = b.top = b.left = 1;
    b.n = most;
    const BlockPlan expected = plan_block(b, Dtype::kHalf, kShared, 132);
    for (b.n = most / 2 + 1; b.n <= most; ++b.n) {
      const BlockPlan plan = plan_block(b, Dtype::kHalf, kShared, 132);
      CHECK(plan.tile_h == expected.tile_h && plan.tile_w == expected.tile_w && plan.splits == expected.splits);
      const Depthwise d{b.n, 56, 56, 24, 56, 56, 3, 1, 1, 1}, last{most, 56, 56, 24, 56, 56, 3, 1, 1, 1};
      CHECK(weight_chunks(d, Dtype::kHalf) == weight_chunks(last, Dtype::kHalf));
    }
  }
}

}  // namespace

void block_cases() {
  test_one_plan_per_class();
  all_shapes<float>();
  all_shapes<Half>();
  all_shapes<BFloat16>();
  for (Case c : {Case{1, 9, 11, 8, 40, 8, 1, true}, Case{2, 15, 7, 24, 72, 32, 2}, Case{1, 7, 7, 40, 64, 320, 1},
                 Case{1, 13, 14, 16, 32, 320, 2}}) {
    rng.seed(11);
    const std::vector<float> exact = test_block<float>(c);
    c.tf32 = true;
    rng.seed(11);
    CHECK(test_block<float>(c) != exact);  // the operands are rounded, so the flag arrives
  }
}

}  // namespace test
