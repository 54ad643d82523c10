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

// One vector of channels on its way along a row.
template <int ROWS, int S>
struct PixelWalk {
  const PixelRowArgs& d;
  RowAhead in, other, written;
  Full::T weight[ROWS * 3];
  const float* x[ROWS];
  const float* bias;
  float* out;

  ALWAYS_INLINE PixelWalk(const PixelRowArgs& args)
      : d(args),
        in(d.ahead, d.pixel, d.channels, d.width * S),
        other(S > 1 && d.ahead ? d.ahead + d.ahead_other : nullptr, d.pixel, d.channels, d.width * S),
        written(d.out_ahead, d.out_pixel, d.channels, d.width) {}

  ALWAYS_INLINE void start(int block) {
    const float* w = d.weights + block * d.weight_block;
    bias = d.bias ? d.bias + block * Full::W : nullptr;
    out = d.out + block * d.out_block;
    UNROLL for (int r = 0; r < ROWS; ++r) {
      x[r] = d.rows[r] + block * Full::W;
      UNROLL for (int kx = 0; kx < 3; ++kx) weight[r * 3 + kx] = Full::load(w + (r * 3 + kx) * Full::W);
    }
  }

  template <int U, int L, int R>
  ALWAYS_INLINE void tile() {
    if constexpr (U > 0) {
      const ptrdiff_t pixel = d.pixel, out_pixel = d.out_pixel;
      in.template ask<U * S>();
      if (S > 1) other.template ask<U * S>();
      written.template ask<U, true>();
      Full::T acc[U];
      UNROLL for (int u = 0; u < U; ++u) acc[u] = Full::zero();
      UNROLL for (int r = 0; r < ROWS; ++r) {
        pixel_taps<S, U, L, R>(acc, weight + r * 3, x[r], pixel);
        x[r] += U * S * pixel;
      }
      if (bias) finish(acc, {Full::load(bias), Full::broadcast(&d.lo), Full::broadcast(&d.hi)}, d.activation);
      if (d.stream) {
        UNROLL for (int u = 0; u < U; ++u) Full::stream(out + u * out_pixel, acc[u]);
      } else {
        UNROLL for (int u = 0; u < U; ++u) Full::store(out + u * out_pixel, acc[u]);
      }
      out += U * out_pixel;
    }
  }

  ALWAYS_INLINE void end() {
    in.next_vector();
    other.next_vector();
    written.next_vector();
  }
};

template <int ROWS, int S, int U>
NOINLINE void pixel_row(const PixelRowArgs& d, const PixelCut& cut) {
  PixelWalk<ROWS, S> walk(d);
  const int blocks = d.channels / Full::W;
  const bool one = cut.wide + cut.narrow == 1;
  // Tiles of each width between the first, a wide one, and the last, which is narrow where there are narrow ones.
  const int wide = cut.wide - (cut.narrow ? 1 : 2), narrow = cut.narrow - 1;
  for (int block = 0; block < blocks; ++block) {
    walk.start(block);
    if (one && d.left && d.right) {
      walk.template tile<U, 1, 1>();
    } else if (one && d.right) {
      walk.template tile<U, 0, 1>();
    } else {
      d.left ? walk.template tile<U, 1, 0>() : walk.template tile<U, 0, 0>();
      for (int i = 0; i < wide; ++i) walk.template tile<U, 0, 0>();
      for (int i = 0; i < narrow; ++i) walk.template tile<U - 1, 0, 0>();
      if (one) {
      } else if (cut.narrow) {
        d.right ? walk.template tile<U - 1, 0, 1>() : walk.template tile<U - 1, 0, 0>();
      } else {
        d.right ? walk.template tile<U, 0, 1>() : walk.template tile<U, 0, 0>();
      }
    }
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

template <int ROWS, int S>
void pixel_rows(const PixelRowArgs& d) {
  static_assert(kPixelColumns == 4, "a case for each width of a tile");
  const PixelCut cut = cut_pixels(d.width);
  switch (cut.columns) {
    case 1:
      return pixel_row<ROWS, S, 1>(d, cut);
    case 2:
      return pixel_row<ROWS, S, 2>(d, cut);
    case 3:
      return pixel_row<ROWS, S, 3>(d, cut);
    default:
      return pixel_row<ROWS, S, 4>(d, cut);
  }
}

template <int S>
void pixel_rows_of(const PixelRowArgs& d) {
  switch (d.count) {
    case 1:
      return pixel_rows<1, S>(d);
    case 2:
      return pixel_rows<2, S>(d);
    default:
      return pixel_rows<3, S>(d);
  }
}

void depthwise_pixels(const PixelRowArgs& d) {
  d.stride == 1 ? pixel_rows_of<1>(d) : pixel_rows_of<2>(d);
  if (d.channels % Full::W) pixel_rest(d);
  if (d.stream) Full::end_streams();
  // An activation with a pass of its own, while the row is in the first cache.
  for (int c = 0; takes_pass(d.activation) && c < d.channels; c += Full::W) {
    finish_rows<Full>({d.out + c / Full::W * d.out_block, nullptr, d.out_pixel, 0, nullptr, 0, nullptr, d.width, 1,
                       d.channels - c < Full::W ? d.channels - c : Full::W, d.activation, d.slope});
  }
}

}  // namespace
