// Which tile a whole block takes: a pure function of shapes, dtype and the device's shared memory.
#include <algorithm>

#include "block_layout.h"

namespace mobilenet_ext {
namespace cuda {
namespace {

constexpr int kSides[] = {4, 7, 8, 14, 16, 28};

int ceil_div(int a, int b) { return (a + b - 1) / b; }

// What one CTA does for `share` of the hidden channels, in multiply-adds of the tensor cores, halo and padding
// included, plus what loading weights and halo costs.
double cta_cost(const Block& b, const BlockLayout& l, double share) {
  const double expand = static_cast<double>(l.halo_rows) * l.inputs * b.hidden;
  const double project = static_cast<double>(l.out_rows) * l.outputs * b.hidden;
  const double depthwise = 9.0 * l.out_rows * b.hidden * 8;  // plain FMAs are about eight times as dear
  const double weights = 64.0 * b.hidden * (l.inputs + l.outputs);
  return share * (expand + project + depthwise + weights);
}

// Bytes of the weights and vectors, and of the fp32 sums that `splits` CTAs per tile write and a second kernel reads.
double weight_bytes(const Block& b, size_t element) {
  return static_cast<double>(element) * b.hidden * (b.cin + 9.0 + b.cout) + 8.0 * (2.0 * b.hidden + b.cout);
}
double sum_bytes(const Block& b, int64_t images, int splits) {
  return 8.0 * splits * static_cast<double>(images) * b.oh * b.ow * b.cout;
}

// What splitting costs besides: every CTA writes fp32 sums, and a second kernel, about a microsecond and a half, adds
// them. In the same unit, at some six hundred multiply-adds per cycle and thirty-two bytes per cycle of one CTA.
constexpr double kSecondKernel = 1.5e6, kPerSum = 4 * 600.0 / 32;

}  // namespace

BlockPlan plan_block(const Block& b, Dtype dtype, size_t shared_limit, int ctas) {
  const size_t element = dtype == Dtype::kFloat ? 4 : 2;
  const int step = hidden_step(element), steps = ceil_div(b.hidden, step);
  const int64_t images = batch_class(b.n);
  BlockPlan best{};
  double best_cost = 0;
  for (int side_h : kSides) {
    for (int side_w : kSides) {
      const int tile_h = std::min(side_h, b.oh), tile_w = std::min(side_w, b.ow);
      const BlockLayout l = block_layout(b, tile_h, tile_w, element);
      const int per_warp = ceil_div(l.out_rows / 16 * (l.outputs / 16), kWarps);
      if (l.total > shared_limit || per_warp > most_tiles(element)) continue;
      const int64_t tiles = images * ceil_div(b.oh, tile_h) * ceil_div(b.ow, tile_w);
      // Splits are for what tiles leave idle, at least four steps each, and only while their sums move no more than the
      // weights, which have to be read in any case.
      const int64_t most = std::clamp<int64_t>(ctas / std::max<int64_t>(tiles, 1), 1, std::max(1, steps / 4));
      for (int wanted = 1; wanted <= most; ++wanted) {
        const int steps_per_split = ceil_div(steps, wanted), splits = ceil_div(steps, steps_per_split);
        if (splits > 1 && sum_bytes(b, images, splits) > weight_bytes(b, element)) break;
        const int64_t waves = (tiles * splits + ctas - 1) / ctas;
        double cost = static_cast<double>(waves) * cta_cost(b, l, static_cast<double>(steps_per_split) / steps);
        // Two CTAs on a multiprocessor hide each other's barriers: half of the shared memory is worth a quarter.
        if (l.total > shared_limit / 2) cost *= 1.25;
        if (splits > 1) cost += kSecondKernel + kPerSum * l.out_rows * l.outputs;
        if (best.tile_h && cost >= best_cost) continue;
        best_cost = cost;
        best = {tile_h, tile_w, splits, steps_per_split * step, per_warp <= 4 ? 4 : most_tiles(element), l.total};
      }
    }
  }
  return best;
}

}  // namespace cuda
}  // namespace mobilenet_ext
