// Pointwise convolutions of training: rows of pixels times a small matrix.
#pragma once
#include <cstdint>

#include "kernel_table.h"
#include "train_table.h"
#include "workers.h"

namespace mobilenet_ext {

// out [pixels][n] = a [pixels][k] * b, where b is [k][n], or with `transposed` [n][k]. With `scale` the product is of
// clamp(a * scale + shift, lo, hi), one value per column of a. Each result is one chain of FMAs over k.
struct Product {
  const float *a, *b;
  float* out;
  int64_t pixels;
  int k, n;
  bool transposed;
  const float *scale, *shift;
  float lo, hi;
};
void run_product(const IsaTable& isa, const TrainTable& train, const Product& product, const Threads& threads);

// out [wide][narrow] (+)= wide^T (narrow - center) over all pixels: the gradient of a pointwise weight. The sum goes
// over blocks of 128 pixels, each one chain of FMAs, in their order.
struct WeightProduct {
  const float *wide, *narrow;  // [pixels][wide_columns], [pixels][narrow_columns]
  const float* center;         // null, or [narrow_columns]
  float* out;
  int64_t pixels;
  int wide_columns, narrow_columns;
  bool accumulate;
};
void run_weight_product(const TrainTable& train, const WeightProduct& product, const Threads& threads);

}  // namespace mobilenet_ext
