// Advanced SIMD kernels (AArch64). Tiles: 6 x 16 keeps 24 accumulators, 4 columns and 1 broadcast in 32 registers.
#include "isa_macros.h"
#include "kernel_table.h"
#include "simd_neon.h"

using namespace mobilenet_ext;
namespace {
constexpr int kDepthwiseColumns = 8;
constexpr int kRegisters = 32;
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
    {16, 4, 6, &gemm_panel<Full, 4, 6>, "6x16"},
    {12, 4, 8, &gemm_panel<Full, 3, 8>, "8x12"},
    {8, 4, 12, &gemm_panel<Full, 2, 12>, "12x8"},
    {4, 4, 14, &gemm_panel<Full, 1, 14>, "14x4"},
};
}
extern const IsaTable mobilenet_ext_isa_neon;
const IsaTable mobilenet_ext_isa_neon = isa_table("neon", kinds, 1, &gemv_panels<Full, 4, 4>);
