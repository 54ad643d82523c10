// Panels from tiles: long sums as several chains, activations that are no clamps, and one pixel against many panels.
// Included by the per-ISA files after gemm.inl and activation.inl.
namespace {

// Terms of the longest chain of sums.
constexpr int kLongestChain = 512;

// Longer sums are sums of chains as even as possible, in multiples of 16: a whole number of vectors on every
// instruction set, and the same for k padded to any of them. It decides bits.
constexpr int chain_terms(int k) {
  const int chains = (k + kLongestChain - 1) / kLongestChain;
  return chains <= 1 ? k : (k + 16 * chains - 1) / (16 * chains) * 16;
}

// The pixels of a panel in groups of at most TILES tiles, as even as possible: what is done to a group finds it in the
// first cache. No group costs a tile more than the whole would.
template <int MAX, int TILES, class Run>
ALWAYS_INLINE void gemm_groups(const GemmArgs& g, Run run) {
  const ptrdiff_t tiles = (g.m + MAX - 1) / MAX, groups = (tiles + TILES - 1) / TILES;
  for (ptrdiff_t i = 0; i < groups; ++i) {
    const ptrdiff_t m = g.m * (tiles * i / groups) / tiles;
    GemmArgs part = g;
    part.m = static_cast<int>(g.m * (tiles * (i + 1) / groups) / tiles - m);
    part.a = g.a + m * g.a_pixel;
    part.c = g.c_offsets ? g.c : g.c + m * g.c_pixel;
    part.c_offsets = g.c_offsets ? g.c_offsets + m : nullptr;
    part.residual = g.residual ? g.residual + m * g.residual_pixel : nullptr;
    run(part);
  }
}

// The next chain of a sum: whole segments if several fit, else a piece of one. Where it ends depends on the layer
// alone: blocks of a vector always fit whole.
struct ChainCut {
  int segment = 0, offset = 0;  // where the next chain begins

