// A packed 1x1 stage on contiguous rows: the linear layers and those of squeeze-and-excitation.
#pragma once
#include "pack.h"

namespace mobilenet_ext {

struct Range {
  int begin, end;
};

// c[i] = activation(weights * a[i] + bias) for `m` rows, columns of the given panels only.
void run_dense(const PackedChain& chain, const PackedStage& stage, const float* a, int m, ptrdiff_t a_row, float* c,
               ptrdiff_t c_row, Range panels);

}  // namespace mobilenet_ext
