// AVX-512 kernels of training. 25 taps of a 5x5 kernel, a gradient and an input in 32 registers.
#if defined(__GNUC__) && !defined(__clang__)
// GCC headers read a deliberately undefined register.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "isa_macros.h"
#include "simd_avx512.h"
#include "train_table.h"

using namespace mobilenet_ext;
namespace {
constexpr int kWeightGradientTaps = 25;
constexpr int kRegisters = 32;
}  // namespace
#include "depthwise_pixels_back.inl"
#include "passes.inl"
#include "weight_gradient.inl"
#include "weight_product.inl"

extern const TrainTable mobilenet_ext_train_avx512;
const TrainTable mobilenet_ext_train_avx512 = {
    "avx512", Full::W,          &pass_apply,          &pass_moments,          &pass_reduce,   &pass_gradient,
    &gather,  &gather_gradient, &weight_gradient_row, &depthwise_pixels_back, &weight_product};
