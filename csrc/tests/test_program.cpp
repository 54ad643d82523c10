// The decoder: what spec.py writes is read back, and a malformed program is refused in a sentence.
#include "check.h"
#include "cpu/program.h"

using namespace mobilenet_ext;

namespace {

// One inverted residual 8 -> 48 -> 8, then a pool and a linear layer.
std::vector<int64_t> good() {
  return {1, 0,  3,                                                          //
          1, 1,  3,                                                          // block, residual, three stages
          0, 8,  48, 1, 1, 1,  1, 1, 1, 0, 0, 0, 0, 0, 2, 61 + 64,           //
          1, 48, 48, 3, 3, 1,  1, 1, 1, 1, 0, 0, 0, 0, 2, 61,                //
          2, 48, 8,  1, 1, 1,  1, 1, 1, 0, 0, 0, 0, 0, 0, 61,                //
          1, 2,  1,  0, 8, 16, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0,       0, 2, 1,  // block, pool
          2, 16, 10, 3};
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
  CHECK_THROWS(decode(with(0, 2), eps), "version is 2");
  CHECK_THROWS(decode(with(8, 47), eps), "do not fit together");
  CHECK_THROWS(decode(with(9, 0), eps), "kernel height is 0");
  CHECK_THROWS(decode(with(20, 7), eps), "activation is 7");
  CHECK_THROWS(decode(with(21, 17), eps), "lacks its weight or one of its BN statistics");
  CHECK_THROWS(decode({1, 0, 1, 1, 0, 1, 0, 8}, eps), "ends before");
  auto longer = good();
  longer.push_back(0);
  CHECK_THROWS(decode(longer, eps), "after its last item");
  CHECK_THROWS(decode(good(), {1e-5}), "fewer constants");
  CHECK_THROWS(decode(good(), {1, 1, 1, 1, 1, 1}), "more constants");
  CHECK_THROWS(decode({1, 0, 1, 2, 16, 10, 3}, {0}), "must follow a pool");

  // "same" puts the odd pixel at bottom and right.
  Geometry g;
  g.kh = g.kw = 3;
  g.sh = g.sw = 2;
  g.same = true;
  const Placed even = place(g, 224, 7);
  CHECK(even.out_h == 112 && even.top == 0 && even.out_w == 4 && even.left == 1);
  return test::report();
}
