// GEMM tiles: MR pixels x NV vectors, accumulators in registers. Included by the per-ISA files after activation.inl.
namespace {

constexpr int kMaxTileRows = 14;

// Step K of row m, `base` that of row m / 3 * 3.
template <class V, int K>
ALWAYS_INLINE typename V::T broadcast_of(int m, const float* base, ptrdiff_t stride) {
  return m % 3 == 0   ? V::template broadcast_row<0, K>(base, stride)
         : m % 3 == 1 ? V::template broadcast_row<1, K>(base, stride)
                      : V::template broadcast_row<2, K>(base, stride);
}

// One k step. Rows are addressed from a base every third row plus {0, 1, 2} strides, which x86 addressing encodes for
// free; a multiply per row would need one register each.
template <class V, int NV, int MR, int K>
ALWAYS_INLINE void gemm_step(typename V::T (&acc)[MR][NV], const float* const (&base)[(MR + 2) / 3], ptrdiff_t stride,
                             const float* b) {
  typename V::T column[NV];
  UNROLL for (int v = 0; v < NV; ++v) column[v] = V::load(b + v * V::W);
  UNROLL for (int m = 0; m < MR; ++m) {
    if constexpr (NV == 1) {
      // A broadcast that feeds one FMA is its operand: as an instruction of its own it would take time from it.
      m % 3 == 0   ? V::template accumulate_row<0, K>(acc[m][0], base[m / 3], stride, column[0])
      : m % 3 == 1 ? V::template accumulate_row<1, K>(acc[m][0], base[m / 3], stride, column[0])
                   : V::template accumulate_row<2, K>(acc[m][0], base[m / 3], stride, column[0]);
    } else {
      const typename V::T x = broadcast_of<V, K>(m, base[m / 3], stride);
      UNROLL for (int v = 0; v < NV; ++v) V::accumulate(acc[m][v], x, column[v]);
    }
  }
}

template <class V, int NV, int MR, int STEPS, int K = 0>
ALWAYS_INLINE void gemm_steps(typename V::T (&acc)[MR][NV], const float* const (&base)[(MR + 2) / 3], ptrdiff_t stride,
                              const float* b) {
  if constexpr (K < STEPS) {
    gemm_step<V, NV, MR, K>(acc, base, stride, b + K * NV * V::W);
    gemm_steps<V, NV, MR, STEPS, K + 1>(acc, base, stride, b);
  }
}

// Whether tiles apply Hardswish themselves. With three columns it would cost some compilers registers of the k loop.
template <int NV>
constexpr bool applies_hardswish() {
  return NV < 3;
}

// What becomes of a tile's accumulators: bias, clamp or Hardswish, then pooled sums, or residual and store.
template <class V, int NV, int MR>
ALWAYS_INLINE void gemm_store(const GemmArgs& g, typename V::T (&acc)[MR][NV], float* c, const int32_t* offsets,
                              const float* residual) {
  using T = typename V::T;
  constexpr int kWidth = NV * V::W;
  const T lo = V::broadcast(&g.lo), hi = V::broadcast(&g.hi);
  T bias[NV];
  UNROLL for (int v = 0; v < NV; ++v) bias[v] = V::load(g.bias + v * V::W);
  if (applies_hardswish<NV>() && g.activation == kHardswish) {
    hardswish_sums<V>(acc, bias);
  } else if (!residual && !g.pool && g.n_valid == kWidth) {
    // The usual end, one element after the other: its results leave while the next tile's sums begin.
    UNROLL for (int m = 0; m < MR; ++m) {
      float* out = c + offsets[m];
      UNROLL for (int v = 0; v < NV; ++v) V::store(out + v * g.c_vector, V::clamp(V::add(acc[m][v], bias[v]), lo, hi));
    }
    return;
  } else {
    UNROLL for (int m = 0; m < MR; ++m) {
      UNROLL for (int v = 0; v < NV; ++v) acc[m][v] = V::clamp(V::add(acc[m][v], bias[v]), lo, hi);
    }
  }
  if (g.pool) {
    UNROLL for (int v = 0; v < NV; ++v) {
      T sum = V::load(g.pool + v * V::W);
      UNROLL for (int m = 0; m < MR; ++m) sum = V::add(sum, acc[m][v]);
      V::store(g.pool + v * V::W, sum);
    }
    return;
  }
  if (applies_hardswish<NV>() && g.n_valid == kWidth && !residual) {
    UNROLL for (int m = 0; m < MR; ++m) {
      UNROLL for (int v = 0; v < NV; ++v) V::store(c + offsets[m] + v * g.c_vector, acc[m][v]);
    }
    return;
  }
  if (g.n_valid == kWidth) {
    UNROLL for (int m = 0; m < MR; ++m) {
      UNROLL for (int v = 0; v < NV; ++v) {
        const T r = V::load(residual + m * g.residual_pixel + v * V::W);
        V::store(c + offsets[m] + v * g.c_vector, V::add(acc[m][v], r));
      }
    }
    return;
  }
  // The last panel of a width off the vector: whole vectors, then one masked.
  UNROLL for (int v = 0; v < NV; ++v) {
    const int n = g.n_valid - v * V::W;
    if (n <= 0) continue;
    UNROLL for (int m = 0; m < MR; ++m) {
      const float* r = residual ? residual + m * g.residual_pixel + v * V::W : nullptr;
      float* out = c + offsets[m] + v * g.c_vector;
      if (n >= V::W) {
        V::store(out, r ? V::add(acc[m][v], V::load(r)) : acc[m][v]);
      } else {
        V::store_partial(out, r ? V::add(acc[m][v], V::load_partial(r, n)) : acc[m][v], n);
      }
    }
  }
}

// Weights that are wanted later, asked for a few lines at a time while a panel's first tiles run: an image needs each
// weight once, so most come from memory, and a panel is read faster than the processor's own prefetching brings it.
struct Ahead {
  const float* at;
  ptrdiff_t step;  // in floats, of one turn of the k loop
  int tiles;       // that still ask
};

// Where a tile's rows go.
struct TileEnd {
  const float* bias;
  float* c;
  const int32_t* offsets;
  ptrdiff_t c_vector;
  const float* residual;
  ptrdiff_t residual_pixel;
};

// What becomes of a tile's sums and their bias: anything (gemm_store); or row by row: clamped; clamped and added to the
// residual; Hardswish, whose bounds are 0 and 6. Each has tiles of its own, since a choice in a tile would cost its
// sums registers.
enum End { kAnyEnd, kClamp, kClampAndAdd, kHardswishEnd };

template <class V, int NV, End END>
ALWAYS_INLINE void store_row(const TileEnd& end, typename V::T (&acc)[NV], int m, typename V::T lo, typename V::T hi) {
  const float* bias = end.bias;
  READ_EVERY_TURN(bias);  // an operand from memory: registers are all taken
  UNROLL for (int v = 0; v < NV; ++v) acc[v] = V::add(acc[v], V::load(bias + v * V::W));
  if constexpr (END == kHardswishEnd) {
    const float* constants = kConstants[0];
    READ_EVERY_TURN(constants);
    UNROLL for (int v = 0; v < NV; ++v) {
      const typename V::T y = V::clamp(V::add(acc[v], V::load(constants + 16 * kThree)), lo, hi);
      acc[v] = V::mul(acc[v], V::mul(y, V::load(constants + 16 * kSixth)));
    }
  } else {
    UNROLL for (int v = 0; v < NV; ++v) acc[v] = V::clamp(acc[v], lo, hi);
  }
  if constexpr (END == kClampAndAdd) {
    const float* r = end.residual + m * end.residual_pixel;
    UNROLL for (int v = 0; v < NV; ++v) acc[v] = V::add(acc[v], V::load(r + v * V::W));
  }
  float* out = end.c + end.offsets[m];
  UNROLL for (int v = 0; v < NV; ++v) V::store(out + v * end.c_vector, acc[v]);
}

// Rows that end together: enough chains to hide an FMA's latency.
template <int NV, int MR>
struct RowGroups {
  static constexpr int kRows = NV == 1 ? 8 : NV == 2 ? 4 : 3, kCount = (MR + kRows - 1) / kRows;
  static constexpr int begin(int group) { return group < 0 ? 0 : MR * group / kCount; }
};

// Step K of one group's rows. Loads are what these last steps have least of: columns and rows are loaded once for a
// group, but where bounds and columns take all registers beside the sums, rows are operands of their FMAs.
template <class V, int NV, int MR, int GROUP, int K>
ALWAYS_INLINE void gemm_group_step(typename V::T (&acc)[MR][NV], const float* const (&base)[(MR + 2) / 3],
                                   ptrdiff_t stride, const float* b) {
  using Groups = RowGroups<NV, MR>;
  constexpr bool kOperands = NV == 1 || (GROUP == 1 && MR * NV + NV + 3 > kRegisters);
  constexpr int kBegin = Groups::begin(GROUP), kEnd = Groups::begin(GROUP + 1);
  typename V::T column[NV];
  UNROLL for (int v = 0; v < NV; ++v) column[v] = V::load_once(b + (K * NV + v) * V::W);
  UNROLL for (int m = kBegin; m < kEnd; ++m) {
    if constexpr (kOperands) {
      UNROLL for (int v = 0; v < NV; ++v) {
        m % 3 == 0   ? V::template accumulate_row<0, K>(acc[m][v], base[m / 3], stride, column[v])
        : m % 3 == 1 ? V::template accumulate_row<1, K>(acc[m][v], base[m / 3], stride, column[v])
                     : V::template accumulate_row<2, K>(acc[m][v], base[m / 3], stride, column[v]);
      }
    } else {
      const typename V::T x = broadcast_of<V, K>(m, base[m / 3], stride);
      UNROLL for (int v = 0; v < NV; ++v) V::accumulate(acc[m][v], x, column[v]);
    }
  }
}

template <class V, int NV, int MR, int STEPS, int K = 0>
ALWAYS_INLINE void gemm_first_group(typename V::T (&acc)[MR][NV], const float* const (&base)[(MR + 2) / 3],
                                    ptrdiff_t stride, const float* b) {
  if constexpr (K < STEPS) {
    gemm_group_step<V, NV, MR, 0, K>(acc, base, stride, b);
    gemm_first_group<V, NV, MR, STEPS, K + 1>(acc, base, stride, b);
  }
}

// The last STEPS k steps of the groups after the first, and between their FMAs what becomes of the rows before them:
// sums that all end at once leave the multipliers idle while they are clamped and stored.
template <class V, int NV, int MR, int STEPS, End END, int GROUP = 1, int K = 0>
ALWAYS_INLINE void gemm_last_steps(const TileEnd& end, typename V::T (&acc)[MR][NV],
                                   const float* const (&base)[(MR + 2) / 3], ptrdiff_t stride, const float* b,
                                   typename V::T lo, typename V::T hi) {
  using Groups = RowGroups<NV, MR>;
  constexpr int kBefore = Groups::begin(GROUP - 1), kDone = Groups::begin(GROUP) - kBefore;
  if constexpr (GROUP >= Groups::kCount) {
    UNROLL for (int m = kBefore; m < MR; ++m) store_row<V, NV, END>(end, acc[m], m, lo, hi);
  } else if constexpr (K == STEPS) {
    gemm_last_steps<V, NV, MR, STEPS, END, GROUP + 1, 0>(end, acc, base, stride, b, lo, hi);
  } else {
    gemm_group_step<V, NV, MR, GROUP, K>(acc, base, stride, b);
    UNROLL for (int m = kBefore + kDone * K / STEPS; m < kBefore + kDone * (K + 1) / STEPS; ++m) {
      store_row<V, NV, END>(end, acc[m], m, lo, hi);
    }
    gemm_last_steps<V, NV, MR, STEPS, END, GROUP, K + 1>(end, acc, base, stride, b, lo, hi);
  }
}

// `count` tiles of MR pixels one after the other, so that what a call costs is paid once. STEPS k steps a turn; it
// divides every segment length.
template <class V, int NV, int MR, int STEPS, End END>
NOINLINE void gemm_tile(const GemmArgs& g, int count, const float* a, float* c, const int32_t* offsets,
                        const float* residual, Ahead& ahead) {
  using T = typename V::T;
  constexpr int kWidth = NV * V::W, kLines = kWidth * STEPS / 32 > 0 ? kWidth * STEPS / 32 : 1;
  constexpr int kHeld = END == kAnyEnd ? 0 : STEPS;  // k steps that gemm_last_steps takes
  const ptrdiff_t stride = g.a_pixel;
  for (; count > 0; --count) {
    const float* next = ahead.at;
    const ptrdiff_t next_step = ahead.tiles > 0 ? ahead.step : 0;
    T acc[MR][NV];
    const T zero = applies_hardswish<NV>() ? V::new_zero() : V::zero();
    UNROLL for (int m = 0; m < MR; ++m) { UNROLL for (int v = 0; v < NV; ++v) acc[m][v] = zero; }
    const float *b = g.b, *base[(MR + 2) / 3];
    int s = 0;
    do {  // there is a segment (panels.inl), and its pointers are used below
      UNROLL for (int i = 0; i < (MR + 2) / 3; ++i) base[i] = a + g.segments[s] + 3 * i * stride;
      for (int k = g.segment_length - (s + 1 < g.segment_count ? 0 : kHeld); k > 0; k -= STEPS) {
        gemm_steps<V, NV, MR, STEPS>(acc, base, stride, b);
        UNROLL for (int i = 0; i < (MR + 2) / 3; ++i) {
          base[i] += STEPS;
          KEEP_IN_REGISTER(base[i]);
        }
        b += STEPS * kWidth;
        UNROLL for (int i = 0; i < kLines; ++i) __builtin_prefetch(next + 16 * i, 0, 2);
        next += next_step;
      }
    } while (++s < g.segment_count);
    ahead.at = next + (kHeld ? next_step : 0);
    --ahead.tiles;
    if constexpr (END == kAnyEnd) {
      gemm_store<V, NV, MR>(g, acc, c, offsets, residual);
    } else {
      gemm_first_group<V, NV, MR, STEPS>(acc, base, stride, b);
      const float *lo = END == kHardswishEnd ? kConstants[kZero] : &g.lo,
                  *hi = END == kHardswishEnd ? kConstants[kSix] : &g.hi;
      READ_EVERY_TURN(lo);  // not before, where they would cost the sums registers
      READ_EVERY_TURN(hi);
      gemm_last_steps<V, NV, MR, STEPS, END>({g.bias, c, offsets, g.c_vector, residual, g.residual_pixel}, acc, base,
                                             stride, b, V::broadcast(lo), V::broadcast(hi));
    }
    a += MR * stride;
    if (g.c_offsets) {
      offsets += MR;
    } else {
      c += MR * g.c_pixel;
    }
    if (residual) residual += MR * g.residual_pixel;
  }
}

using TileFunction = void (*)(const GemmArgs&, int, const float*, float*, const int32_t*, const float*, Ahead&);

template <class V, int NV, int MR, int STEPS, End END>
constexpr void fill_tiles(TileFunction* f) {
  if constexpr (MR > 0) {
#if defined(__clang__)
    // Clang hoists what a row needs until the sums of the largest tile no longer fit.
    constexpr bool kFits = END != kHardswishEnd || MR * NV + NV + 3 <= kRegisters;
#else
    constexpr bool kFits = true;
#endif
    f[MR] = &gemm_tile < V, NV, MR, STEPS, kFits ? END : kAnyEnd > ;
    fill_tiles<V, NV, MR - 1, STEPS, END>(f);
  }
}

template <class V, int NV, int MAX, int STEPS, End END>
struct TileTable {
  TileFunction of_rows[MAX + 1] = {};
  constexpr TileTable() { fill_tiles<V, NV, MAX, STEPS, END>(of_rows); }
};

template <class V, int NV, int MAX, int STEPS, End END>
const TileFunction* tiles_with() {
  static constexpr TileTable<V, NV, MAX, STEPS, END> table;
  return table.of_rows;
}

// The tiles for how their sums end.
template <class V, int NV, int MAX, int STEPS>
const TileFunction* tiles_for(const GemmArgs& g) {
  if constexpr (V::kStoresByRow && STEPS > 1) {
    if (g.n_valid == NV * V::W && !g.pool) {
      if constexpr (applies_hardswish<NV>()) {
        if (g.activation == kHardswish && !g.residual) return tiles_with<V, NV, MAX, STEPS, kHardswishEnd>();
      }
      if (!g.activation && g.residual) return tiles_with<V, NV, MAX, STEPS, kClampAndAdd>();
      if (!g.activation) return tiles_with<V, NV, MAX, STEPS, kClamp>();
    }
  }
  return tiles_with<V, NV, MAX, STEPS, kAnyEnd>();
}

// All pixels of one panel, split into tiles as even as possible so that no tile is much shorter than the others. One
// chain of sums, an activation without a pass of its own. `distance`: from the weights to those asked for, in floats;
// 0: to none.
template <class V, int NV, int MAX>
void gemm_tiles(const GemmArgs& g, ptrdiff_t distance) {
  // A second loop for the remainder inside a tile would cost it registers, so other depths have tiles of their own.
  const int steps = g.segment_length % 4 == 0 ? 4 : g.segment_length % 3 == 0 ? 3 : 1;
  const TileFunction* tiles = steps == 4   ? tiles_for<V, NV, MAX, 4>(g)
                              : steps == 3 ? tiles_for<V, NV, MAX, 3>(g)
                                           : tiles_for<V, NV, MAX, 1>(g);
  int32_t linear[kMaxTileRows];
  for (int i = 0; i < kMaxTileRows; ++i) linear[i] = static_cast<int32_t>(i * g.c_pixel);
  const int count = (g.m + MAX - 1) / MAX;
  if (count == 0) return;
  const int rows = g.m / count, longer = g.m % count;
  // Spread over the first tiles. The lines of a turn overlap where there are many, and are the same where there are
  // none.
  const int asking = count >= 4 ? 4 : 2;
  Ahead ahead{g.b + distance, steps * NV * V::W / asking, distance ? asking : 0};
  int m = 0;
  auto run = [&](int tiles_of, int mr) {
    tiles[mr](g, tiles_of, g.a + m * g.a_pixel, g.c_offsets ? g.c : g.c + m * g.c_pixel,
              g.c_offsets ? g.c_offsets + m : linear, g.residual ? g.residual + m * g.residual_pixel : nullptr, ahead);
    m += tiles_of * mr;
  };
  if (longer) run(longer, rows + 1);
  run(count - longer, rows);
}

}  // namespace
