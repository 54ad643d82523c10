// Activations that are no clamp: Hardswish, whose few instructions tiles and rows apply to their sums themselves, and
// for the others a pass over pixels that a tile or row has just stored. A pass of its own costs a load and a store from
// the first cache, and keeps longer formulas out of a hundred unrolled tiles. Included by the per-ISA files after a
// simd_*.h.
namespace {

constexpr int kHardswish = 3;  // in program.h
// Whether an activation is left to a pass of its own.
constexpr bool takes_pass(int activation) { return activation > kHardswish; }

// Constants as whole vectors in memory, which FMA takes as an operand: a broadcast would be an instruction of its own.
#define REPEAT4(c) c, c, c, c
#define REPEAT16(c) {REPEAT4(c), REPEAT4(c), REPEAT4(c), REPEAT4(c)}
enum Constant {
  kMagic,
  kMinusLog2e,
  kLn2High,
  kLn2Low,
  kE6,
  kE5,
  kE4,
  kE3,
  kE2,
  kE1,
  kE0,
  kOne,
  kLowest,
  kHighest,
  kZero,
  kThree,
  kSix,
  kSixth,
  kInfinity,
  kMinusInfinity
};
alignas(64) const float kConstants[][16] = {
    REPEAT16(12582912.0f),  // 1.5 * 2^23: adding it rounds to an integer
    REPEAT16(-1.44269504088896341f),
    REPEAT16(0.693359375f),
    REPEAT16(-2.12194440e-4f),
    // 2 e^-s for |s| <= ln 2 / 2: minimax in the relative error, 3e-9, with the last two given.
    REPEAT16(2 * 1.38145401768e-3f),
    REPEAT16(2 * -8.36874510894e-3f),
    REPEAT16(2 * 4.16683907835e-2f),
    REPEAT16(2 * -0.16666520399f),
    REPEAT16(2 * 0.499999934321f),
    REPEAT16(-2.0f),
    REPEAT16(2.0f),
    REPEAT16(1.0f),
    REPEAT16(-89.0f),
    REPEAT16(86.0f),
    REPEAT16(0.0f),
    REPEAT16(3.0f),
    REPEAT16(6.0f),
    REPEAT16(1.0f / 6.0f),
    REPEAT16(__builtin_inff()),
    REPEAT16(-__builtin_inff()),
};
#undef REPEAT16
#undef REPEAT4

// `constants` is kConstants, perhaps in a pointer that the compiler cannot see through.
template <class V>
ALWAYS_INLINE typename V::T hardswish(typename V::T x, const float* constants) {
  using T = typename V::T;
  const T y = V::clamp(V::add(x, V::load(constants + 16 * kThree)), V::load(constants + 16 * kZero),
                       V::load(constants + 16 * kSix));
  return V::mul(x, V::mul(y, V::load(constants + 16 * kSixth)));
}

// Of a tile's or a row's sums and their bias, in place. The constants are read where they are used: kept over the loops
// around it they would take registers from the sums.
template <class V, int N>
ALWAYS_INLINE void hardswish_sums(typename V::T (&acc)[N], typename V::T bias) {
  const float* constants = kConstants[0];
  READ_EVERY_TURN(constants);
  UNROLL for (int i = 0; i < N; ++i) acc[i] = hardswish<V>(V::add(acc[i], bias), constants);
}

template <class V, int M, int N>
ALWAYS_INLINE void hardswish_sums(typename V::T (&acc)[M][N], const typename V::T (&bias)[N]) {
  const float* constants = kConstants[0];
  READ_EVERY_TURN(constants);
  UNROLL for (int m = 0; m < M; ++m) {
    UNROLL for (int n = 0; n < N; ++n) acc[m][n] = hardswish<V>(V::add(acc[m][n], bias[n]), constants);
  }
}

template <class V>
ALWAYS_INLINE typename V::T constant(Constant c) {
  return V::load(kConstants[c]);
}

// 1 + e^-x of U vectors, step by step: one vector's chain is longer than the processor looks ahead. Infinite where e^-x
// overflows; NaN passes. -x = n ln 2 - s with |s| <= ln 2 / 2, and e^-x = 2^(n-1) * 2 e^-s, since n may be 128.
// Relative error of e^-x below 2^-23.
template <class V, int U>
ALWAYS_INLINE void one_plus_exp_minus(const typename V::T (&x)[U], typename V::T (&sum)[U]) {
  using T = typename V::T;
  T s[U], shifted[U];
  UNROLL for (int u = 0; u < U; ++u) s[u] = V::clamp(x[u], constant<V>(kLowest), constant<V>(kHighest));
  UNROLL for (int u = 0; u < U; ++u) shifted[u] = V::fma(s[u], constant<V>(kMinusLog2e), constant<V>(kMagic));
  UNROLL for (int u = 0; u < U; ++u) {
    const T n = V::sub(shifted[u], constant<V>(kMagic));
    s[u] = V::fma(n, constant<V>(kLn2High), s[u]);
    s[u] = V::fma(n, constant<V>(kLn2Low), s[u]);
  }
  UNROLL for (int u = 0; u < U; ++u) sum[u] = V::fma(constant<V>(kE6), s[u], constant<V>(kE5));
  UNROLL for (int e = kE4; e <= kE0; ++e) {
    UNROLL for (int u = 0; u < U; ++u) sum[u] = V::fma(sum[u], s[u], V::load(kConstants[e]));
  }
  UNROLL for (int u = 0; u < U; ++u) sum[u] = V::fma(sum[u], V::half_power(shifted[u]), constant<V>(kOne));
}

template <class V>
ALWAYS_INLINE typename V::T shifted_relu6(typename V::T x) {
  return V::clamp(V::add(x, constant<V>(kThree)), V::zero(), constant<V>(kSix));
}

// The codes are those of program.h.
template <class V, int CODE, int U>
ALWAYS_INLINE void activate(typename V::T (&x)[U], typename V::T slope) {
  using T = typename V::T;
  if constexpr (CODE == 4 || CODE == 7) {
    T sum[U];
    one_plus_exp_minus<V>(x, sum);
    UNROLL for (int u = 0; u < U; ++u) x[u] = V::div(CODE == 4 ? x[u] : constant<V>(kOne), sum[u]);
    return;
  }
  UNROLL for (int u = 0; u < U; ++u) {
    if constexpr (CODE == kHardswish) x[u] = hardswish<V>(x[u], kConstants[0]);
    if constexpr (CODE == 5) x[u] = V::mul(shifted_relu6<V>(x[u]), constant<V>(kSixth));
    if constexpr (CODE == 6) {
      const T below = V::clamp(x[u], constant<V>(kMinusInfinity), V::zero());
      x[u] = V::fma(below, slope, V::clamp(x[u], V::zero(), constant<V>(kInfinity)));
    }
  }
}

// `m` pixels of `vectors` vectors, in place.
struct FinishArgs {
  float* c;
  const int32_t* offsets;  // of pixels, or null
  ptrdiff_t c_pixel, c_vector;
  const float* residual;  // null, or added afterwards
  ptrdiff_t residual_pixel;
  float* pool;  // null, or sums over pixels
  int m, vectors, n_valid;
  int activation;
  float slope;
};

// Pixels [i, i + U) of one vector of channels, the first `n` of them.
template <class V, int CODE, int U>
ALWAYS_INLINE void finish_pixels(const FinishArgs& f, int v, int n, int i, typename V::T slope) {
  using T = typename V::T;
  float* at[U];
  T y[U];
  UNROLL for (int u = 0; u < U; ++u) {
    at[u] = f.c + v * f.c_vector + (f.offsets ? f.offsets[i + u] : (i + u) * f.c_pixel);
    y[u] = n >= V::W ? V::load(at[u]) : V::load_partial(at[u], n);
  }
  activate<V, CODE>(y, slope);
  UNROLL for (int u = 0; u < U; ++u) {
    if (f.residual) {
      const float* r = f.residual + (i + u) * f.residual_pixel + v * V::W;
      y[u] = V::add(y[u], n >= V::W ? V::load(r) : V::load_partial(r, n));
    }
    if (f.pool) V::store(f.pool + v * V::W, V::add(V::load(f.pool + v * V::W), y[u]));
    if (n >= V::W) {
      V::store(at[u], y[u]);
    } else {
      V::store_partial(at[u], y[u], n);
    }
  }
}

template <class V, int CODE>
NOINLINE void finish_code(const FinishArgs& f) {
  const typename V::T slope = V::broadcast(&f.slope);
  for (int v = 0; v < f.vectors; ++v) {
    const int n = f.n_valid - v * V::W;
    if (n <= 0) break;
    int i = 0;
    for (; i + 4 <= f.m; i += 4) finish_pixels<V, CODE, 4>(f, v, n, i, slope);
    for (; i < f.m; ++i) finish_pixels<V, CODE, 1>(f, v, n, i, slope);
  }
}

template <class V>
NOINLINE void finish_rows(const FinishArgs& f) {
  switch (f.activation) {
    case kHardswish:
      return finish_code<V, kHardswish>(f);
    case 4:
      return finish_code<V, 4>(f);
    case 5:
      return finish_code<V, 5>(f);
    case 6:
      return finish_code<V, 6>(f);
    case 7:
      return finish_code<V, 7>(f);
  }
}

}  // namespace
