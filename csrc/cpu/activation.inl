// Activations that are no clamp: a pass over pixels that a tile or row has just stored, in its registers' order.
// Included by the per-ISA files after a simd_*.h. A pass of its own costs a load and a store from the first cache, and
// keeps six activations out of a hundred unrolled tiles.
namespace {

template <class V>
ALWAYS_INLINE typename V::T constant(float v) {
  return V::broadcast(&v);
}

// e^x for x in [-86, 89], infinity where that overflows; NaN passes. x = n ln 2 + r with |r| <= ln 2 / 2, then the
// polynomial of Cephes' expf in r. Relative error below 2^-23.
template <class V>
ALWAYS_INLINE typename V::T exponential(typename V::T x) {
  using T = typename V::T;
  const T magic = constant<V>(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const T shifted = V::fma(x, constant<V>(1.44269504088896341f), magic);
  const T n = V::sub(shifted, magic);
  T r = V::fma(n, constant<V>(-0.693359375f), x);
  r = V::fma(n, constant<V>(2.12194440e-4f), r);
  T p = constant<V>(1.9875691500e-4f);
  p = V::fma(p, r, constant<V>(1.3981999507e-3f));
  p = V::fma(p, r, constant<V>(8.3334519073e-3f));
  p = V::fma(p, r, constant<V>(4.1665795894e-2f));
  p = V::fma(p, r, constant<V>(1.6666665459e-1f));
  p = V::fma(p, r, constant<V>(5.0000001201e-1f));
  p = V::fma(p, V::mul(r, r), r);
  p = V::add(p, constant<V>(1.0f));
  // 2^n in two factors: n may be 128.
  const T power = V::half_power(shifted);
  return V::add(V::mul(p, power), V::mul(p, power));
}

// 1 + e^-x.
template <class V>
ALWAYS_INLINE typename V::T one_plus_exp_minus(typename V::T x) {
  const typename V::T minus = V::sub(V::zero(), x);
  return V::add(constant<V>(1.0f), exponential<V>(V::clamp(minus, constant<V>(-86.0f), constant<V>(89.0f))));
}

template <class V>
ALWAYS_INLINE typename V::T shifted_relu6(typename V::T x) {
  return V::clamp(V::add(x, constant<V>(3.0f)), V::zero(), constant<V>(6.0f));
}

// The codes are those of program.h.
template <class V, int CODE>
ALWAYS_INLINE typename V::T activate(typename V::T x, float slope) {
  using T = typename V::T;
  const float infinity = __builtin_inff();
  if constexpr (CODE == 3) return V::mul(x, V::mul(shifted_relu6<V>(x), constant<V>(1.0f / 6.0f)));
  if constexpr (CODE == 4) return V::div(x, one_plus_exp_minus<V>(x));
  if constexpr (CODE == 5) return V::mul(shifted_relu6<V>(x), constant<V>(1.0f / 6.0f));
  if constexpr (CODE == 6) {
    const T below = V::clamp(x, constant<V>(-infinity), V::zero()),
            above = V::clamp(x, V::zero(), constant<V>(infinity));
    return V::fma(below, constant<V>(slope), above);
  }
  return V::div(constant<V>(1.0f), one_plus_exp_minus<V>(x));
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
  for (int v = 0; v < f.vectors; ++v) {
    const int n = f.n_valid - v * V::W;
    if (n <= 0) break;
    float* column = f.c + v * f.c_vector;
    if (n >= V::W && !f.residual && !f.pool) {
      for (int i = 0; i < f.m; ++i) {
        float* p = column + (f.offsets ? f.offsets[i] : i * f.c_pixel);
        V::store(p, activate<V, CODE>(V::load(p), f.slope));
      }
      continue;
    }
    for (int i = 0; i < f.m; ++i) {
      float* p = column + (f.offsets ? f.offsets[i] : i * f.c_pixel);
      T y = activate<V, CODE>(n >= V::W ? V::load(p) : V::load_partial(p, n), f.slope);
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
NOINLINE void finish(const FinishArgs& f) {
  switch (f.activation) {
    case 3:
      return finish_code<V, 3>(f);
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
