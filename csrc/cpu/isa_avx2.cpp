// AVX2 + FMA kernels. Tiles: 6 x 16 (12 accumulators, 2 columns, 1 broadcast of 16 registers) and 4 x 24.
#include "isa_macros.h"
#include "kernel_table.h"
#include "simd_avx2.h"

using namespace mobilenet_ext;
namespace {
constexpr int kDepthwiseColumns = 8;
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
    {16, 8, 6, &gemm_panel<Full, 2, 6>, "6x16"},
    {24, 8, 4, &gemm_panel<Full, 3, 4>, "4x24"},
    {8, 8, 12, &gemm_panel<Full, 1, 12>, "12x8"},
};
}
extern const IsaTable mobilenet_ext_isa_avx2;
const IsaTable mobilenet_ext_isa_avx2 = isa_table("avx2", kinds, 1, &gemv_panels<Full, 2, 4>);
