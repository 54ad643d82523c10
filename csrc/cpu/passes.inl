// Elementwise passes over channels_last rows with one coefficient per channel. Included by the per-ISA files after a
// simd_*.h.
#include "prefetch.inl"

namespace {

// Pixels that one channel block takes before the next one has its turn. A few: then memory is read and written in runs
// of whole pixels, which the processor prefetches. It decides bits.
constexpr int kTilePixels = 8;

template <bool Partial>
ALWAYS_INLINE Full::T get(const float* p, int valid) {
  if constexpr (Partial) return Full::load_partial(p, valid);
  return Full::load(p);
}

template <bool Partial>
ALWAYS_INLINE Full::T get_or_zero(const float* p, int at, int valid) {
  return p ? get<Partial>(p + at, valid) : Full::zero();
}

template <bool Partial>
ALWAYS_INLINE void put(float* p, Full::T v, int valid) {
  if constexpr (Partial) {
    Full::store_partial(p, v, valid);
  } else {
    Full::store(p, v);
  }
}

// Body::run<Partial>(args, first pixel, pixels, first channel, channels of the block) over tiles and channel blocks.
template <class Body, class Args>
ALWAYS_INLINE void over_tiles(const Args& p) {
  for (int from = 0; from < p.pixels; from += kTilePixels) {
    const int count = p.pixels - from < kTilePixels ? p.pixels - from : kTilePixels;
    int channel = 0;
    for (; channel + Full::W <= p.channels; channel += Full::W) {
      Body::template run<false>(p, from, count, channel, Full::W);
    }
    if (channel < p.channels) Body::template run<true>(p, from, count, channel, p.channels - channel);
  }
}

struct Apply {
  template <bool Partial>
  static ALWAYS_INLINE void run(const PassArgs& p, int from, int count, int channel, int valid) {
    const Full::T scale = get<Partial>(p.scale + channel, valid), shift = get<Partial>(p.shift + channel, valid);
    const Full::T lo = Full::broadcast(&p.lo), hi = Full::broadcast(&p.hi);
    ptrdiff_t at = from * p.pitch + channel;
    for (int i = 0; i < count; ++i, at += p.pitch) {
      Full::T y = Full::clamp(Full::fma(get<Partial>(p.x + at, valid), scale, shift), lo, hi);
      if (p.r) y = Full::add(y, get<Partial>(p.r + at, valid));
      put<Partial>(p.y + at, y, valid);
    }
  }
};

// Four chains, so that one addition need not wait for the last; joined in a fixed order.
struct Sums {
  Full::T sum[4], sum_x[4];
  ALWAYS_INLINE Sums() { UNROLL for (int i = 0; i < 4; ++i) sum[i] = sum_x[i] = Full::zero(); }
  template <bool Partial>
  ALWAYS_INLINE void store(const PassArgs& p, int channel, int valid) {
    const Full::T s = Full::add(Full::add(sum[0], sum[1]), Full::add(sum[2], sum[3]));
    const Full::T x = Full::add(Full::add(sum_x[0], sum_x[1]), Full::add(sum_x[2], sum_x[3]));
    put<Partial>(p.sum + channel, Full::add(get<Partial>(p.sum + channel, valid), s), valid);
    put<Partial>(p.sum_x + channel, Full::add(get<Partial>(p.sum_x + channel, valid), x), valid);
  }
};

struct Moments {
  template <bool Partial>
  static ALWAYS_INLINE void run(const PassArgs& p, int from, int count, int channel, int valid) {
    const Full::T center = get_or_zero<Partial>(p.center, channel, valid);
    Sums s;
    ptrdiff_t at = from * p.pitch + channel;
    auto step = [&](int chain) {
      const Full::T d = Full::sub(get<Partial>(p.x + at, valid), center);
      s.sum[chain] = Full::add(s.sum[chain], d);
      s.sum_x[chain] = Full::fma(d, d, s.sum_x[chain]);
      at += p.pitch;
    };
    int i = 0;
    for (; i + 4 <= count; i += 4) {
      step(0);
      step(1);
      step(2);
      step(3);
    }
    for (; i < count; ++i) step(0);
    s.store<Partial>(p, channel, valid);
  }
};

template <bool Write>
struct Reduce {
  template <bool Partial>
  static ALWAYS_INLINE void run(const PassArgs& p, int from, int count, int channel, int valid) {
    const Full::T scale = get<Partial>(p.scale + channel, valid), shift = get<Partial>(p.shift + channel, valid);
    const Full::T lo = Full::broadcast(&p.lo), hi = Full::broadcast(&p.hi);
    const Full::T center = get_or_zero<Partial>(p.center, channel, valid);
    Sums s;
    ptrdiff_t at = from * p.pitch + channel;
    auto step = [&](int chain) {
      const Full::T x = get<Partial>(p.x + at, valid);
      const Full::T g = Full::keep(get<Partial>(p.g + at, valid), Full::fma(x, scale, shift), lo, hi);
      s.sum[chain] = Full::add(s.sum[chain], g);
      s.sum_x[chain] = Full::fma(g, Full::sub(x, center), s.sum_x[chain]);
      if constexpr (Write) put<Partial>(p.y + at, g, valid);
      at += p.pitch;
    };
    int i = 0;
    for (; i + 4 <= count; i += 4) {
      step(0);
      step(1);
      step(2);
      step(3);
    }
    for (; i < count; ++i) step(0);
    s.store<Partial>(p, channel, valid);
  }
};

struct Gradient {
  template <bool Partial>
  static ALWAYS_INLINE void run(const PassArgs& p, int from, int count, int channel, int valid) {
    const Full::T scale = get<Partial>(p.scale + channel, valid), shift = get<Partial>(p.shift + channel, valid);
    const Full::T lo = Full::broadcast(&p.lo), hi = Full::broadcast(&p.hi);
    const Full::T a = get<Partial>(p.a + channel, valid), center = get_or_zero<Partial>(p.center, channel, valid);
    const Full::T b = get_or_zero<Partial>(p.b, channel, valid), c = get_or_zero<Partial>(p.c, channel, valid);
    ptrdiff_t at = from * p.pitch + channel;
    for (int i = 0; i < count; ++i, at += p.pitch) {
      const Full::T x = get<Partial>(p.x + at, valid);
      const Full::T g = Full::keep(get<Partial>(p.g + at, valid), Full::fma(x, scale, shift), lo, hi);
      Full::T y = Full::mul(g, a);
      if (p.b) y = Full::add(y, Full::fma(Full::sub(x, center), b, c));
      put<Partial>(p.y + at, y, valid);
    }
  }
};

void pass_apply(const PassArgs& p) { over_tiles<Apply>(p); }
void pass_moments(const PassArgs& p) { over_tiles<Moments>(p); }
void pass_gradient(const PassArgs& p) { over_tiles<Gradient>(p); }
void pass_reduce(const PassArgs& p) {
  if (p.y) {
    over_tiles<Reduce<true>>(p);
  } else {
    over_tiles<Reduce<false>>(p);
  }
}

struct Gather {
  template <bool Partial>
  static ALWAYS_INLINE void run(const GatherArgs& r, int from, int count, int channel, int valid) {
    const float* x = r.x + from * r.pitch + channel;
    float* out = r.out + channel / Full::W * r.block + from * Full::W;
    const ptrdiff_t ahead = r.pixels * r.pitch;  // the next row, which the walk over channels hides from the processor
    if (!r.scale) {
      for (int i = 0; i < count; ++i, x += r.pitch) {
        prefetch_l2(x + ahead);
        Full::store(out + i * Full::W, get<Partial>(x, valid));
      }
      return;
    }
    const Full::T scale = get<Partial>(r.scale + channel, valid), shift = get<Partial>(r.shift + channel, valid);
    const Full::T lo = Full::broadcast(&r.lo), hi = Full::broadcast(&r.hi);
    for (int i = 0; i < count; ++i, x += r.pitch) {
      prefetch_l2(x + ahead);
      Full::store(out + i * Full::W, Full::clamp(Full::fma(get<Partial>(x, valid), scale, shift), lo, hi));
    }
  }
};

struct GatherGradient {
  template <bool Partial>
  static ALWAYS_INLINE void run(const GatherArgs& r, int from, int count, int channel, int valid) {
    const Full::T scale = get<Partial>(r.scale + channel, valid), shift = get<Partial>(r.shift + channel, valid);
    const Full::T lo = Full::broadcast(&r.lo), hi = Full::broadcast(&r.hi);
    const Full::T a = get<Partial>(r.a + channel, valid), center = get_or_zero<Partial>(r.center, channel, valid);
    const Full::T b = get_or_zero<Partial>(r.b, channel, valid), c = get_or_zero<Partial>(r.c, channel, valid);
    float* out = r.out + channel / Full::W * r.block + from * Full::W;
    const ptrdiff_t ahead = r.pixels * r.pitch;
    ptrdiff_t at = from * r.pitch + channel;
    for (int i = 0; i < count; ++i, at += r.pitch) {
      prefetch_l2(r.x + at + ahead);
      prefetch_l2(r.g + at + ahead);
      const Full::T x = get<Partial>(r.x + at, valid);
      const Full::T g = Full::keep(get<Partial>(r.g + at, valid), Full::fma(x, scale, shift), lo, hi);
      Full::T y = Full::mul(g, a);
      if (r.b) y = Full::add(y, Full::fma(Full::sub(x, center), b, c));
      Full::store(out + i * Full::W, y);
    }
  }
};

void gather(const GatherArgs& r) { over_tiles<Gather>(r); }
void gather_gradient(const GatherArgs& r) { over_tiles<GatherGradient>(r); }

}  // namespace
