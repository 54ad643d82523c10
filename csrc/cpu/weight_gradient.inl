// Depthwise weight gradient: the taps of R kernel rows as accumulators in registers, one walk over the output columns.
// Every tap is one chain over the columns, whatever R is, so that instruction sets agree. Included by the per-ISA files
// after a simd_*.h, with kWeightGradientTaps accumulators.
namespace {

template <int R, int KW, int S>
NOINLINE void weight_gradient_tile(const WeightGradientArgs& d, int block, int ky) {
  using T = Full::T;
  float* sums = d.sums + (static_cast<ptrdiff_t>(block) * d.kh + ky) * KW * Full::W;
  T acc[R][KW];
  const float* x[R];
  UNROLL for (int r = 0; r < R; ++r) {
    x[r] = d.rows[ky + r] + block * d.in_block;
    UNROLL for (int k = 0; k < KW; ++k) acc[r][k] = Full::load(sums + (r * KW + k) * Full::W);
  }
  const float* g = d.g + block * d.g_block;
  for (int i = d.width; i > 0; --i) {
    const T gradient = Full::load(g);
    g += Full::W;
    UNROLL for (int r = 0; r < R; ++r) {
      // Not accumulate(): with the load as an operand of the FMA no further register is needed.
      UNROLL for (int k = 0; k < KW; ++k) acc[r][k] = Full::fma(gradient, Full::load(x[r] + k * Full::W), acc[r][k]);
      x[r] += S * Full::W;
      KEEP_IN_REGISTER(x[r]);  // else the compiler carries inputs from one column to the next, through the stack
    }
  }
  UNROLL for (int r = 0; r < R; ++r) {
    UNROLL for (int k = 0; k < KW; ++k) Full::store(sums + (r * KW + k) * Full::W, acc[r][k]);
  }
}

template <int R, int KW, int S>
ALWAYS_INLINE void weight_gradient_rest(const WeightGradientArgs& d, int block, int ky, int rows) {
  if constexpr (R > 0) {
    if (rows == R) {
      weight_gradient_tile<R, KW, S>(d, block, ky);
    } else {
      weight_gradient_rest<R - 1, KW, S>(d, block, ky, rows);
    }
  }
}

template <int KW, int S>
void weight_gradient_fixed(const WeightGradientArgs& d) {
  constexpr int kMost = kWeightGradientTaps / KW < KW ? kWeightGradientTaps / KW : KW;
  for (int block = 0; block < d.blocks; ++block) {
    for (int ky = d.ky_begin; ky < d.ky_end; ky += kMost) {
      weight_gradient_rest<kMost, KW, S>(d, block, ky, d.ky_end - ky < kMost ? d.ky_end - ky : kMost);
    }
  }
}

// Any kernel width, stride and dilation: up to four taps of one kernel row at a time.
template <int TAPS>
NOINLINE void weight_gradient_taps(const WeightGradientArgs& d, int block, int ky, int kx) {
  using T = Full::T;
  float* sums = d.sums + ((static_cast<ptrdiff_t>(block) * d.kh + ky) * d.kw + kx) * Full::W;
  T acc[TAPS];
  UNROLL for (int k = 0; k < TAPS; ++k) acc[k] = Full::load(sums + k * Full::W);
  const ptrdiff_t tap = static_cast<ptrdiff_t>(d.dilation) * Full::W;
  const float* x = d.rows[ky] + block * d.in_block + kx * tap;
  const float* g = d.g + block * d.g_block;
  for (int i = d.width; i > 0; --i) {
    const T gradient = Full::load(g);
    UNROLL for (int k = 0; k < TAPS; ++k) Full::accumulate(acc[k], gradient, Full::load(x + k * tap));
    g += Full::W;
    x += static_cast<ptrdiff_t>(d.stride) * Full::W;
  }
  UNROLL for (int k = 0; k < TAPS; ++k) Full::store(sums + k * Full::W, acc[k]);
}

void weight_gradient_any(const WeightGradientArgs& d) {
  for (int block = 0; block < d.blocks; ++block) {
    for (int ky = d.ky_begin; ky < d.ky_end; ++ky) {
      int kx = 0;
      for (; kx + 4 <= d.kw; kx += 4) weight_gradient_taps<4>(d, block, ky, kx);
      for (; kx < d.kw; ++kx) weight_gradient_taps<1>(d, block, ky, kx);
    }
  }
}

void weight_gradient_row(const WeightGradientArgs& d) {
  const int key = d.dilation == 1 ? d.kw * 10 + d.stride : 0;
  switch (key) {
    case 31:
      return weight_gradient_fixed<3, 1>(d);
    case 32:
      return weight_gradient_fixed<3, 2>(d);
    case 51:
      return weight_gradient_fixed<5, 1>(d);
    case 52:
      return weight_gradient_fixed<5, 2>(d);
    default:
      return weight_gradient_any(d);
  }
}

}  // namespace
