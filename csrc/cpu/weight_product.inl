// Gradient of a pointwise weight: tiles of wide columns x vectors of narrow ones, one chain of FMAs over the pixels.
// Included by the per-ISA files after a simd_*.h, with kRegisters.
namespace {

template <int NV>
constexpr int weight_product_rows() {
  constexpr int rows = (kRegisters - NV - 1) / NV;
  return rows < 12 ? rows : 12;
}

template <int NV, int MR>
NOINLINE void weight_product_tile(const WeightProductArgs& p, int row) {
  using T = Full::T;
  T acc[MR][NV];
  UNROLL for (int m = 0; m < MR; ++m) { UNROLL for (int v = 0; v < NV; ++v) acc[m][v] = Full::zero(); }
  const float *wide = p.wide + row, *narrow = p.narrow;
  for (int i = p.pixels; i > 0; --i) {
    __builtin_prefetch(wide + p.ahead, 0, 2);
    T column[NV];
    UNROLL for (int v = 0; v < NV; ++v) column[v] = Full::load(narrow + v * Full::W);
    UNROLL for (int m = 0; m < MR; ++m) {
      const T x = Full::broadcast(wide + m);
      UNROLL for (int v = 0; v < NV; ++v) Full::accumulate(acc[m][v], x, column[v]);
    }
    wide += p.wide_pixel;
    narrow += NV * Full::W;
  }
  UNROLL for (int m = 0; m < MR; ++m) {
    float* out = p.out + (row + m) * p.out_row;
    UNROLL for (int v = 0; v < NV; ++v) {
      const int valid = p.valid - v * Full::W;
      float* to = out + v * Full::W;
      if (valid >= Full::W) {
        Full::store(to, p.add ? Full::add(Full::load(to), acc[m][v]) : acc[m][v]);
      } else if (valid > 0) {
        Full::store_partial(to, p.add ? Full::add(Full::load_partial(to, valid), acc[m][v]) : acc[m][v], valid);
      }
    }
  }
}

using WeightProductTile = void (*)(const WeightProductArgs&, int);

template <int NV, int MR>
constexpr void fill_weight_product(WeightProductTile* of_rows) {
  if constexpr (MR > 0) {
    of_rows[MR] = &weight_product_tile<NV, MR>;
    fill_weight_product<NV, MR - 1>(of_rows);
  }
}

template <int NV>
struct WeightProductTiles {
  WeightProductTile of_rows[weight_product_rows<NV>() + 1] = {};
  constexpr WeightProductTiles() { fill_weight_product<NV, weight_product_rows<NV>()>(of_rows); }
};

// Rows split as evenly as possible.
template <int NV>
void weight_product_panel(const WeightProductArgs& p) {
  static constexpr WeightProductTiles<NV> tiles;
  constexpr int kMost = weight_product_rows<NV>();
  const int count = (p.rows + kMost - 1) / kMost;
  for (int i = 0, row = 0; i < count; ++i) {
    const int rows = p.rows / count + (i < p.rows % count);
    tiles.of_rows[rows](p, row);
    row += rows;
  }
}

void weight_product(const WeightProductArgs& p) {
  p.vectors == 1   ? weight_product_panel<1>(p)
  : p.vectors == 2 ? weight_product_panel<2>(p)
                   : weight_product_panel<3>(p);
}

}  // namespace
