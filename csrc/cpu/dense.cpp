#include "dense.h"

#include <algorithm>
#include <limits>

namespace mobilenet_ext {
namespace {

constexpr int kExactChunk = 64;  // terms of one fp32 sum; a constant, since it decides bits
constexpr int kTogether = 4;     // panels of the main kind that one gemv call takes

// Terms [begin, end) of a stage's sums for neighbouring panels, plus `bias`.
template <class Activation>
void run_terms(const PackedChain& chain, const PackedStage& stage, const float* a, const float* bias, float* c,
               Range panels, Range terms, Activation&& set_activation) {
  const Panel& first = stage.panels[panels.begin];
  const ptrdiff_t skip = static_cast<ptrdiff_t>(terms.begin) * first.kind->width;
  if (panels.end - panels.begin > 1 || first.kind == &chain.header.isa->kinds[0]) {
    GemvArgs v{};
    v.a = a + terms.begin;
    v.b = chain.at(first.weights) + skip;
    v.b_panel = panels.end - panels.begin > 1
                    ? static_cast<ptrdiff_t>(stage.panels[panels.begin + 1].weights - first.weights)
                    : 0;
    v.bias = bias;
    v.c = c;
    v.k = terms.end - terms.begin;
    v.panels = panels.end - panels.begin;
    v.n_valid = first.kind->width;
    set_activation(v);
    return chain.header.isa->gemv(v);
  }
  const ptrdiff_t segment = 0;
  GemmArgs g{};
  g.a = a + terms.begin;
  g.segments = &segment;
  g.segment_count = terms.end > terms.begin ? 1 : 0;
  g.segment_length = terms.end - terms.begin;
  g.b = chain.at(first.weights) + skip;
  g.bias = bias;
  g.c = c;
  g.c_vector = first.kind->vector;
  g.m = 1;
  g.n_valid = first.kind->width;
  set_activation(g);
  first.kind->gemm(g);
}

}  // namespace

void run_dense(const PackedChain& chain, const PackedStage& stage, const float* a, int m, ptrdiff_t a_row, float* c,
               ptrdiff_t c_row, Range panels) {
  const IsaTable& isa = *chain.header.isa;
  int p = panels.begin;
  if (m == 1) {
    // One row: all panels of the main kind in one call, several chains at a time.
    int end = p;
    while (end < panels.end && stage.panels[end].kind == &isa.kinds[0]) ++end;
    if (end > p) {
      GemvArgs v{};
      v.a = a;
      v.b = chain.at(stage.panels[p].weights);
      v.b_panel = end > p + 1 ? static_cast<ptrdiff_t>(stage.panels[p + 1].weights - stage.panels[p].weights) : 0;
      v.bias = chain.at(stage.bias) + stage.panels[p].first;
      v.c = c + stage.panels[p].first;
      v.k = stage.desc.in;
      v.panels = end - p;
      v.n_valid = stage.panels[end - 1].valid;
      stage.set_activation(v);
      isa.gemv(v);
      p = end;
    }
  }
  const ptrdiff_t segment = 0;
  for (; p < panels.end; ++p) {
    const Panel& panel = stage.panels[p];
    GemmArgs g{};
    g.a = a;
    g.a_pixel = a_row;
    g.segments = &segment;
    g.segment_count = 1;
    g.segment_length = stage.desc.in;
    g.b = chain.at(panel.weights);
    g.bias = chain.at(stage.bias) + panel.first;
    g.c = c + panel.first;
    g.c_pixel = c_row;
    g.c_vector = panel.kind->vector;
    g.m = m;
    g.n_valid = panel.valid;
    stage.set_activation(g);
    panel.kind->gemm(g);
  }
}

void run_dense_exact(const PackedChain& chain, const PackedStage& stage, const float* a, float* c, Range panels) {
  const PanelKind* main = &chain.header.isa->kinds[0];
  constexpr int kMost = 256;  // columns of kTogether panels, or of one panel of any kind
  const float zero[kMost] = {}, infinity = std::numeric_limits<float>::infinity();
  for (int p = panels.begin; p < panels.end;) {
    int end = p + 1;
    while (end < panels.end && end < p + kTogether && stage.panels[p].kind == main && stage.panels[end].kind == main)
      ++end;
    const Range group{p, end};
    const int first = stage.panels[p].first, columns = (end - p) * stage.panels[p].kind->width,
              valid = stage.panels[end - 1].first + stage.panels[end - 1].valid - first;
    double totals[kMost];
    float part[kMost];
    const float* bias = chain.at(stage.bias) + first;
    for (int n = 0; n < columns; ++n) totals[n] = static_cast<double>(bias[n]);
    for (int k = 0; k < stage.desc.in; k += kExactChunk) {
      run_terms(chain, stage, a, zero, part, group, {k, std::min(k + kExactChunk, stage.desc.in)}, [&](auto& args) {
        args.lo = -infinity;
        args.hi = infinity;
      });
      for (int n = 0; n < columns; ++n) totals[n] += static_cast<double>(part[n]);
    }
    for (int n = 0; n < columns; ++n) part[n] = static_cast<float>(totals[n]);
    float result[kMost];
    run_terms(chain, stage, a, part, result, group, {0, 0}, [&](auto& args) { stage.set_activation(args); });
    std::copy_n(result, valid, c + first);
    p = end;
  }
}

}  // namespace mobilenet_ext
