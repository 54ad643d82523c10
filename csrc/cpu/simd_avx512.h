// The vector vocabulary on AVX-512 F/BW/DQ/VL. Included inside an anonymous namespace.
#include <immintrin.h>
#include <stddef.h>

namespace {

// What follows a pointer, for an instruction's operands. Clang wants a complete type.
#ifdef __clang__
using Memory = const float[1 << 24];
#else
using Memory = const float[];
#endif

struct Full {
  using T = __m512;
  static constexpr int W = 16;
  static constexpr bool kStoresByRow = true;  // gemm_last_steps
  static ALWAYS_INLINE T zero() { return _mm512_setzero_ps(); }
  // Zeros made where they are asked for: kept over a loop they would take a register from its sums.
  static ALWAYS_INLINE T new_zero() {
    T v = zero();
    asm volatile("" : "+v"(v));
    return v;
  }
  static ALWAYS_INLINE T load(const float* p) { return _mm512_loadu_ps(p); }
  // A load that the compiler does not repeat where it would rather have the register.
  static ALWAYS_INLINE T load_once(const float* p) {
    T v = load(p);
    asm volatile("" : "+v"(v));
    return v;
  }
  static ALWAYS_INLINE void store(float* p, T v) { _mm512_storeu_ps(p, v); }
  // Past the caches, to a multiple of 64 bytes; visible to other threads from end_streams on.
  static ALWAYS_INLINE void stream(float* p, T v) { _mm512_stream_ps(p, v); }
  static ALWAYS_INLINE void end_streams() { _mm_sfence(); }
  static ALWAYS_INLINE void store_partial(float* p, T v, int n) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
  }
  static ALWAYS_INLINE T load_partial(const float* p, int n) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
  }
  static ALWAYS_INLINE T broadcast(const float* p) { return _mm512_set1_ps(*p); }
  // base[ROW * stride + K], ROW 0, 1 or 2. As an instruction: GCC would keep a register for each sum of stride and K.
  template <int ROW, int K>
  static ALWAYS_INLINE T broadcast_row(const float* base, ptrdiff_t stride) {
    T v;
    if constexpr (ROW == 0) {
      v = broadcast(base + K);
    } else {
      asm("vbroadcastss %c3(%1,%2,%c4), %0"
          : "=v"(v)
          : "r"(base), "r"(stride), "i"(4 * K), "i"(4 * ROW), "m"(*reinterpret_cast<Memory*>(base)));
    }
    return v;
  }
  // c += base[ROW * stride + K] * b, in place.
  template <int ROW, int K>
  static ALWAYS_INLINE void accumulate_row(T& c, const float* base, ptrdiff_t stride, T b) {
    if constexpr (ROW == 0) {
      asm("vfmadd231ps %c2(%1)%{1to16%}, %3, %0"
          : "+v"(c)
          : "r"(base), "i"(4 * K), "v"(b), "m"(*reinterpret_cast<Memory*>(base)));
    } else {
      asm("vfmadd231ps %c3(%1,%2,%c4)%{1to16%}, %5, %0"
          : "+v"(c)
          : "r"(base), "r"(stride), "i"(4 * K), "i"(4 * ROW), "v"(b), "m"(*reinterpret_cast<Memory*>(base)));
    }
  }
  // c += a * vector number N from p, in place. The address is spelled out: GCC would keep a register for each.
  template <int N>
  static ALWAYS_INLINE void accumulate_from(T& c, T a, const float* p) {
    asm("vfmadd231ps %c3(%2), %1, %0" : "+v"(c) : "v"(a), "r"(p), "i"(4 * N * W), "m"(*reinterpret_cast<Memory*>(p)));
  }
  // c += a * b in place. As an instruction of its own the accumulator cannot move to another register, which GCC
  // otherwise does between k steps until some no longer fit.
  static ALWAYS_INLINE void accumulate(T& c, T a, T b) { asm("vfmadd231ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b)); }
  static ALWAYS_INLINE T fma(T a, T b, T c) { return _mm512_fmadd_ps(a, b, c); }
  static ALWAYS_INLINE T add(T a, T b) { return _mm512_add_ps(a, b); }
  static ALWAYS_INLINE T sub(T a, T b) { return _mm512_sub_ps(a, b); }
  static ALWAYS_INLINE T mul(T a, T b) { return _mm512_mul_ps(a, b); }
  // g where lo < z < hi or z is NaN, else 0.
  static ALWAYS_INLINE T keep(T g, T z, T lo, T hi) {
    const __mmask16 above = _mm512_cmp_ps_mask(z, lo, _CMP_NLE_UQ);
    return _mm512_maskz_mov_ps(_mm512_mask_cmp_ps_mask(above, z, hi, _CMP_NGE_UQ), g);
  }
  static ALWAYS_INLINE T div(T a, T b) { return _mm512_div_ps(a, b); }
  // 2^(n-1) of n + 1.5 * 2^23: the low bits of such a number are n.
  static ALWAYS_INLINE T half_power(T t) {
    const auto n = _mm512_slli_epi32(_mm512_castps_si512(t), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(n, _mm512_set1_epi32(126 << 23)));
  }
  // The second operand is returned when either is NaN: the value stands second so that NaN survives.
  static ALWAYS_INLINE T clamp(T v, T lo, T hi) { return _mm512_min_ps(hi, _mm512_max_ps(lo, v)); }
};

struct Half {
  using T = __m256;
  static constexpr int W = 8;
  static constexpr bool kStoresByRow = true;
  static ALWAYS_INLINE T zero() { return _mm256_setzero_ps(); }
  // Zeros made where they are asked for: kept over a loop they would take a register from its sums.
  static ALWAYS_INLINE T new_zero() {
    T v = zero();
    asm volatile("" : "+v"(v));
    return v;
  }
  static ALWAYS_INLINE T load(const float* p) { return _mm256_loadu_ps(p); }
  // A load that the compiler does not repeat where it would rather have the register.
  static ALWAYS_INLINE T load_once(const float* p) {
    T v = load(p);
    asm volatile("" : "+v"(v));
    return v;
  }
  static ALWAYS_INLINE void store(float* p, T v) { _mm256_storeu_ps(p, v); }
  static ALWAYS_INLINE void store_partial(float* p, T v, int n) {
    _mm256_mask_storeu_ps(p, static_cast<__mmask8>((1u << n) - 1), v);
  }
  static ALWAYS_INLINE T load_partial(const float* p, int n) {
    return _mm256_maskz_loadu_ps(static_cast<__mmask8>((1u << n) - 1), p);
  }
  static ALWAYS_INLINE T broadcast(const float* p) { return _mm256_set1_ps(*p); }
  // base[ROW * stride + K], ROW 0, 1 or 2. As an instruction: GCC would keep a register for each sum of stride and K.
  template <int ROW, int K>
  static ALWAYS_INLINE T broadcast_row(const float* base, ptrdiff_t stride) {
    T v;
    if constexpr (ROW == 0) {
      v = broadcast(base + K);
    } else {
      asm("vbroadcastss %c3(%1,%2,%c4), %0"
          : "=v"(v)
          : "r"(base), "r"(stride), "i"(4 * K), "i"(4 * ROW), "m"(*reinterpret_cast<Memory*>(base)));
    }
    return v;
  }
  // c += base[ROW * stride + K] * b, in place.
  template <int ROW, int K>
  static ALWAYS_INLINE void accumulate_row(T& c, const float* base, ptrdiff_t stride, T b) {
    if constexpr (ROW == 0) {
      asm("vfmadd231ps %c2(%1)%{1to8%}, %3, %0"
          : "+v"(c)
          : "r"(base), "i"(4 * K), "v"(b), "m"(*reinterpret_cast<Memory*>(base)));
    } else {
      asm("vfmadd231ps %c3(%1,%2,%c4)%{1to8%}, %5, %0"
          : "+v"(c)
          : "r"(base), "r"(stride), "i"(4 * K), "i"(4 * ROW), "v"(b), "m"(*reinterpret_cast<Memory*>(base)));
    }
  }
  // c += a * vector number N from p, in place. The address is spelled out: GCC would keep a register for each.
  template <int N>
  static ALWAYS_INLINE void accumulate_from(T& c, T a, const float* p) {
    asm("vfmadd231ps %c3(%2), %1, %0" : "+v"(c) : "v"(a), "r"(p), "i"(4 * N * W), "m"(*reinterpret_cast<Memory*>(p)));
  }
  // c += a * b in place. As an instruction of its own the accumulator cannot move to another register, which GCC
  // otherwise does between k steps until some no longer fit.
  static ALWAYS_INLINE void accumulate(T& c, T a, T b) { asm("vfmadd231ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b)); }
  static ALWAYS_INLINE T fma(T a, T b, T c) { return _mm256_fmadd_ps(a, b, c); }
  static ALWAYS_INLINE T add(T a, T b) { return _mm256_add_ps(a, b); }
  static ALWAYS_INLINE T sub(T a, T b) { return _mm256_sub_ps(a, b); }
  static ALWAYS_INLINE T mul(T a, T b) { return _mm256_mul_ps(a, b); }
  static ALWAYS_INLINE T div(T a, T b) { return _mm256_div_ps(a, b); }
  // 2^(n-1) of n + 1.5 * 2^23: the low bits of such a number are n.
  static ALWAYS_INLINE T half_power(T t) {
    const auto n = _mm256_slli_epi32(_mm256_castps_si256(t), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(n, _mm256_set1_epi32(126 << 23)));
  }
  static ALWAYS_INLINE T clamp(T v, T lo, T hi) { return _mm256_min_ps(hi, _mm256_max_ps(lo, v)); }
};

}  // namespace
