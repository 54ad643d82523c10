// Scalar kernels of training: the same loops with one lane, for tests and for reading.
#include "isa_macros.h"
#include "simd_scalar.h"
#include "train_table.h"

using namespace mobilenet_ext;
namespace {
constexpr int kWeightGradientTaps = 9;
constexpr int kRegisters = 16;
}  // namespace
#include "depthwise_pixels_back.inl"
#include "passes.inl"
#include "weight_gradient.inl"
#include "weight_product.inl"

extern const TrainTable mobilenet_ext_train_scalar;
const TrainTable mobilenet_ext_train_scalar = {
    "scalar", Full::W,          &pass_apply,          &pass_moments,          &pass_reduce,   &pass_gradient,
    &gather,  &gather_gradient, &weight_gradient_row, &depthwise_pixels_back, &weight_product};
