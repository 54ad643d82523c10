// AVX-512 kernels. Tiles: 14 x 32 keeps 28 accumulators, 2 columns and 1 broadcast in 32 registers; 24 channels go as
// 8 x 3 half vectors, which beats one full and one half by 10 %.
#if defined(__GNUC__) && !defined(__clang__)
// GCC's own AVX-512 headers read a deliberately undefined register.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "isa_macros.h"
#include "kernel_table.h"
#include "simd_avx512.h"

using namespace mobilenet_ext;
namespace {
constexpr int kDepthwiseColumns = 14;
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
    {32, 16, 14, &gemm_panel<Full, 2, 14>, "14x32"}, {48, 16, 8, &gemm_panel<Full, 3, 8>, "8x48"},
    {16, 16, 14, &gemm_panel<Full, 1, 14>, "14x16"}, {24, 8, 8, &gemm_panel<Half, 3, 8>, "8x24"},
    {8, 8, 14, &gemm_panel<Half, 1, 14>, "14x8"},
};
}
extern const IsaTable mobilenet_ext_isa_avx512;
const IsaTable mobilenet_ext_isa_avx512 = isa_table("avx512", kinds, 1, &gemv_panels<Full, 2, 4>);
