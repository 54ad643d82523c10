// The vector vocabulary in plain C++: one lane. Its FMA is a true fused one, so results equal the vector ISAs' bit for
// bit; without FMA hardware that is a slow library call, which is why dispatch prefers PyTorch to this ISA.
#include <stddef.h>
#include <stdint.h>

namespace {

struct Full {
  using T = float;
  static constexpr int W = 1;
  static constexpr bool kStoresByRow = false;
  static ALWAYS_INLINE T zero() { return 0.0f; }
  static ALWAYS_INLINE T new_zero() { return 0; }
  static ALWAYS_INLINE T load(const float* p) { return *p; }
  static ALWAYS_INLINE void store(float* p, T v) { *p = v; }
  // No way past the caches: a vector is less than a line of them.
  static ALWAYS_INLINE void stream(float* p, T v) { store(p, v); }
  static ALWAYS_INLINE void end_streams() {}
  static ALWAYS_INLINE void store_partial(float* p, T v, int) { *p = v; }
  static ALWAYS_INLINE T load_partial(const float* p, int) { return *p; }
  static ALWAYS_INLINE T broadcast(const float* p) { return *p; }
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
  static ALWAYS_INLINE void accumulate(T& c, T a, T b) { c = __builtin_fmaf(a, b, c); }
  static ALWAYS_INLINE T fma(T a, T b, T c) { return __builtin_fmaf(a, b, c); }
  static ALWAYS_INLINE T add(T a, T b) { return a + b; }
  static ALWAYS_INLINE T sub(T a, T b) { return a - b; }
  static ALWAYS_INLINE T mul(T a, T b) { return a * b; }
  // g where lo < z < hi or z is NaN, else 0.
  static ALWAYS_INLINE T keep(T g, T z, T lo, T hi) { return z <= lo || z >= hi ? 0.0f : g; }
  static ALWAYS_INLINE T div(T a, T b) { return a / b; }
  // 2^(n-1) of n + 1.5 * 2^23: the low bits of such a number are n.
  static ALWAYS_INLINE T half_power(T t) {
    uint32_t bits;
    __builtin_memcpy(&bits, &t, sizeof bits);
    bits = (bits << 23) + (126u << 23);
    __builtin_memcpy(&t, &bits, sizeof bits);
    return t;
  }
  // Written so that a NaN fails both comparisons and survives.
  static ALWAYS_INLINE T clamp(T v, T lo, T hi) {
    v = v < lo ? lo : v;
    return v > hi ? hi : v;
  }
};

}  // namespace
