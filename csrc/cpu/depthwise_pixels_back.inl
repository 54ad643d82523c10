// Both gradients of a depthwise convolution of 3x3 straight from channels_last memory, one row of the input at a time:
// what a loaded value of the output's gradient adds to the input's gradient, and, times the input, to the weights'.
// Each input value is read once, each gradient value once a kernel row. A vector of channels after the other, each
// along the whole row; where registers allow it with its weights and their gradients in them. The weights' sums run
// over rows, in a row over columns. Included by the per-ISA files after a simd_*.h.
#include "pixels.inl"

namespace {

// Whether a row's nine weights and nine sums have room beside what a tile needs.
constexpr bool kHoldsSums = kRegisters >= 32;

// A kernel row, a gradient row, U of its columns from one on, and the U * S input columns that start at the middle tap
// of the first. L: the column before them is outside the image, else stride 1 reads it; R 1 or 2: the column after them
// is, and with 2 the input ends a column earlier.
template <int S, int U, int L, int R>
ALWAYS_INLINE void back_taps(Full::T* acc, Full::T* sum, const Full::T* weight, const float* g, const float* x,
                             ptrdiff_t pixel, ptrdiff_t x_pixel) {
  constexpr int kColumns = U * S - (R == 2);
  // Gradient column i reaches input column i * S + kx - 1.
  UNROLL for (int i = S == 1 ? L - 1 : 0; i < U + (R == 0); ++i) {
    const Full::T value = Full::load(g + i * pixel);
    UNROLL for (int kx = 0; kx < 3; ++kx) {
      const int column = i * S + kx - 1;
      if (column < 0 || column >= kColumns) continue;
      Full::accumulate(acc[column], value, weight[kx]);
      if constexpr (kHoldsSums) {
        Full::accumulate(sum[kx], value, Full::load(x + column * x_pixel));
      } else {
        Full::accumulate_from<0>(sum[kx], value, x + column * x_pixel);
      }
    }
  }
}

// One vector of channels on its way along a row. R: what is outside at the right, as in back_taps.
template <int ROWS, int S, int R>
struct PixelBackWalk {
  const PixelBackArgs& d;
  RowAhead g_ahead, x_ahead, written;
  Full::T weight[ROWS * 3], sum[ROWS * 3];
  const float* g[ROWS];
  const float *x, *w;
  float *dx, *sums;

  ALWAYS_INLINE PixelBackWalk(const PixelBackArgs& args)
      : d(args),
        g_ahead(d.g_ahead, d.pixel, d.channels, d.g_width),
        x_ahead(d.x_ahead, d.x_pixel, d.channels, d.width),
        written(d.dx_ahead, d.x_pixel, d.channels, d.width) {}

  // Kernel rows descend as the gradient's ascend.
  static constexpr ptrdiff_t at(int row, int kx) { return (kx - row * S * 3) * Full::W; }
  ALWAYS_INLINE void load(int r, Full::T* row_weight, Full::T* row_sum) {
    UNROLL for (int kx = 0; kx < 3; ++kx) {
      row_weight[kx] = Full::load(w + at(r, kx));
      row_sum[kx] = Full::load(sums + at(r, kx));
    }
  }
  ALWAYS_INLINE void store(int r, const Full::T* row_sum) {
    UNROLL for (int kx = 0; kx < 3; ++kx) Full::store(sums + at(r, kx), row_sum[kx]);
  }

  ALWAYS_INLINE void start(int block) {
    w = d.weights + block * d.weight_block;
    sums = d.sums + block * d.weight_block;
    x = d.x + block * Full::W;
    dx = d.dx + block * Full::W;
    UNROLL for (int r = 0; r < ROWS; ++r) {
      g[r] = d.rows[r] + block * Full::W;
      if (kHoldsSums) load(r, weight + r * 3, sum + r * 3);
    }
  }

