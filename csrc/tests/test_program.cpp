// The decoder: what spec.py writes is read back, and a malformed program is refused in a sentence.
#include "check.h"
#include "cpu/program.h"

using namespace mobilenet_ext;

namespace {

// One inverted residual 8 -> 48 -> 8, then a pool and a linear layer.
std::vector<int64_t> good() {
  return {2, 0,  3,                                                          //
          1, 1,  3,                                                          // block, residual, three stages
          0, 8,  48, 1, 1, 1,  1, 1, 1, 0, 0, 0, 0, 0, 2, 61 + 64,           //
          1, 48, 48, 3, 3, 1,  1, 1, 1, 1, 0, 0, 0, 0, 2, 61,                //
          4, 48, 8,  1, 1, 1,  1, 1, 1, 0, 0, 0, 0, 0, 0, 61,                //
          1, 2,  1,  0, 8, 16, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0,       0, 2, 1,  // block, pool
          2, 16, 10, 0, 3};
}
const std::vector<double> eps = {1e-5, 1e-5, 1e-5, 0, 0};

}  // namespace

int main() {
  const ChainDesc chain = decode(good(), eps);
  CHECK(chain.items.size() == 3 && chain.items[0].stages.size() == 3 && chain.items[0].residual &&
        chain.items[1].pool && chain.items[2].linear);
  CHECK(chain.source_count() == 6 + 5 + 5 + 1 + 2);
  CHECK(chain.items[0].stages[1].geometry.same && chain.items[0].stages[1].activation == Activation::kRelu6);
  CHECK(chain.flat_output());
  auto with = [](size_t at, int64_t value) {
    auto p = good();
    p[at] = value;
    return p;
  };
  CHECK_THROWS(decode(with(0, 1), eps), "version is 1");
  CHECK_THROWS(decode(with(8, 47), eps), "do not fit together");
  CHECK_THROWS(decode(with(9, 0), eps), "kernel height is 0");
  CHECK_THROWS(decode(with(20, 8), eps), "activation is 8");
  CHECK_THROWS(decode(with(21, 17), eps), "lacks its weight or one of its BN statistics");
  CHECK_THROWS(decode({2, 0, 1, 1, 0, 1, 0, 8}, eps), "ends before");
  auto longer = good();
  longer.push_back(0);
  CHECK_THROWS(decode(longer, eps), "after its last item");
  CHECK_THROWS(decode(good(), {1e-5}), "fewer constants");
  CHECK_THROWS(decode(good(), {1, 1, 1, 1, 1, 1}), "more constants");
  CHECK_THROWS(decode({2, 0, 1, 2, 16, 10, 0, 3}, {0}), "must follow a pool");

  // Squeeze-and-excitation lies between depthwise and project, and LeakyReLU brings its slope.
  std::vector<int64_t> squeezed = {2, 0, 1, 1, 0, 4};
  const std::vector<std::vector<int64_t>> stages = {{1, 8, 8, 3, 3, 1, 1, 1, 1, 1, 0, 0, 0, 0, 6, 1},
                                                    {2, 8, 2, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 3},
                                                    {3, 2, 8, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 7, 3},
                                                    {4, 8, 4, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1}};
  for (const auto& s : stages) squeezed.insert(squeezed.end(), s.begin(), s.end());
  const ChainDesc se = decode(squeezed, {0, 0.2, 0, 0, 0});
  CHECK(se.items[0].squeezed() && se.items[0].stages[0].slope == 0.2 && se.items[0].out() == 4);
  CHECK_THROWS(decode(squeezed, {0, 0.2, 0, 0}), "fewer constants");
  auto broken = squeezed;
  broken[5] = 3;
  broken.resize(6 + 3 * 16);
  CHECK_THROWS(decode(broken, {0, 0.2, 0, 0}), "squeeze-and-excitation is two 1x1 layers");
  CHECK_THROWS(decode({2, 0, 1, 1, 4, 1, 0, 8, 8, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1}, {0}), "shortcut over two");

  const ChainDesc mean = decode({2, 0, 1, 3, 40}, {});
  CHECK(mean.items[0].mean && mean.flat_output() && mean.source_count() == 0);

  // "same" puts the odd pixel at bottom and right.
  Geometry g;
  g.kh = g.kw = 3;
  g.sh = g.sw = 2;
  g.same = true;
  const Placed even = place(g, 224, 7);
  CHECK(even.out_h == 112 && even.top == 0 && even.out_w == 4 && even.left == 1);
  return test::report();
}
