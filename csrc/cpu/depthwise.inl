// Depthwise rows: U output columns of one channel block, accumulators in registers, one kernel row of weights at a
// time. Included by the per-ISA files after a simd_*.h.
namespace {

// Bias, activation and store of U columns, the last block possibly with fewer channels.
template <int U>
ALWAYS_INLINE void depthwise_store(const Full::T (&acc)[U], const DepthwiseArgs& d, int block, int column, int valid) {
  const Full::T lo = Full::broadcast(&d.lo), hi = Full::broadcast(&d.hi);
  const Full::T bias = Full::load(d.bias + block * Full::W);
  float* out = d.out + block * d.out_block + column * d.out_pixel;
  if (valid == Full::W) {
    UNROLL for (int u = 0; u < U; ++u) Full::store(out + u * d.out_pixel, Full::clamp(Full::add(acc[u], bias), lo, hi));
  } else {
    UNROLL for (int u = 0; u < U; ++u) {
      Full::store_partial(out + u * d.out_pixel, Full::clamp(Full::add(acc[u], bias), lo, hi), valid);
    }
  }
}

// Kernel width and stride known: every input column is loaded once per kernel row and feeds all taps that use it.
template <int KW, int S, int U>
NOINLINE void depthwise_row_fixed(const DepthwiseArgs& d, int block, int column, int valid) {
  using T = Full::T;
  T acc[U];
  UNROLL for (int u = 0; u < U; ++u) acc[u] = Full::zero();
  const float* w = d.weights + (static_cast<ptrdiff_t>(block) * d.kh + d.ky_begin) * KW * Full::W;
  const ptrdiff_t start = d.shift + block * d.in_block + static_cast<ptrdiff_t>(column) * S * d.in_pixel;
  for (int ky = d.ky_begin; ky < d.ky_end; ++ky) {
    T weight[KW];
    UNROLL for (int kx = 0; kx < KW; ++kx) weight[kx] = Full::load(w + kx * Full::W);
    const float* x = d.rows[ky] + start;
    UNROLL for (int i = 0; i < (U - 1) * S + KW; ++i) {
      const T value = Full::load(x);
      x += d.in_pixel;
      UNROLL for (int kx = 0; kx < KW; ++kx) {
        if (i >= kx && (i - kx) % S == 0 && (i - kx) / S < U) {
          acc[(i - kx) / S] = Full::fma(value, weight[kx], acc[(i - kx) / S]);
        }
      }
    }
    w += KW * Full::W;
  }
  depthwise_store<U>(acc, d, block, column, valid);
}

// Any kernel width, stride and dilation.
template <int U>
NOINLINE void depthwise_row_any(const DepthwiseArgs& d, int block, int column, int valid) {
  using T = Full::T;
  T acc[U];
  UNROLL for (int u = 0; u < U; ++u) acc[u] = Full::zero();
  const ptrdiff_t step = d.stride * d.in_pixel;
  for (int ky = d.ky_begin; ky < d.ky_end; ++ky) {
    const float* w = d.weights + (static_cast<ptrdiff_t>(block) * d.kh + ky) * d.kw * Full::W;
    const float* x = d.rows[ky] + d.shift + block * d.in_block + column * step;
    for (int kx = 0; kx < d.kw; ++kx) {
      const T weight = Full::load(w + kx * Full::W);
      UNROLL for (int u = 0; u < U; ++u) acc[u] = Full::fma(Full::load(x + u * step), weight, acc[u]);
      x += d.dilation * d.in_pixel;
    }
  }
  depthwise_store<U>(acc, d, block, column, valid);
}

using DepthwiseFunction = void (*)(const DepthwiseArgs&, int, int, int);

template <int KW, int S, int U>
constexpr void fill_columns(DepthwiseFunction* f) {
  if constexpr (U > 0) {
    if constexpr (KW > 0) {
      f[U] = &depthwise_row_fixed<KW, S, U>;
    } else {
      f[U] = &depthwise_row_any<U>;
    }
    fill_columns<KW, S, U - 1>(f);
  }
}

// Output columns a call: as many as fit, fewer where a run-time tap count costs registers for addresses.
template <int KW>
constexpr int most_columns() {
  if (KW == 7 && kDepthwiseColumns == 8) return 6;  // seven weights and a value beside them, in 16 registers
  return KW > 0 || kDepthwiseColumns < 8 ? kDepthwiseColumns : 8;
}

template <int KW, int S>
struct DepthwiseTable {
  DepthwiseFunction of_columns[most_columns<KW>() + 1] = {};
  constexpr DepthwiseTable() { fill_columns<KW, S, most_columns<KW>()>(of_columns); }
};

template <int KW, int S>
void depthwise_row_split(const DepthwiseArgs& d) {
  static constexpr DepthwiseTable<KW, S> chunk;
  constexpr int kMost = most_columns<KW>();
  const int count = (d.width + kMost - 1) / kMost;
  if (count == 0) return;
  const int columns = d.width / count, longer = d.width % count;
  for (int block = 0; block < d.blocks; ++block) {
    const int valid = block == d.blocks - 1 ? d.last_valid : Full::W;
    int column = 0;
    for (int t = 0; t < count; ++t) {
      const int u = columns + (t < longer);
      chunk.of_columns[u](d, block, column, valid);
      column += u;
    }
    if (d.activation) {
      finish<Full>({d.out + block * d.out_block, nullptr, d.out_pixel, 0, nullptr, 0, nullptr, d.width, 1, valid,
                    d.activation, d.slope});
    }
  }
}

template <int KW, int S>
void depthwise_row_kernel(const DepthwiseArgs& d) {
  if (d.dilation == 1) return depthwise_row_split<KW, S>(d);
  // Every dilation-th output column reads every dilation-th input column: as many rows without dilation.
  DepthwiseArgs part = d;
  part.dilation = 1;
  part.in_pixel = d.in_pixel * d.dilation;
  part.out_pixel = d.out_pixel * d.dilation;
  for (int residue = 0; residue < d.dilation && residue < d.width; ++residue) {
    part.shift = d.shift + residue * d.in_pixel;
    part.out = d.out + residue * d.out_pixel;
    part.width = (d.width - residue + d.dilation - 1) / d.dilation;
    depthwise_row_split<KW, S>(part);
  }
}

void depthwise_row(const DepthwiseArgs& d) {
  if (d.dilation > 1 && d.stride == d.dilation) {
    // The columns between the taps are never read.
    DepthwiseArgs dense = d;
    dense.stride = dense.dilation = 1;
    dense.in_pixel = d.in_pixel * d.dilation;
    return depthwise_row(dense);
  }
  const int key = d.dilation == 1 || d.stride == 1 ? d.kw * 10 + d.stride : 0;
  switch (key) {
    case 31:
      return depthwise_row_kernel<3, 1>(d);
    case 32:
      return depthwise_row_kernel<3, 2>(d);
    case 51:
      return depthwise_row_kernel<5, 1>(d);
    case 52:
      return depthwise_row_kernel<5, 2>(d);
    case 71:
      return depthwise_row_kernel<7, 1>(d);
    case 72:
      return depthwise_row_kernel<7, 2>(d);
    default:
      return depthwise_row_split<0, 0>(d);
  }
}

}  // namespace
