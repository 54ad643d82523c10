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

// One row whose result scales a whole image, so that its errors do not average out: chunks of 64 terms in fp32, their
// sums in double. Another order of sums than run_dense, but likewise a function of the stage alone.
void run_dense_exact(const PackedChain& chain, const PackedStage& stage, const float* a, float* c, Range panels);

}  // namespace mobilenet_ext
