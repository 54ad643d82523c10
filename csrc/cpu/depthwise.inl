// Depthwise rows: U output columns of one channel block, accumulators in registers, one kernel row of weights at a
// time. Input pixels of a block are Full::W floats apart. Included by the per-ISA files after a simd_*.h.
namespace {

struct DepthwiseEnd {
  Full::T bias, lo, hi;
};

ALWAYS_INLINE DepthwiseEnd depthwise_end(const DepthwiseArgs& d, int block) {
  return {Full::load(d.bias + block * Full::W), Full::broadcast(&d.lo), Full::broadcast(&d.hi)};
}

// Sums become values: bias, then a clamp or Hardswish.
template <int U>
ALWAYS_INLINE void finish(Full::T (&acc)[U], const DepthwiseEnd& e, int activation) {
  if (activation == kHardswish) {
    hardswish_sums<Full>(acc, e.bias);
  } else {
    UNROLL for (int u = 0; u < U; ++u) acc[u] = Full::clamp(Full::add(acc[u], e.bias), e.lo, e.hi);
  }
}

// One kernel row: every input column is loaded once and feeds all taps that use it.
template <int KW, int S, int U>
ALWAYS_INLINE void depthwise_taps(Full::T (&acc)[U], const float* w, const float* x) {
  Full::T weight[KW];
  UNROLL for (int kx = 0; kx < KW; ++kx) weight[kx] = Full::load(w + kx * Full::W);
  UNROLL for (int i = 0; i < (U - 1) * S + KW; ++i) {
    const Full::T value = Full::load(x + i * Full::W);
    UNROLL for (int kx = 0; kx < KW; ++kx) {
      if (i >= kx && (i - kx) % S == 0 && (i - kx) / S < U) Full::accumulate(acc[(i - kx) / S], value, weight[kx]);
    }
  }
}

// Of each of some whole blocks `count` times U columns, one after the other, so that what a call costs is paid once and
// the next sums begin while the last are stored. Kernel width and stride known; KH 3: all three kernel rows are in the
// image, and unrolled.
template <int KH, int KW, int S, int U>
NOINLINE void depthwise_row_fixed(const DepthwiseArgs& d, int block, int end, int column, int count) {
  const float* w = d.weights + (static_cast<ptrdiff_t>(block) * d.kh + d.ky_begin) * KW * Full::W;
  ptrdiff_t start = block * d.in_block + static_cast<ptrdiff_t>(column) * S * Full::W;
  const ptrdiff_t next_in = d.in_block - static_cast<ptrdiff_t>(count) * U * S * Full::W;
  const ptrdiff_t next_out = d.out_block - static_cast<ptrdiff_t>(count) * U * d.out_pixel;
  const ptrdiff_t out_pixel = d.out_pixel;
  float* out = d.out + block * d.out_block + column * out_pixel;
  const float* x[KH > 0 ? KH : 1];
  UNROLL for (int ky = 0; ky < KH; ++ky) x[ky] = d.rows[ky] + start;
  for (; block < end; ++block) {
    for (int t = count; t > 0; --t) {
      Full::T acc[U];
      UNROLL for (int u = 0; u < U; ++u) acc[u] = Full::zero();
      if constexpr (KH > 0) {
        UNROLL for (int ky = 0; ky < KH; ++ky) {
          depthwise_taps<KW, S, U>(acc, w + ky * KW * Full::W, x[ky]);
          x[ky] += U * S * Full::W;
          KEEP_IN_REGISTER(x[ky]);
        }
      } else {
        const float* row_weights = w;
        for (int ky = d.ky_begin; ky < d.ky_end; ++ky) {
          const float* row = d.rows[ky] + start;
          KEEP_IN_REGISTER(row);
          depthwise_taps<KW, S, U>(acc, row_weights, row);
          row_weights += KW * Full::W;
        }
        start += U * S * Full::W;
      }
      finish(acc, depthwise_end(d, block), d.activation);
      UNROLL for (int u = 0; u < U; ++u) {
        Full::store(out, acc[u]);
        out += out_pixel;
        KEEP_IN_REGISTER(out);
      }
    }
    UNROLL for (int ky = 0; ky < KH; ++ky) x[ky] += next_in;
    start += next_in;
    out += next_out;
    w += d.kh * KW * Full::W;
  }
}

// Any kernel width, stride and dilation. PARTIAL: a block with fewer channels than a vector.
template <int U, bool PARTIAL>
NOINLINE void depthwise_row_any(const DepthwiseArgs& d, int block, int end, int column, int count) {
  using T = Full::T;
  const ptrdiff_t step = static_cast<ptrdiff_t>(d.stride) * Full::W;
  for (; block < end; ++block) {
    float* out = d.out + block * d.out_block + column * d.out_pixel;
    for (int t = 0; t < count; ++t) {
      T acc[U];
      UNROLL for (int u = 0; u < U; ++u) acc[u] = Full::zero();
      for (int ky = d.ky_begin; ky < d.ky_end; ++ky) {
        const float* w = d.weights + (static_cast<ptrdiff_t>(block) * d.kh + ky) * d.kw * Full::W;
        const float* x = d.rows[ky] + block * d.in_block + (column + t * U) * step;
        for (int kx = 0; kx < d.kw; ++kx) {
          const T weight = Full::load(w + kx * Full::W);
          UNROLL for (int u = 0; u < U; ++u) acc[u] = Full::fma(Full::load(x + u * step), weight, acc[u]);
          x += d.dilation * Full::W;
        }
      }
      finish(acc, depthwise_end(d, block), d.activation);
      UNROLL for (int u = 0; u < U; ++u) {
        if constexpr (PARTIAL) {
          Full::store_partial(out, acc[u], d.last_valid);
        } else {
          Full::store(out, acc[u]);
        }
        out += d.out_pixel;
      }
    }
  }
}

using DepthwiseFunction = void (*)(const DepthwiseArgs&, int, int, int, int);

template <int KH, int KW, int S, bool PARTIAL, int U>
constexpr void fill_columns(DepthwiseFunction* f) {
  if constexpr (U > 0) {
    if constexpr (KW > 0) {
      f[U] = &depthwise_row_fixed<KH, KW, S, U>;
    } else {
      f[U] = &depthwise_row_any<U, PARTIAL>;
    }
    fill_columns<KH, KW, S, PARTIAL, U - 1>(f);
  }
}

// Output columns a turn: as many as fit, fewer where a run-time tap count costs registers for addresses.
template <int KW>
constexpr int most_columns() {
  if (KW == 7 && kDepthwiseColumns == 8) return 6;  // seven weights and a value beside them, in 16 registers
  return KW > 0 || kDepthwiseColumns < 8 ? kDepthwiseColumns : 8;
}

// The functions of a kernel size (0: any) by output columns a turn.
template <int KH, int KW, int S, bool PARTIAL = false>
struct DepthwiseTable {
  DepthwiseFunction of_columns[most_columns<KW>() + 1] = {};
  constexpr DepthwiseTable() { fill_columns<KH, KW, S, PARTIAL, most_columns<KW>()>(of_columns); }
};

// Columns split as evenly as possible, so that no turn is much shorter than the others.
void depthwise_split(const DepthwiseArgs& d, int begin, int end, const DepthwiseFunction* of_columns, int most) {
  const int count = (d.width + most - 1) / most;
  if (count == 0 || begin == end) return;
  const int columns = d.width / count, longer = d.width % count;
  if (longer) of_columns[columns + 1](d, begin, end, 0, longer);
  of_columns[columns](d, begin, end, longer * (columns + 1), count - longer);
}

// Only the last block may have channels that do not exist.
template <int KH, int KW, int S>
void depthwise_blocks(const DepthwiseArgs& d) {
  static constexpr DepthwiseTable<KH, KW, S> whole;
  static constexpr DepthwiseTable<0, 0, 0, true> partial;
  const int blocks = d.last_valid == Full::W ? d.blocks : d.blocks - 1;
  // An activation with a pass of its own follows each block's row while it is in the first cache.
  for (int block = 0; takes_pass(d.activation) && block < d.blocks; ++block) {
    if (block < blocks) {
      depthwise_split(d, block, block + 1, whole.of_columns, most_columns<KW>());
    } else {
      depthwise_split(d, block, block + 1, partial.of_columns, most_columns<0>());
    }
    finish_rows<Full>({d.out + block * d.out_block, nullptr, d.out_pixel, 0, nullptr, 0, nullptr, d.width, 1,
                       block < blocks ? Full::W : d.last_valid, d.activation, d.slope});
  }
  if (takes_pass(d.activation)) return;
  depthwise_split(d, 0, blocks, whole.of_columns, most_columns<KW>());
  depthwise_split(d, blocks, d.blocks, partial.of_columns, most_columns<0>());
}

void depthwise_row(const DepthwiseArgs& d) {
  const int key = d.dilation == 1 ? d.kw * 10 + d.stride : 0;
  const bool whole = d.kh == 3 && d.ky_begin == 0 && d.ky_end == 3;
  switch (key) {
    case 31:
      return whole ? depthwise_blocks<3, 3, 1>(d) : depthwise_blocks<0, 3, 1>(d);
    case 32:
      return whole ? depthwise_blocks<3, 3, 2>(d) : depthwise_blocks<0, 3, 2>(d);
    case 51:
      return depthwise_blocks<0, 5, 1>(d);
    case 52:
      return depthwise_blocks<0, 5, 2>(d);
    case 71:
      return depthwise_blocks<0, 7, 1>(d);
    case 72:
      return depthwise_blocks<0, 7, 2>(d);
    default:
      return depthwise_blocks<0, 0, 0>(d);
  }
}

}  // namespace
