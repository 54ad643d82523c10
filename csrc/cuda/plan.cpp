// Which tile a whole block takes: a pure function of shapes, dtype and the device's shared memory.
#include <algorithm>

#include "block_layout.h"

namespace mobilenet_ext {
namespace cuda {
namespace {

constexpr int kSides[] = {4, 7, 8, 14, 16, 28};

int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Products of one image in units of a 16x16x16 tile, halo and padding included, plus what loading the halo costs.
double cost(const Block& b, const BlockLayout& l, int tiles) {
  const double expand = static_cast<double>(l.halo_rows) * l.inputs * b.hidden;
  const double project = static_cast<double>(l.out_rows) * l.outputs * b.hidden;
  const double depthwise = 9.0 * l.out_rows * b.hidden * 8;  // plain FMAs are about eight times as dear
  const double weights = 64.0 * b.hidden * (l.inputs + l.outputs);
  return tiles * (expand + project + depthwise + weights);
}

}  // namespace

BlockPlan plan_block(const Block& b, Dtype dtype, size_t shared_limit, int ctas) {
  const size_t element = dtype == Dtype::kFloat ? 4 : 2;
  BlockPlan best{};
  double best_cost = 0;
  for (int side_h : kSides) {
    for (int side_w : kSides) {
      const int tile_h = std::min(side_h, b.oh), tile_w = std::min(side_w, b.ow);
      const BlockLayout l = block_layout(b, tile_h, tile_w, element);
      const int per_warp = ceil_div(l.out_rows / 16 * (l.outputs / 16), kWarps);
      if (l.total > shared_limit || per_warp > most_tiles(element)) continue;
      const int tiles = ceil_div(b.oh, tile_h) * ceil_div(b.ow, tile_w);
      // Two CTAs on a multiprocessor hide each other's barriers: half of the shared memory is worth a quarter.
      const double c = cost(b, l, tiles) * (l.total > shared_limit / 2 ? 1.25 : 1.0);
      if (best.tile_h == 0 || c < best_cost) {
        best_cost = c;
        best = {tile_h, tile_w, 1, 0, per_warp <= 4 ? 4 : most_tiles(element), l.total};
      }
    }
  }
  if (best.tile_h == 0) return best;
  const int64_t tiles = b.n * ceil_div(b.oh, best.tile_h) * ceil_div(b.ow, best.tile_w);
  const int step = hidden_step(element), steps = ceil_div(b.hidden, step);
  // Splits cost a round trip of fp32 sums: only as many as fill the device, at least four steps each.
  const int wanted = static_cast<int>(std::max<int64_t>(1, ctas / std::max<int64_t>(tiles, 1)));
  const int steps_per_split = ceil_div(steps, std::min(wanted, std::max(1, steps / 4)));
  best.hidden_per_split = steps_per_split * step;
  best.splits = ceil_div(steps, steps_per_split);
  return best;
}

}  // namespace cuda
}  // namespace mobilenet_ext
