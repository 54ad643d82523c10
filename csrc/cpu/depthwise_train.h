// Depthwise convolution for training on channels_last tensors: forward, and backward to input, weight and the sums that
// BatchNorm's backward needs, with BatchNorm and activation of the neighbouring stages applied as rows are read.
#pragma once
#include <cstdint>

#include "kernel_table.h"
#include "train_table.h"
#include "workers.h"

namespace mobilenet_ext {

struct DepthwiseShape {
  int n, h, w, channels;
  int kh, kw, sh, sw, dh, dw;
  int top, left;  // padding; that at bottom and right follows from the output size
  int oh, ow;
};

// clamp(x * scale + shift, lo, hi) as rows are read; scale null: as they are.
struct Prologue {
  const float *scale = nullptr, *shift = nullptr;
  float lo = 0, hi = 0;
};

// With `y` (the convolution's own result before its BatchNorm) the gradient that arrives, `g`, becomes
// a * g' + b * (y - center) + c as rows are read, where g' is g masked by `act` of y.
struct GradientPrologue {
  const float* y = nullptr;
  Prologue act;
  const float *a = nullptr, *b = nullptr, *c = nullptr, *center = nullptr;
};

// y [n][oh][ow][channels] = conv(prologue(x)) (+ bias). With `mean` and `var` (double [channels]) also the moments of
// y.
void depthwise_forward(const IsaTable& isa, const TrainTable& train, const DepthwiseShape& shape, const float* x,
                       const Prologue& prologue, const float* weight, const float* bias, float* y, double* mean,
                       double* var, const Threads& threads);

// weight_grad [channels][kh][kw] unless null. dx [n][h][w][channels] unless null; with a prologue on x the gradient
// with respect to x's activated value is masked by it, and sums (double [2][channels]) are those of the masked gradient
// and of its product with (x - x_center).
void depthwise_backward(const IsaTable& isa, const TrainTable& train, const DepthwiseShape& shape, const float* g,
                        const GradientPrologue& gradient, const float* x, const Prologue& prologue,
                        const float* x_center, const float* weight, float* dx, float* weight_grad, double* sums,
                        const Threads& threads);

}  // namespace mobilenet_ext