  // U columns of the gradient. FIRST and LAST: of the row.
  template <int U, bool FIRST, bool LAST>
  ALWAYS_INLINE void tile() {
    constexpr int kRight = LAST ? R : 0, kColumns = U * S - (kRight == 2);
    const ptrdiff_t pixel = d.pixel, x_pixel = d.x_pixel;
    g_ahead.template ask<U>();
    x_ahead.template ask<kColumns>();
    written.template ask<kColumns, true>();
    Full::T acc[kColumns];
    UNROLL for (int i = 0; i < kColumns; ++i) acc[i] = Full::zero();
    UNROLL for (int r = 0; r < ROWS; ++r) {
      if constexpr (kHoldsSums) {
        back_taps<S, U, FIRST, kRight>(acc, sum + r * 3, weight + r * 3, g[r], x, pixel, x_pixel);
      } else {
        Full::T row_weight[3], row_sum[3];
        load(r, row_weight, row_sum);
        // Else the column after a tile would be kept for the next one, in a register that is not there.
        const float* row = g[r];
        KEEP_IN_REGISTER(row);
        back_taps<S, U, FIRST, kRight>(acc, row_sum, row_weight, row, x, pixel, x_pixel);
        store(r, row_sum);
      }
      g[r] += U * pixel;
    }
    if (d.stream) {
      UNROLL for (int i = 0; i < kColumns; ++i) Full::stream(dx + i * x_pixel, acc[i]);
    } else {
      UNROLL for (int i = 0; i < kColumns; ++i) Full::store(dx + i * x_pixel, acc[i]);
    }
    x += kColumns * x_pixel;
    dx += kColumns * x_pixel;
  }

  template <bool FIRST>
  ALWAYS_INLINE void last(int columns) {
    static_assert(kPixelColumns == 4, "a case for each width of a tile");
    switch (columns) {
      case 1:
        return tile<1, FIRST, true>();
      case 2:
        return tile<2, FIRST, true>();
      case 3:
        return tile<3, FIRST, true>();
      default:
        return tile<4, FIRST, true>();
    }
  }

  ALWAYS_INLINE void row() {
    int left = d.g_width;
    if (left <= 4) return last<true>(left);
    tile<4, true, false>();
    for (left -= 4; left > 4; left -= 4) tile<4, false, false>();
    last<false>(left);
  }

  ALWAYS_INLINE void end() {
    UNROLL for (int r = 0; r < ROWS; ++r) {
      if (kHoldsSums) store(r, sum + r * 3);
    }
    g_ahead.next_vector();
    x_ahead.next_vector();
    written.next_vector();
  }
};

template <int ROWS, int S, int R>
NOINLINE void pixel_back_row(const PixelBackArgs& d) {
  PixelBackWalk<ROWS, S, R> walk(d);
  for (int block = 0; block < d.channels / Full::W; ++block) {
    walk.start(block);
    walk.row();
    walk.end();
  }
}

// The channels past the last whole vector, a column at a time.
NOINLINE void pixel_back_rest(const PixelBackArgs& d) {
  const int first = d.channels / Full::W * Full::W, valid = d.channels - first;
  const ptrdiff_t at = first / Full::W * d.weight_block;
  for (int column = 0; column < d.width; ++column) {
    const Full::T x = Full::load_partial(d.x + column * d.x_pixel + first, valid);
    Full::T acc = Full::zero();
    for (int r = 0; r < d.count; ++r) {
      for (int kx = 2; kx >= 0; --kx) {
        const int reach = column + 1 - kx;
        if (reach < 0 || reach % d.stride || reach / d.stride >= d.g_width) continue;
        const ptrdiff_t tap = at + (kx - r * d.stride * 3) * Full::W;
        const Full::T g = Full::load_partial(d.rows[r] + reach / d.stride * d.pixel + first, valid);
        acc = Full::fma(g, Full::load(d.weights + tap), acc);
        Full::store(d.sums + tap, Full::fma(g, x, Full::load(d.sums + tap)));
      }
    }
    Full::store_partial(d.dx + column * d.x_pixel + first, acc, valid);
  }
}

void depthwise_pixels_back(const PixelBackArgs& d) {
  const bool odd = d.width % 2;
  if (d.stride == 1) {
    d.count == 3 ? pixel_back_row<3, 1, 1>(d) : d.count == 2 ? pixel_back_row<2, 1, 1>(d) : pixel_back_row<1, 1, 1>(d);
  } else if (odd) {
    d.count == 2 ? pixel_back_row<2, 2, 2>(d) : pixel_back_row<1, 2, 2>(d);
  } else {
    d.count == 2 ? pixel_back_row<2, 2, 1>(d) : pixel_back_row<1, 2, 1>(d);
  }
  if (d.channels % Full::W) pixel_back_rest(d);
  if (d.stream) Full::end_streams();
}

}  // namespace
