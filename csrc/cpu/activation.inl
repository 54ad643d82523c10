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
  kLog2e,
  kMinusLn2High,
  kMinusLn2Low,
  kP5,
  kP4,
  kP3,
  kP2,
  kP1,
  kP0,
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
    REPEAT16(1.44269504088896341f),
    REPEAT16(-0.693359375f),
    REPEAT16(2.12194440e-4f),
    REPEAT16(1.9875691500e-4f),
    REPEAT16(1.3981999507e-3f),
    REPEAT16(8.3334519073e-3f),
    REPEAT16(4.1665795894e-2f),
    REPEAT16(1.6666665459e-1f),
    REPEAT16(5.0000001201e-1f),
    REPEAT16(1.0f),
    REPEAT16(-86.0f),
    REPEAT16(89.0f),
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

// e^x for x in [-86, 89], infinity where that overflows; NaN passes. x = n ln 2 + r with |r| <= ln 2 / 2, then the
// polynomial of Cephes' expf in r. Relative error below 2^-23.
template <class V>
ALWAYS_INLINE typename V::T exponential(typename V::T x) {
  using T = typename V::T;
  const T shifted = V::fma(x, constant<V>(kLog2e), constant<V>(kMagic));
  const T n = V::sub(shifted, constant<V>(kMagic));
  T r = V::fma(n, constant<V>(kMinusLn2High), x);
  r = V::fma(n, constant<V>(kMinusLn2Low), r);
  T p = V::fma(constant<V>(kP5), r, constant<V>(kP4));
  p = V::fma(p, r, constant<V>(kP3));
  p = V::fma(p, r, constant<V>(kP2));
  p = V::fma(p, r, constant<V>(kP1));
  p = V::fma(p, r, constant<V>(kP0));
  p = V::fma(p, V::mul(r, r), r);
  p = V::add(p, constant<V>(kOne));
  // 2^n in two factors, 2^(n-1) and 2: n may be 128.
  p = V::mul(p, V::half_power(shifted));
  return V::add(p, p);
}

// 1 + e^-x.
template <class V>
ALWAYS_INLINE typename V::T one_plus_exp_minus(typename V::T x) {
  const typename V::T minus = V::sub(V::zero(), x);
  return V::add(constant<V>(kOne), exponential<V>(V::clamp(minus, constant<V>(kLowest), constant<V>(kHighest))));
}

template <class V>
ALWAYS_INLINE typename V::T shifted_relu6(typename V::T x) {
  return V::clamp(V::add(x, constant<V>(kThree)), V::zero(), constant<V>(kSix));
}

// The codes are those of program.h.
template <class V, int CODE>
ALWAYS_INLINE typename V::T activate(typename V::T x, typename V::T slope) {
  using T = typename V::T;
  if constexpr (CODE == kHardswish) return hardswish<V>(x, kConstants[0]);
  if constexpr (CODE == 4) return V::div(x, one_plus_exp_minus<V>(x));
  if constexpr (CODE == 5) return V::mul(shifted_relu6<V>(x), constant<V>(kSixth));
  if constexpr (CODE == 6) {
    const T below = V::clamp(x, constant<V>(kMinusInfinity), V::zero());
    return V::fma(below, slope, V::clamp(x, V::zero(), constant<V>(kInfinity)));
  }
  return V::div(constant<V>(kOne), one_plus_exp_minus<V>(x));
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

template <class V, int CODE>
NOINLINE void finish_code(const FinishArgs& f) {
  using T = typename V::T;
  const T slope = V::broadcast(&f.slope);
  for (int v = 0; v < f.vectors; ++v) {
    const int n = f.n_valid - v * V::W;
    if (n <= 0) break;
    float* column = f.c + v * f.c_vector;
    if (n >= V::W && !f.residual && !f.pool) {
      // Two pixels a turn: their chains run beside each other.
      int i = 0;
      for (; i + 2 <= f.m; i += 2) {
        float* p = column + (f.offsets ? f.offsets[i] : i * f.c_pixel);
        float* q = column + (f.offsets ? f.offsets[i + 1] : (i + 1) * f.c_pixel);
        const T y = activate<V, CODE>(V::load(p), slope), z = activate<V, CODE>(V::load(q), slope);
        V::store(p, y);
        V::store(q, z);
      }
      if (i < f.m) {
        float* p = column + (f.offsets ? f.offsets[i] : i * f.c_pixel);
        V::store(p, activate<V, CODE>(V::load(p), slope));
      }
      continue;
    }
    for (int i = 0; i < f.m; ++i) {
      float* p = column + (f.offsets ? f.offsets[i] : i * f.c_pixel);
      T y = activate<V, CODE>(n >= V::W ? V::load(p) : V::load_partial(p, n), slope);
      if (f.residual) {
        const float* r = f.residual + i * f.residual_pixel + v * V::W;
        y = V::add(y, n >= V::W ? V::load(r) : V::load_partial(r, n));
      }
      if (f.pool) V::store(f.pool + v * V::W, V::add(V::load(f.pool + v * V::W), y));
      if (n >= V::W) {
        V::store(p, y);
      } else {
        V::store_partial(p, y, n);
      }
    }
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
