// The vector vocabulary on AVX2 + FMA. Included inside an anonymous namespace.
#include <immintrin.h>

namespace {

struct Full {
  using T = __m256;
  static constexpr int W = 8;
  static ALWAYS_INLINE T zero() { return _mm256_setzero_ps(); }
  static ALWAYS_INLINE T load(const float* p) { return _mm256_loadu_ps(p); }
  static ALWAYS_INLINE void store(float* p, T v) { _mm256_storeu_ps(p, v); }
  // Through a stack row: masked stores are slow on AMD before AVX-512.
  static ALWAYS_INLINE void store_partial(float* p, T v, int n) {
    float row[W];
    _mm256_storeu_ps(row, v);
    for (int i = 0; i < n; ++i) p[i] = row[i];
  }
  static ALWAYS_INLINE T load_partial(const float* p, int n) {
    float row[W] = {0, 0, 0, 0, 0, 0, 0, 0};
    for (int i = 0; i < n; ++i) row[i] = p[i];
    return _mm256_loadu_ps(row);
  }
  static ALWAYS_INLINE T broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  // c += a * b in place. As an instruction of its own the accumulator cannot move to another register, which GCC
  // otherwise does between k steps until some no longer fit.
  static ALWAYS_INLINE void accumulate(T& c, T a, T b) { asm("vfmadd231ps %2, %1, %0" : "+x"(c) : "x"(a), "x"(b)); }
  static ALWAYS_INLINE T fma(T a, T b, T c) { return _mm256_fmadd_ps(a, b, c); }
  static ALWAYS_INLINE T add(T a, T b) { return _mm256_add_ps(a, b); }
  // The second operand is returned when either is NaN: the value stands second so that NaN survives.
  static ALWAYS_INLINE T clamp(T v, T lo, T hi) { return _mm256_min_ps(hi, _mm256_max_ps(lo, v)); }
};

}  // namespace
