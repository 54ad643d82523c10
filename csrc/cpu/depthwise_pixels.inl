// Depthwise rows straight from and to channels_last memory, for training: U output columns at a time, all channels of
// them one vector after the other, so that memory is walked as it lies. Three kernel columns or fewer, no dilation, at
// most one column outside the image on either side. Sums in the order of depthwise.inl and weight_gradient.inl.
// Included by the per-ISA files after a simd_*.h.
namespace {

constexpr int kPixelColumns = 4;

// Asks for a line that is read, or written, a little later: the walk has too many streams for the processor to see
// them coming.
ALWAYS_INLINE void expect_load(const float* p) { __builtin_prefetch(p, 0, 2); }
ALWAYS_INLINE void expect_store(const float* p) { __builtin_prefetch(p, 1, 2); }

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
  const ptrdiff_t pixel = d.pixel, out_pixel = d.out_pixel, weight_block = d.weight_block;
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
      const Full::T b = Full::load(bias);
      UNROLL for (int u = 0; u < U; ++u) acc[u] = Full::add(acc[u], b);
      bias += Full::W;
    }
    UNROLL for (int u = 0; u < U; ++u) Full::store(out + u * out_pixel, acc[u]);
    out += Full::W;
    w += weight_block;
  }
}

// The channels past the last whole vector, a column at a time.
NOINLINE void pixel_rest(const PixelRowArgs& d) {
  const int first = d.channels / Full::W * Full::W, valid = d.channels - first, last = (d.width - 1) * d.stride + d.kw;
  const float* weights = d.weights + first / Full::W * d.weight_block;
  for (int column = 0; column < d.width; ++column) {
    Full::T acc = Full::zero();
    for (int r = 0; r < d.count; ++r) {
      for (int kx = 0; kx < d.kw; ++kx) {
        const int at = column * d.stride + kx;
        if (at < d.left || at >= last - d.right) continue;
        const Full::T x = Full::load_partial(d.rows[r] + at * d.pixel + first, valid);
        acc = Full::fma(x, Full::load(weights + (r * d.kw + kx) * Full::W), acc);
      }
    }
    if (d.bias) acc = Full::add(acc, Full::load_partial(d.bias + first, valid));
    Full::store_partial(d.out + column * d.out_pixel + first, acc, valid);
  }
}

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

// The functions of a case, by number of columns and by what is outside at the left and the right.
template <class Args>
struct PixelTiles {
  void (*of[kPixelColumns + 1][2][2])(const Args&, int);
};

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
template <int ROWS, int KW, int S>
constexpr PixelTiles<PixelRowArgs> row_tiles() {
  PixelTiles<PixelRowArgs> t{};
  fill_tiles<ROWS, KW, S, kPixelColumns>(t);
  return t;
}
template <int KW, int S>
constexpr PixelTiles<PixelGradientArgs> gradient_tiles() {
  PixelTiles<PixelGradientArgs> t{};
  fill_tiles<KW, S, kPixelColumns>(t);
  return t;
}

// Columns split as evenly as possible.
template <class Args>
void pixel_split(const Args& d, const PixelTiles<Args>& tiles) {
  const int count = (d.width + kPixelColumns - 1) / kPixelColumns;
  for (int i = 0, column = 0; i < count; ++i) {
    const int columns = d.width / count + (i < d.width % count);
    tiles.of[columns][i == 0 && d.left][i == count - 1 && d.right](d, column);
    column += columns;
  }
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
}

void weight_gradient_pixels(const PixelGradientArgs& d) {
  static constexpr PixelTiles<PixelGradientArgs> of_1 = gradient_tiles<3, 1>(), of_2 = gradient_tiles<3, 2>();
  pixel_split(d, d.stride == 1 ? of_1 : of_2);
  if (d.channels % Full::W) pixel_gradient_rest(d);
}

}  // namespace
