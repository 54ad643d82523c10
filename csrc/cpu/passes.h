// Passes over all pixels of a channels_last tensor: BatchNorm, activation and their backward.
#pragma once
#include <cstdint>

#include "train_table.h"
#include "workers.h"

namespace mobilenet_ext {

// The rows of a channels_last tensor, and what is done to them; pointers as in PassArgs, sums left out.
struct Pass {
  int64_t pixels;
  int channels;
  const float *g = nullptr, *x = nullptr, *r = nullptr;
  float* y = nullptr;
  const float *scale = nullptr, *shift = nullptr;
  float lo = 0, hi = 0;
  const float *a = nullptr, *b = nullptr, *c = nullptr, *center = nullptr;
};

// y = clamp(x * scale + shift, lo, hi) (+ r)
void run_apply(const TrainTable& isa, const Pass& pass, const Threads& threads);
// y = a * g' + b * (x - center) + c
void run_gradient(const TrainTable& isa, const Pass& pass, const Threads& threads);
// Mean and population variance of every channel, [channels] each; zeros without pixels.
void run_moments(const TrainTable& isa, const Pass& pass, double* mean, double* var, const Threads& threads);
// sums[0][c] = sum of g', sums[1][c] = sum of g' * (x - center)
void run_reduce(const TrainTable& isa, const Pass& pass, double* sums, const Threads& threads);

}  // namespace mobilenet_ext
