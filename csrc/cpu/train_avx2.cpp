// AVX2 kernels of training. Ten taps (two rows of a 5x5 kernel), a gradient and an input in 16 registers.
#include "isa_macros.h"
#include "simd_avx2.h"
#include "train_table.h"

using namespace mobilenet_ext;
namespace {
constexpr int kWeightGradientTaps = 10;
constexpr int kRegisters = 16;
}  // namespace
#include "depthwise_pixels_back.inl"
#include "passes.inl"
#include "weight_gradient.inl"
#include "weight_product.inl"

extern const TrainTable mobilenet_ext_train_avx2;
const TrainTable mobilenet_ext_train_avx2 = {
    "avx2",  Full::W,          &pass_apply,          &pass_moments,          &pass_reduce,   &pass_gradient,
    &gather, &gather_gradient, &weight_gradient_row, &depthwise_pixels_back, &weight_product};
