// The vector vocabulary on AArch64 Advanced SIMD (baseline ARMv8-A). Included inside an anonymous namespace.
#include <arm_neon.h>
#include <stddef.h>

namespace {

struct Full {
  using T = float32x4_t;
  static constexpr int W = 4;
  static constexpr bool kStoresByRow = false;
  static ALWAYS_INLINE T zero() { return vdupq_n_f32(0.0f); }
  // Zeros made where they are asked for: kept over a loop they would take a register from its sums.
  static ALWAYS_INLINE T new_zero() {
    T v = zero();
    asm volatile("" : "+w"(v));
    return v;
  }
  static ALWAYS_INLINE T load(const float* p) { return vld1q_f32(p); }
  static ALWAYS_INLINE void store(float* p, T v) { vst1q_f32(p, v); }
  // No way past the caches: a vector is less than a line of them.
  static ALWAYS_INLINE void stream(float* p, T v) { store(p, v); }
  static ALWAYS_INLINE void end_streams() {}
  static ALWAYS_INLINE void store_partial(float* p, T v, int n) {
    float row[W];
    vst1q_f32(row, v);
    for (int i = 0; i < n; ++i) p[i] = row[i];
  }
  static ALWAYS_INLINE T load_partial(const float* p, int n) {
    float row[W] = {0, 0, 0, 0};
    for (int i = 0; i < n; ++i) row[i] = p[i];
    return vld1q_f32(row);
  }
  static ALWAYS_INLINE T broadcast(const float* p) { return vld1q_dup_f32(p); }
  template <int ROW, int K>
  static ALWAYS_INLINE T broadcast_row(const float* base, ptrdiff_t stride) {
    return broadcast(base + ROW * stride + K);
  }
  template <int ROW, int K>
  static ALWAYS_INLINE void accumulate_row(T& c, const float* base, ptrdiff_t stride, T b) {
    accumulate(c, broadcast_row<ROW, K>(base, stride), b);
  }
  // c += a * vector number N from p, in place.
  template <int N>
  static ALWAYS_INLINE void accumulate_from(T& c, T a, const float* p) {
    accumulate(c, a, load(p + N * W));
  }
  // c += a * b in place. As an instruction of its own the accumulator cannot move to another register, which GCC
  // otherwise does between k steps until some no longer fit.
  static ALWAYS_INLINE void accumulate(T& c, T a, T b) { asm("fmla %0.4s, %1.4s, %2.4s" : "+w"(c) : "w"(a), "w"(b)); }
  static ALWAYS_INLINE T fma(T a, T b, T c) { return vfmaq_f32(c, a, b); }
  static ALWAYS_INLINE T add(T a, T b) { return vaddq_f32(a, b); }
  static ALWAYS_INLINE T sub(T a, T b) { return vsubq_f32(a, b); }
  static ALWAYS_INLINE T mul(T a, T b) { return vmulq_f32(a, b); }
  // g where lo < z < hi or z is NaN, else 0.
  static ALWAYS_INLINE T keep(T g, T z, T lo, T hi) {
    const uint32x4_t drop = vorrq_u32(vcleq_f32(z, lo), vcgeq_f32(z, hi));
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(g), drop));
  }
  static ALWAYS_INLINE T div(T a, T b) { return vdivq_f32(a, b); }
  // 2^(n-1) of n + 1.5 * 2^23: the low bits of such a number are n.
  static ALWAYS_INLINE T half_power(T t) {
    const int32x4_t n = vshlq_n_s32(vreinterpretq_s32_f32(t), 23);
    return vreinterpretq_f32_s32(vaddq_s32(n, vdupq_n_s32(126 << 23)));
  }
  // FMIN and FMAX propagate NaN; the "nm" forms would not.
  static ALWAYS_INLINE T clamp(T v, T lo, T hi) { return vminq_f32(hi, vmaxq_f32(lo, v)); }
};

}  // namespace
