// SiLU, sigmoid and the other activations over all magnitudes: the stated error, the same bits on every instruction
// set, NaN and infinities as PyTorch has them.
#include <cmath>
#include <cstring>
#include <limits>

#include "check.h"
#include "cpu/registry.h"
#include "reference.h"

using namespace test;

namespace {

// The activation of `x` through a 1x1 convolution of one channel with weight 1.
std::vector<float> run(const IsaTable& isa, Activation a, const std::vector<float>& x) {
  const PanelKind& kind = isa.kinds[0];
  std::vector<float> b(kind.width, 0.0f), bias(kind.width, 0.0f), y(x.size());
  b[0] = 1;
  const ptrdiff_t segment = 0;
  GemmArgs g{};
  g.a = x.data();
  g.a_pixel = 1;
  g.segments = &segment;
  g.segment_count = g.segment_length = 1;
  g.b = b.data();
  g.bias = bias.data();
  g.c = y.data();
  g.c_pixel = 1;
  g.c_vector = kind.vector;
  g.m = static_cast<int>(x.size());
  g.n_valid = 1;
  g.lo = -std::numeric_limits<float>::infinity();
  g.hi = std::numeric_limits<float>::infinity();
  g.activation = static_cast<int>(a);
  g.slope = 0.1f;
  kind.gemm(g);
  return y;
}

}  // namespace

int main() {
  std::vector<float> x;
  // Every 4999th float, both signs.
  for (uint32_t bits = 0x00800000; bits < 0x7f800000; bits += 4999) {
    float v;
    std::memcpy(&v, &bits, sizeof v);
    x.push_back(v);
    x.push_back(-v);
  }
  for (int i = -100000; i <= 100000; ++i) x.push_back(static_cast<float>(i) * 1e-3f);
  const float infinity = std::numeric_limits<float>::infinity();
  const size_t special = x.size();
  for (float v : {infinity, -infinity, std::numeric_limits<float>::quiet_NaN(), 0.0f, -0.0f}) x.push_back(v);
  for (int code = 3; code <= kLastActivation; ++code) {
    const auto a = static_cast<Activation>(code);
    StageDesc s;
    s.activation = a;
    s.slope = 0.1f;
    std::vector<float> first;
    for (const Isa& isa : isas()) {
      if (!isa.supported) continue;
      const std::vector<float> y = run(*isa.table, a, x);
      if (first.empty()) first = y;
      CHECK_MESSAGE(std::memcmp(first.data(), y.data(), (special) * sizeof(float)) == 0,
                    "activation " + std::to_string(code) + " on " + isa.table->name + " differs in a bit");
      double worst = 0;
      for (size_t i = 0; i < special; ++i) {
        const double exact = activate(s, x[i]);
        // Two units of the last place, and what lies at the edge of the denormals.
        const double error = std::fabs(y[i] - exact) - 1e-36;
        if (error > 0) worst = std::max(worst, error / std::fabs(exact) / (2 * kEps));
      }
      std::printf("activation %d on %s: %.2f of 2^-23\n", code, isa.table->name, worst);
      CHECK_MESSAGE(worst <= 2.0, "activation " + std::to_string(code) + ": relative error " + std::to_string(worst));
      const bool swish = a == Activation::kSilu || a == Activation::kHardswish, leaky = a == Activation::kLeakyRelu;
      const bool gate = !swish && !leaky;
      CHECK(gate ? y[special] == 1.0f : y[special] == infinity);
      CHECK(gate ? y[special + 1] == 0.0f : leaky ? y[special + 1] == -infinity : std::isnan(y[special + 1]));
      CHECK(std::isnan(y[special + 2]));
    }
  }
  return report();
}
