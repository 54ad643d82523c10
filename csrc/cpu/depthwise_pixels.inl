// Depthwise rows straight from channels_last memory: a vector of channels after the other, each along the whole row
// with its weights in registers. Three kernel columns, no dilation, at most one column outside the image on either
// side. Sums in the order of depthwise.inl. Included by the per-ISA files after depthwise.inl.
#include "pixels.inl"

namespace {

// U output columns. L and R: of their input columns the first or the last is outside the image.
template <int S, int U, int L, int R>
ALWAYS_INLINE void pixel_taps(Full::T (&acc)[U], const Full::T* weight, const float* x, ptrdiff_t pixel) {
  constexpr int kInputs = (U - 1) * S + 3;
  UNROLL for (int i = L; i < kInputs - R; ++i) {
    const Full::T value = Full::load(x + i * pixel);
    UNROLL for (int kx = 0; kx < 3; ++kx) {
      if (i >= kx && (i - kx) % S == 0 && (i - kx) / S < U) Full::accumulate(acc[(i - kx) / S], value, weight[kx]);
    }
  }
}

// Whether a row's nine weights have room beside what a tile needs.
constexpr bool kHoldsWeights = kRegisters >= 32;

// One vector of channels on its way along a row. ENDS: with a bias and an activation, and never past the caches.
template <int ROWS, int S, bool ENDS>
struct PixelWalk {
  const PixelRowArgs& d;
  RowAhead in, other, written;
  Full::T weight[ROWS * 3];
  const float* x[ROWS];
  const float *w, *bias;
  float* out;

  ALWAYS_INLINE PixelWalk(const PixelRowArgs& args)
      : d(args),
        in(d.ahead, d.pixel, d.channels, d.width * S),
        other(S > 1 && d.ahead ? d.ahead + d.ahead_other : nullptr, d.pixel, d.channels, d.width * S),
        written(d.out_ahead, d.out_pixel, d.channels, d.width) {}

  ALWAYS_INLINE void load(int r) {
    UNROLL for (int kx = 0; kx < 3; ++kx) weight[r * 3 + kx] = Full::load(w + (r * 3 + kx) * Full::W);
  }

  ALWAYS_INLINE void start(int block) {
    w = d.weights + block * d.weight_block;
    bias = d.bias + block * Full::W;
    out = d.out + block * d.out_block;
    UNROLL for (int r = 0; r < ROWS; ++r) {
      x[r] = d.rows[r] + block * Full::W;
      if (kHoldsWeights) load(r);
    }
  }

  // U output columns. L and R as in pixel_taps.
  template <int U, int L, int R>
  ALWAYS_INLINE void tile() {
    const ptrdiff_t pixel = d.pixel, out_pixel = d.out_pixel;
    in.template ask<U * S>();
    if (S > 1) other.template ask<U * S>();
    if (!ENDS) written.template ask<U, true>();
    Full::T acc[U];
    UNROLL for (int u = 0; u < U; ++u) acc[u] = Full::zero();
    UNROLL for (int r = 0; r < ROWS; ++r) {
      if (!kHoldsWeights) load(r);
      pixel_taps<S, U, L, R>(acc, weight + r * 3, x[r], pixel);
      x[r] += U * S * pixel;
    }
    if (ENDS) finish(acc, {Full::load(bias), Full::broadcast(&d.lo), Full::broadcast(&d.hi)}, d.activation);
    if (!ENDS && d.stream) {
      UNROLL for (int u = 0; u < U; ++u) Full::stream(out + u * out_pixel, acc[u]);
    } else {
      UNROLL for (int u = 0; u < U; ++u) Full::store(out + u * out_pixel, acc[u]);
    }
    out += U * out_pixel;
  }

  // The only tile of a row.
  template <int U>
  ALWAYS_INLINE void whole() {
    if (d.left && d.right) {
      tile<U, 1, 1>();
    } else if (d.left) {
      tile<U, 1, 0>();
    } else {
      last<U>();
    }
  }
  template <int U>
  ALWAYS_INLINE void last() {
    d.right ? tile<U, 0, 1>() : tile<U, 0, 0>();
  }

  ALWAYS_INLINE void row() {
    static_assert(kPixelColumns == 4, "a case for each width of a tile");
    int left = d.width;
    switch (left) {
      case 1:
        return whole<1>();
      case 2:
        return whole<2>();
      case 3:
        return whole<3>();
      case 4:
        return whole<4>();
    }
    d.left ? tile<4, 1, 0>() : tile<4, 0, 0>();
    for (left -= 4; left > 4; left -= 4) tile<4, 0, 0>();
    switch (left) {
      case 1:
        return last<1>();
      case 2:
        return last<2>();
      case 3:
        return last<3>();
      default:
        return last<4>();
    }
  }

  ALWAYS_INLINE void end() {
    in.next_vector();
    other.next_vector();
    written.next_vector();
  }
};

template <int ROWS, int S, bool ENDS>
NOINLINE void pixel_row(const PixelRowArgs& d) {
  PixelWalk<ROWS, S, ENDS> walk(d);
  for (int block = 0; block < d.channels / Full::W; ++block) {
    walk.start(block);
    walk.row();
    walk.end();
  }
}

// The channels past the last whole vector, a column at a time.
NOINLINE void pixel_rest(const PixelRowArgs& d) {
  const int first = d.channels / Full::W * Full::W, valid = d.channels - first, last = (d.width - 1) * d.stride + 3;
  const float* weights = d.weights + first / Full::W * d.weight_block;
  for (int column = 0; column < d.width; ++column) {
    Full::T acc[1] = {Full::zero()};
    for (int r = 0; r < d.count; ++r) {
      for (int kx = 0; kx < 3; ++kx) {
        const int at = column * d.stride + kx;
        if (at < d.left || at >= last - d.right) continue;
        const Full::T x = Full::load_partial(d.rows[r] + at * d.pixel + first, valid);
        acc[0] = Full::fma(x, Full::load(weights + (r * 3 + kx) * Full::W), acc[0]);
      }
    }
    if (d.bias) {
      finish(acc, {Full::load_partial(d.bias + first, valid), Full::broadcast(&d.lo), Full::broadcast(&d.hi)},
             d.activation);
    }
    Full::store_partial(d.out + column * d.out_pixel + first / Full::W * d.out_block, acc[0], valid);
  }
}

template <int S, bool ENDS>
void pixel_rows(const PixelRowArgs& d) {
  d.count == 3 ? pixel_row<3, S, ENDS>(d) : d.count == 2 ? pixel_row<2, S, ENDS>(d) : pixel_row<1, S, ENDS>(d);
}

void depthwise_pixels(const PixelRowArgs& d) {
  if (d.bias) {
    d.stride == 1 ? pixel_rows<1, true>(d) : pixel_rows<2, true>(d);
  } else {
    d.stride == 1 ? pixel_rows<1, false>(d) : pixel_rows<2, false>(d);
  }
  if (d.channels % Full::W) pixel_rest(d);
  if (d.stream) Full::end_streams();
  // An activation with a pass of its own, while the row is in the first cache.
  for (int c = 0; takes_pass(d.activation) && c < d.channels; c += Full::W) {
    finish_rows<Full>({d.out + c / Full::W * d.out_block, nullptr, d.out_pixel, 0, nullptr, 0, nullptr, d.width, 1,
                       d.channels - c < Full::W ? d.channels - c : Full::W, d.activation, d.slope});
  }
}

}  // namespace
