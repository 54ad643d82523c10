// The vector vocabulary on AVX2 + FMA. Included inside an anonymous namespace.
#include <immintrin.h>
#include <stddef.h>

namespace {

struct Full {
  using T = __m256;
  static constexpr int W = 8;
  static constexpr bool kStoresByRow = false;  // tried on Zen 4: 16 registers leave little to gain
  static ALWAYS_INLINE T zero() { return _mm256_setzero_ps(); }
  // Zeros made where they are asked for: kept over a loop they would take a register from its sums.
  static ALWAYS_INLINE T new_zero() {
    T v = zero();
    asm volatile("" : "+x"(v));
    return v;
  }
  static ALWAYS_INLINE T load(const float* p) { return _mm256_loadu_ps(p); }
  static ALWAYS_INLINE void store(float* p, T v) { _mm256_storeu_ps(p, v); }
  // n < W. In halves: masked stores are slow on AMD before AVX-512.
  // No way past the caches: a vector is less than a line of them.
  static ALWAYS_INLINE void stream(float* p, T v) { store(p, v); }
  static ALWAYS_INLINE void end_streams() {}
  static ALWAYS_INLINE void store_partial(float* p, T v, int n) {
    __m128 rest = _mm256_castps256_ps128(v);
    if (n & 4) {
      _mm_storeu_ps(p, rest);
      rest = _mm256_extractf128_ps(v, 1);
      p += 4;
    }
    if (n & 2) {
      _mm_storel_pi(reinterpret_cast<__m64*>(p), rest);
      rest = _mm_movehl_ps(rest, rest);
      p += 2;
    }
    if (n & 1) _mm_store_ss(p, rest);
  }
  static ALWAYS_INLINE T load_partial(const float* p, int n) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lanes));
  }
  static ALWAYS_INLINE T broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  // What follows a pointer, for an instruction's operands. Clang wants a complete type.
#ifdef __clang__
  using Memory = const float[1 << 24];
#else
  using Memory = const float[];
#endif
  // base[ROW * stride + K], ROW 0, 1 or 2. As an instruction: GCC would keep a register for each sum of stride and K.
  template <int ROW, int K>
  static ALWAYS_INLINE T broadcast_row(const float* base, ptrdiff_t stride) {
    T v;
    if constexpr (ROW == 0) {
      v = _mm256_broadcast_ss(base + K);
    } else {
      asm("vbroadcastss %c3(%1,%2,%c4), %0"
          : "=x"(v)
          : "r"(base), "r"(stride), "i"(4 * K), "i"(4 * ROW), "m"(*reinterpret_cast<Memory*>(base)));
    }
    return v;
  }
  template <int ROW, int K>
  static ALWAYS_INLINE void accumulate_row(T& c, const float* base, ptrdiff_t stride, T b) {
    accumulate(c, broadcast_row<ROW, K>(base, stride), b);
  }
  // c += a * vector number N from p, in place. The address is spelled out: GCC would keep a register for each.
  template <int N>
  static ALWAYS_INLINE void accumulate_from(T& c, T a, const float* p) {
    asm("vfmadd231ps %c3(%2), %1, %0" : "+x"(c) : "x"(a), "r"(p), "i"(4 * N * W), "m"(*reinterpret_cast<Memory*>(p)));
  }
  // c += a * b in place. As an instruction of its own the accumulator cannot move to another register, which GCC
  // otherwise does between k steps until some no longer fit.
  static ALWAYS_INLINE void accumulate(T& c, T a, T b) { asm("vfmadd231ps %2, %1, %0" : "+x"(c) : "x"(a), "x"(b)); }
  static ALWAYS_INLINE T fma(T a, T b, T c) { return _mm256_fmadd_ps(a, b, c); }
  static ALWAYS_INLINE T add(T a, T b) { return _mm256_add_ps(a, b); }
  static ALWAYS_INLINE T sub(T a, T b) { return _mm256_sub_ps(a, b); }
  static ALWAYS_INLINE T mul(T a, T b) { return _mm256_mul_ps(a, b); }
  // g where lo < z < hi or z is NaN, else 0.
  static ALWAYS_INLINE T keep(T g, T z, T lo, T hi) {
    return _mm256_and_ps(_mm256_and_ps(g, _mm256_cmp_ps(z, lo, _CMP_NLE_UQ)), _mm256_cmp_ps(z, hi, _CMP_NGE_UQ));
  }
  static ALWAYS_INLINE T div(T a, T b) { return _mm256_div_ps(a, b); }
  // 2^(n-1) of n + 1.5 * 2^23: the low bits of such a number are n.
  static ALWAYS_INLINE T half_power(T t) {
    const auto n = _mm256_slli_epi32(_mm256_castps_si256(t), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(n, _mm256_set1_epi32(126 << 23)));
  }
  // The second operand is returned when either is NaN: the value stands second so that NaN survives.
  static ALWAYS_INLINE T clamp(T v, T lo, T hi) { return _mm256_min_ps(hi, _mm256_max_ps(lo, v)); }
};

}  // namespace
