// Gradients of a depthwise convolution's weights straight from channels_last memory: the cases of depthwise_pixels.inl
// with three kernel columns. Sums in the order of weight_gradient.inl. Included by the per-ISA files after a simd_*.h.
#include "pixels.inl"

namespace {

// Of four neighbouring columns of the gradient the products with what each tap saw, in the order of the columns.
template <int KW, int S, int U, int L, int R>
ALWAYS_INLINE void pixel_products(Full::T (&acc)[KW], const Full::T (&g)[U], const float* x, ptrdiff_t pixel) {
  constexpr int kInputs = (U - 1) * S + KW;
  // Inputs in their order, so that each is loaded once: a tap meets its columns in their order all the same.
  UNROLL for (int i = L; i < kInputs - R; ++i) {
    const Full::T value = Full::load(x + i * pixel);
    UNROLL for (int kx = 0; kx < KW; ++kx) {
      if (i >= kx && (i - kx) % S == 0 && (i - kx) / S < U) Full::accumulate(acc[kx], g[(i - kx) / S], value);
    }
  }
}

template <int KW, int S, int U, int L, int R>
NOINLINE void pixel_gradient_tile(const PixelGradientArgs& d, int column) {
  const ptrdiff_t pixel = d.pixel, sum_block = d.sum_block;
  const float* gradient = d.g + column * pixel;
  float* sums = d.sums;
  ptrdiff_t at = column * S * pixel;
  const float* ahead = d.ahead ? d.ahead + column * S * pixel : gradient;
  const ptrdiff_t ahead_step = d.ahead ? U * S * Full::W : 0, ahead_other = d.ahead_other;
  for (int block = d.channels / Full::W; block > 0; --block) {
    UNROLL for (int i = 0; i < U * S * Full::W; i += 16) {
      expect_load(ahead + i);
      if (S > 1) expect_load(ahead + ahead_other + i);
    }
    ahead += ahead_step;
    Full::T g[U];
    UNROLL for (int u = 0; u < U; ++u) g[u] = Full::load(gradient + u * pixel);
    float* row_sums = sums;
    for (int r = 0; r < d.count; ++r, row_sums += KW * Full::W) {
      const float* row = d.rows[r] + at;
      KEEP_IN_REGISTER(row);
      Full::T acc[KW];
      UNROLL for (int kx = 0; kx < KW; ++kx) acc[kx] = Full::load(row_sums + kx * Full::W);
      pixel_products<KW, S, U, L, R>(acc, g, row, pixel);
      UNROLL for (int kx = 0; kx < KW; ++kx) Full::store(row_sums + kx * Full::W, acc[kx]);
    }
    at += Full::W;
    gradient += Full::W;
    sums += sum_block;
  }
}

NOINLINE void pixel_gradient_rest(const PixelGradientArgs& d) {
  const int first = d.channels / Full::W * Full::W, valid = d.channels - first, last = (d.width - 1) * d.stride + d.kw;
  float* sums = d.sums + first / Full::W * d.sum_block;
  for (int column = 0; column < d.width; ++column) {
    const Full::T g = Full::load_partial(d.g + column * d.pixel + first, valid);
    for (int r = 0; r < d.count; ++r) {
      for (int kx = 0; kx < d.kw; ++kx) {
        const int at = column * d.stride + kx;
        if (at < d.left || at >= last - d.right) continue;
        float* sum = sums + (r * d.kw + kx) * Full::W;
        const Full::T x = Full::load_partial(d.rows[r] + at * d.pixel + first, valid);
        Full::store(sum, Full::fma(g, x, Full::load(sum)));
      }
    }
  }
}

template <int KW, int S, int U>
constexpr void fill_tiles(PixelTiles<PixelGradientArgs>& t) {
  if constexpr (U > 0) {
    t.of[U][0][0] = &pixel_gradient_tile<KW, S, U, 0, 0>;
    t.of[U][0][1] = &pixel_gradient_tile<KW, S, U, 0, 1>;
    t.of[U][1][0] = &pixel_gradient_tile<KW, S, U, 1, 0>;
    t.of[U][1][1] = &pixel_gradient_tile<KW, S, U, 1, 1>;
    fill_tiles<KW, S, U - 1>(t);
  }
}
template <int KW, int S>
constexpr PixelTiles<PixelGradientArgs> gradient_tiles() {
  PixelTiles<PixelGradientArgs> t{};
  fill_tiles<KW, S, kPixelColumns>(t);
  return t;
}

void weight_gradient_pixels(const PixelGradientArgs& d) {
  static constexpr PixelTiles<PixelGradientArgs> of_1 = gradient_tiles<3, 1>(), of_2 = gradient_tiles<3, 2>();
  pixel_split(d, d.stride == 1 ? of_1 : of_2);
  if (d.channels % Full::W) pixel_gradient_rest(d);
}

}  // namespace
