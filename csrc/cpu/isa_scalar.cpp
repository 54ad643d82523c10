// Scalar kernels: the same loops with one lane, for tests and for reading.
#include "isa_macros.h"
#include "kernel_table.h"
#include "simd_scalar.h"

using namespace mobilenet_ext;
namespace {
constexpr int kDepthwiseColumns = 4;
constexpr int kRegisters = 16;
}  // namespace
#include "activation.inl"
#include "blocks.inl"
#include "depthwise.inl"
#include "depthwise_pixels.inl"
#include "gemm.inl"
#include "panels.inl"
#include "rows.inl"
// Last: it names what the others define.
#include "isa_table.inl"

namespace {
const PanelKind kinds[] = {
    {4, 1, 4, &gemm_panel<Full, 4, 4>, "4x4"},
    {1, 1, 4, &gemm_panel<Full, 1, 4>, "4x1"},
};
}
extern const IsaTable mobilenet_ext_isa_scalar;
const IsaTable mobilenet_ext_isa_scalar = isa_table("scalar", kinds, -1, &gemv_panels<Full, 4, 2>);
