// Advanced SIMD kernels of training (AArch64). 25 taps of a 5x5 kernel, a gradient and an input in 32 registers.
#include "isa_macros.h"
#include "simd_neon.h"
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

extern const TrainTable mobilenet_ext_train_neon;
const TrainTable mobilenet_ext_train_neon = {
    "neon",  Full::W,          &pass_apply,          &pass_moments,          &pass_reduce,   &pass_gradient,
    &gather, &gather_gradient, &weight_gradient_row, &depthwise_pixels_back, &weight_product};
