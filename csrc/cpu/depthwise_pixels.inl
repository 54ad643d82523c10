// Depthwise rows straight from channels_last memory: U output columns at a time, all channels of them one vector after
// the other, so that memory is walked as it lies. Three kernel columns or fewer, no dilation, at most one column
// outside the image on either side. Sums in the order of depthwise.inl. Included by the per-ISA files after
// depthwise.inl.
#include "pixels.inl"

namespace {

// L and R: of the input columns of these outputs the first or the last is outside the image.
template <int KW, int S, int U, int L, int R>
ALWAYS_INLINE void pixel_taps(Full::T (&acc)[U], const float* w, const float* x, ptrdiff_t pixel) {
  constexpr int kInputs = (U - 1) * S + KW;
  Full::T weight[KW];
  UNROLL for (int kx = 0; kx < KW; ++kx) weight[kx] = Full::load(w + kx * Full::W);
  UNROLL for (int i = L; i < kInputs - R; ++i) {
    const Full::T value = Full::load(x + i * pixel);
    UNROLL for (int kx = 0; kx < KW; ++kx) {
      if (i >= kx && (i - kx) % S == 0 && (i - kx) / S < U) Full::accumulate(acc[(i - kx) / S], value, weight[kx]);
    }
  }
}

// ROWS 0: as many kernel rows as d.count says.
template <int ROWS, int KW, int S, int U, int L, int R>
NOINLINE void pixel_tile(const PixelRowArgs& d, int column) {
  const ptrdiff_t pixel = d.pixel, out_pixel = d.out_pixel, out_block = d.out_block, weight_block = d.weight_block;
  const float* w = d.weights;
  const float* bias = d.bias;
  float* out = d.out + column * out_pixel;
  ptrdiff_t at = column * S * pixel;
  const float* x[ROWS > 0 ? ROWS : 1];
  UNROLL for (int r = 0; r < ROWS; ++r) x[r] = d.rows[r] + at;
  const float* ahead = d.ahead ? d.ahead + column * S * pixel : w;
  const ptrdiff_t ahead_step = d.ahead ? U * S * Full::W : 0, ahead_other = d.ahead_other;
  for (int block = d.channels / Full::W; block > 0; --block) {
    UNROLL for (int i = 0; i < U * S * Full::W; i += 16) {
      expect_load(ahead + i);
      if (S > 1) expect_load(ahead + ahead_other + i);
    }
    UNROLL for (int u = 0; u < U; ++u) expect_store(out + (U + u) * out_pixel);
    ahead += ahead_step;
    Full::T acc[U];
    UNROLL for (int u = 0; u < U; ++u) acc[u] = Full::zero();
    if constexpr (ROWS > 0) {
      UNROLL for (int r = 0; r < ROWS; ++r) {
        pixel_taps<KW, S, U, L, R>(acc, w + r * KW * Full::W, x[r], pixel);
        x[r] += Full::W;
        KEEP_IN_REGISTER(x[r]);
      }
    } else {
      const float* row_weights = w;
      for (int r = 0; r < d.count; ++r, row_weights += KW * Full::W) {
        const float* row = d.rows[r] + at;
        KEEP_IN_REGISTER(row);
        pixel_taps<KW, S, U, L, R>(acc, row_weights, row, pixel);
      }
      at += Full::W;
    }
    if (bias) {
      finish(acc, {Full::load(bias), Full::broadcast(&d.lo), Full::broadcast(&d.hi)}, d.activation);
      bias += Full::W;
    }
    UNROLL for (int u = 0; u < U; ++u) Full::store(out + u * out_pixel, acc[u]);
    out += out_block;
    w += weight_block;
  }
}

// The channels past the last whole vector, a column at a time.
NOINLINE void pixel_rest(const PixelRowArgs& d) {
  const int first = d.channels / Full::W * Full::W, valid = d.channels - first, last = (d.width - 1) * d.stride + d.kw;
  const float* weights = d.weights + first / Full::W * d.weight_block;
  for (int column = 0; column < d.width; ++column) {
    Full::T acc[1] = {Full::zero()};
    for (int r = 0; r < d.count; ++r) {
      for (int kx = 0; kx < d.kw; ++kx) {
        const int at = column * d.stride + kx;
        if (at < d.left || at >= last - d.right) continue;
        const Full::T x = Full::load_partial(d.rows[r] + at * d.pixel + first, valid);
        acc[0] = Full::fma(x, Full::load(weights + (r * d.kw + kx) * Full::W), acc[0]);
      }
    }
    if (d.bias) {
      finish(acc, {Full::load_partial(d.bias + first, valid), Full::broadcast(&d.lo), Full::broadcast(&d.hi)},
             d.activation);
    }
    Full::store_partial(d.out + column * d.out_pixel + first / Full::W * d.out_block, acc[0], valid);
  }
}

template <int ROWS, int KW, int S, int U>
constexpr void fill_tiles(PixelTiles<PixelRowArgs>& t) {
  if constexpr (U > 0) {
    t.of[U][0][0] = &pixel_tile<ROWS, KW, S, U, 0, 0>;
    t.of[U][0][1] = &pixel_tile<ROWS, KW, S, U, 0, 1>;
    t.of[U][1][0] = &pixel_tile<ROWS, KW, S, U, 1, 0>;
    t.of[U][1][1] = &pixel_tile<ROWS, KW, S, U, 1, 1>;
    fill_tiles<ROWS, KW, S, U - 1>(t);
  }
}
template <int ROWS, int KW, int S>
constexpr PixelTiles<PixelRowArgs> row_tiles() {
  PixelTiles<PixelRowArgs> t{};
  fill_tiles<ROWS, KW, S, kPixelColumns>(t);
  return t;
}
template <int KW, int S>
void pixel_rows(const PixelRowArgs& d) {
  static constexpr PixelTiles<PixelRowArgs> three = row_tiles<3, KW, S>(), any = row_tiles<0, KW, S>();
  pixel_split(d, d.count == 3 ? three : any);
}

void depthwise_pixels(const PixelRowArgs& d) {
  static constexpr PixelTiles<PixelRowArgs> two = row_tiles<0, 2, 1>(), one = row_tiles<0, 1, 1>();
  if (d.kw == 3) {
    d.stride == 1 ? pixel_rows<3, 1>(d) : pixel_rows<3, 2>(d);
  } else {
    pixel_split(d, d.kw == 2 ? two : one);
  }
  if (d.channels % Full::W) pixel_rest(d);
  // An activation with a pass of its own, while the row is in the first cache.
  for (int c = 0; takes_pass(d.activation) && c < d.channels; c += Full::W) {
    finish_rows<Full>({d.out + c / Full::W * d.out_block, nullptr, d.out_pixel, 0, nullptr, 0, nullptr, d.width, 1,
                       d.channels - c < Full::W ? d.channels - c : Full::W, d.activation, d.slope});
  }
}

}  // namespace