  bool take(const GemmArgs& g, GemmArgs& part) {
    const int terms = chain_terms(g.segment_count * g.segment_length), left = g.segment_count - segment;
    part.segments = g.segments + segment;
    part.a += offset;
    part.segment_length = g.segment_length;
    if (g.segment_length > terms) {
      const int rest = g.segment_length - offset, most = chain_terms(g.segment_length);
      part.segment_count = 1;
      part.segment_length = rest < most ? rest : most;
      offset += part.segment_length;
      if (offset == g.segment_length) offset = 0, ++segment;
    } else {
      const int fit = terms / g.segment_length;
      part.segment_count = left < fit ? left : fit;
      segment += part.segment_count;
    }
    return segment == g.segment_count;
  }
};

// What becomes of the sums [m][width] of several chains: as gemm_store.
template <class V, int NV>
void store_sums(const GemmArgs& g, const float* sums) {
  using T = typename V::T;
  const T lo = V::broadcast(&g.lo), hi = V::broadcast(&g.hi);
  for (int v = 0; v < NV; ++v) {
    const int n = g.n_valid - v * V::W;
    if (n <= 0) continue;
    const T bias = V::load(g.bias + v * V::W);
    for (int m = 0; m < g.m; ++m) {
      const T sum = V::add(V::load(sums + (m * NV + v) * V::W), bias);
      T y = g.activation == kHardswish ? hardswish<V>(sum, kConstants[0]) : V::clamp(sum, lo, hi);
      if (g.pool) {
        V::store(g.pool + v * V::W, V::add(V::load(g.pool + v * V::W), y));
        continue;
      }
      if (g.residual) {
        const float* r = g.residual + m * g.residual_pixel + v * V::W;
        y = V::add(y, n >= V::W ? V::load(r) : V::load_partial(r, n));
      }
      float* out = g.c + (g.c_offsets ? g.c_offsets[m] : m * g.c_pixel) + v * g.c_vector;
      if (n >= V::W) {
        V::store(out, y);
      } else {
        V::store_partial(out, y, n);
      }
    }
  }
}

// More terms than one chain takes: the error, which grows with the length of a chain, stays that of a short one. The
// tiles do not know: each chain's sums are a result without bias, the earlier ones its residual.
template <class V, int NV, int MAX>
NOINLINE void gemm_chains(const GemmArgs& g, ptrdiff_t distance) {
  constexpr int kWidth = NV * V::W;
  constexpr int kTiles = 8;
  static constexpr uint32_t kInfinity = 0x7f800000, kMinusInfinity = 0xff800000, kMinusZero = 0x80000000;
  float sums[kTiles * MAX * kWidth], nothing[kWidth], lo, hi, minus_zero;
  __builtin_memcpy(&lo, &kMinusInfinity, sizeof lo);
  __builtin_memcpy(&hi, &kInfinity, sizeof hi);
  __builtin_memcpy(&minus_zero, &kMinusZero, sizeof minus_zero);
  for (int n = 0; n < kWidth; ++n) nothing[n] = minus_zero;  // adding it changes no bit
  gemm_groups<MAX, kTiles>(g, [&](const GemmArgs& group) {
    GemmArgs part = group;
    part.bias = nothing;
    part.activation = 0;
    part.lo = lo;
    part.hi = hi;
    part.c = sums;
    part.c_offsets = nullptr;
    part.c_pixel = part.residual_pixel = kWidth;
    part.c_vector = V::W;
    part.pool = nullptr;
    part.n_valid = kWidth;
    part.residual = nullptr;
    ChainCut cut;
    for (bool last = false; !last; part.residual = sums) {
      part.a = group.a;
      last = cut.take(g, part);
      gemm_tiles<V, NV, MAX>(part, group.a == g.a ? distance : 0);
      part.b += static_cast<ptrdiff_t>(part.segment_count) * part.segment_length * kWidth;
    }
    store_sums<V, NV>(group, sums);
  });
}

template <class V, int NV, int MAX>
ALWAYS_INLINE void gemm_whole(const GemmArgs& g, bool first) {
  const int k = g.segment_count * g.segment_length;
  if (k == 0) {  // the bias alone; tiles have a segment
    const float sums[MAX * NV * V::W] = {};
    return gemm_groups<MAX, 1>(g, [&](const GemmArgs& group) { store_sums<V, NV>(group, sums); });
  }
  // Packed weights lie in the order in which they are used: what follows a panel is wanted next.
  const ptrdiff_t distance = first ? static_cast<ptrdiff_t>(k) * NV * V::W : 0;
  if (k > kLongestChain) return gemm_chains<V, NV, MAX>(g, distance);
  gemm_tiles<V, NV, MAX>(g, distance);
}

// What a panel kind's table entry points to.
template <class V, int NV, int MAX>
void gemm_panel(const GemmArgs& g) {
  if (!g.activation || (g.activation == kHardswish && applies_hardswish<NV>())) return gemm_whole<V, NV, MAX>(g, true);
  gemm_groups<MAX, 4>(g, [&](const GemmArgs& group) {
    GemmArgs part = group;
    part.activation = 0;
    part.residual = nullptr;
    part.pool = nullptr;
    gemm_whole<V, NV, MAX>(part, group.a == g.a);
    finish_rows<V>({part.c, part.c_offsets, g.c_pixel, g.c_vector, group.residual, g.residual_pixel, g.pool, part.m, NV,
                    g.n_valid, g.activation, g.slope});
  });
}

// P panels at once: P * NV independent chains, one pixel.
template <class V, int NV, int P>
NOINLINE void gemv_tile(const GemvArgs& g, int panel, int n_valid_last) {
  using T = typename V::T;
  constexpr int kWidth = NV * V::W;
  const float* b[P];
  T acc[P][NV];
  float sums[P * kWidth];
  UNROLL for (int p = 0; p < P; ++p) b[p] = g.b + (panel + p) * g.b_panel;
  const int terms = chain_terms(g.k);
  int k = 0;
  do {
    const int begin = k, end = g.k - k < terms ? g.k : k + terms;
    UNROLL for (int p = 0; p < P; ++p) { UNROLL for (int v = 0; v < NV; ++v) acc[p][v] = V::zero(); }
    for (; k < end; ++k) {
      const T x = V::broadcast(g.a + k);
      UNROLL for (int p = 0; p < P; ++p) {
        UNROLL for (int v = 0; v < NV; ++v) acc[p][v] = V::fma(x, V::load(b[p] + v * V::W), acc[p][v]);
        b[p] += kWidth;
      }
    }
    UNROLL for (int p = 0; p < P; ++p) {
      UNROLL for (int v = 0; v < NV; ++v) {
        float* sum = sums + p * kWidth + v * V::W;
        if (begin > 0) acc[p][v] = V::add(V::load(sum), acc[p][v]);
        if (end < g.k) V::store(sum, acc[p][v]);
      }
    }
  } while (k < g.k);
  const T lo = V::broadcast(&g.lo), hi = V::broadcast(&g.hi);
  UNROLL for (int p = 0; p < P; ++p) {
    UNROLL for (int v = 0; v < NV; ++v) {
      const int n = (p == P - 1 ? n_valid_last : kWidth) - v * V::W;
      float* out = g.c + (panel + p) * kWidth + v * V::W;
      const T bias = V::load(g.bias + (panel + p) * kWidth + v * V::W);
      const T y = V::clamp(V::add(acc[p][v], bias), lo, hi);
      if (n >= V::W) {
        V::store(out, y);
      } else if (n > 0) {
        V::store_partial(out, y, n);
      }
    }
  }
}

template <class V, int NV, int P>
void gemv_panels(const GemvArgs& g) {
  constexpr int kWidth = NV * V::W;
  int panel = 0;
  for (; panel + P < g.panels; panel += P) gemv_tile<V, NV, P>(g, panel, kWidth);
  for (; panel < g.panels; ++panel) gemv_tile<V, NV, 1>(g, panel, panel == g.panels - 1 ? g.n_valid : kWidth);
  if (!g.activation) return;
  const int columns = (g.panels - 1) * kWidth + g.n_valid, whole = columns / V::W, rest = columns % V::W;
  FinishArgs f{g.c, nullptr, V::W, V::W, nullptr, 0, nullptr, whole, 1, V::W, g.activation, g.slope};
  finish_rows<V>(f);
  f.c += whole * V::W;
  f.m = rest ? 1 : 0;
  f.n_valid = rest;
  finish_rows<V>(f);
}

}  // namespace
