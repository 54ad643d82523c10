#include "dense.h"

namespace mobilenet_ext {

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

}  // namespace mobilenet_ext
