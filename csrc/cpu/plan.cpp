#include "plan.h"

#include <algorithm>
#include <cmath>

namespace mobilenet_ext {
namespace {

// From this many accumulators a tile runs at full speed.
constexpr double kEnoughAccumulators = 12;
// Chunks of single 1x1 convolutions are multiples of this: whole tiles on every instruction set.
constexpr int kChunkPixels = 28;
// About 20 us of arithmetic; waking a second thread for less costs more than it gives.
constexpr double kWorkPerWorker = 1.1e6;
// Workers that run already only wait for each other between two items, about 2 us of arithmetic.
constexpr double kWorkPerPart = 1e5;
// A depthwise output of so many halves of the second cache may be kept whole: written and read once, it costs a
// third-level cache a few per cent of a block's time.
constexpr size_t kKeptHalves = 4;
constexpr size_t kChunkBytes = 24 << 10;
constexpr int kSqueezePixels = 56;
// Pixels whose sum is one fp32 chain. A constant, since it decides the bits of a pooled mean.
constexpr int kPoolChunk = 64;

size_t ring_floats(const PackedItem& item, const ItemShape& shape, const IsaTable& isa, const ItemPlan& plan) {
  const StageDesc& d = item.find(Role::kDepthwise)->desc;
  const Geometry& g = d.geometry;
  const int blocks = (d.in + isa.vector - 1) / isa.vector;
  const int out_w = (shape.out_w + plan.column_parts - 1) / plan.column_parts;
  const size_t row_w = static_cast<size_t>(out_w - 1) * g.sw + (g.kw - 1) * g.dw + 1;
  const size_t hidden = static_cast<size_t>(plan.rows_per_step) * out_w * blocks * isa.vector;
  return row_w * blocks * isa.vector * plan.ring_rows + hidden;
}

// Of the whole depthwise output.
size_t depthwise_floats(const PackedItem& item, const ItemShape& shape, const IsaTable& isa) {
  const size_t blocks = (item.find(Role::kDepthwise)->desc.out + isa.vector - 1) / isa.vector;
  return blocks * isa.vector * shape.out_h * shape.out_w;
}

// Of the two dense stages of a block.
size_t dense_floats(const PackedItem& item) {
  size_t floats = 0;
  for (const PackedStage& stage : item.stages) {
    if (!stage.panels.empty()) floats += static_cast<size_t>(stage.k) * stage.desc.out;
  }
  return floats;
}

// Whether a run of pixels cuts into tiles that are tall enough.
bool fills_tiles(const IsaTable& isa, int pixels) {
  const PanelKind& kind = isa.kinds[0];
  const double columns = kind.width / kind.vector, tiles = (pixels + kind.max_rows - 1) / kind.max_rows;
  return pixels / tiles * columns >= std::min(kEnoughAccumulators, 0.9 * kind.max_rows * columns);
}

// Pixels that pass all panels of the project before the next ones are read (and scaled): as even as possible and about
// 3/8 of the second-level cache, since the weights of the project are read once for each.
int project_chunk(int channels, int pixels, const CacheSizes& caches) {
  const int most = std::max(static_cast<int>(caches.l2 * 3 / 8 / sizeof(float)) / channels, kChunkPixels);
  const int parts = (pixels + most - 1) / most;
  return parts <= 1 ? std::max(pixels, 1) : std::max(1, (pixels + parts - 1) / parts);
}

int ring_rows(const Geometry& g, int rows_per_step) { return (rows_per_step - 1) * g.sh + (g.kh - 1) * g.dh + 1; }

}  // namespace

std::vector<ItemShape> shapes(const ChainDesc& chain, int h, int w) {
  std::vector<ItemShape> result;
  for (const ItemDesc& item : chain.items) {
    ItemShape s;
    s.h = h;
    s.w = w;
    for (const StageDesc& stage : item.stages) {
      if (stage.role == Role::kReduce || stage.role == Role::kExcite) {
        s.multiply_adds += static_cast<double>(stage.in) * stage.out;
        continue;
      }
      const Placed p = place(stage.geometry, h, w);
      if (stage.role == Role::kExpand) s.expand = p;
      if (stage.role == Role::kDepthwise) s.depthwise = p;
      const double taps =
          static_cast<double>(stage.geometry.kh) * stage.geometry.kw * (stage.role == Role::kDepthwise ? 1 : stage.in);
      s.multiply_adds += taps * stage.out * p.out_h * p.out_w;
      h = p.out_h;
      w = p.out_w;
    }
    s.out_h = h;
    s.out_w = w;
    if (item.linear || item.pool) {
      if (item.mean) s.multiply_adds = static_cast<double>(item.in()) * h * w;
      s.multiply_adds = item.linear ? static_cast<double>(item.in()) * item.out() : s.multiply_adds;
      h = w = 1;
    }
    result.push_back(s);
  }
  return result;
}

namespace {

// The depthwise output is kept whole, so channels may pass in groups: several rows at once fit, tiles are full, and
// each group's weights stay in the cache.
ItemPlan plan_squeezed(const PackedItem& item, const ItemShape& shape, const IsaTable& isa, const CacheSizes& caches,
                       int threads, ItemPlan plan) {
  const StageDesc& d = item.find(Role::kDepthwise)->desc;
  const size_t quarter = caches.l2 / 4 / sizeof(float);
  plan.chunk = project_chunk(d.out, shape.out_h * shape.out_w, caches);
  plan.rows_per_step = std::min(shape.out_h, (kSqueezePixels + shape.out_w - 1) / shape.out_w);
  plan.ring_rows = ring_rows(d.geometry, plan.rows_per_step);
  const int units = hidden_units(item, isa);
  int groups = 1;
  while (groups < units && ring_floats(item, shape, isa, plan) / groups > quarter) ++groups;
  if (groups > 1) plan.hidden_panels = (units + groups - 1) / groups;
  if (groups > 1 || (threads > 1 && shape.out_h < 4 * threads)) plan.split = Split::kHidden;
  return plan;
}

}  // namespace

ItemPlan plan_item(const PackedItem& item, const ItemShape& shape, const IsaTable& isa, const CacheSizes& caches,
                   int threads) {
  ItemPlan plan;
  const PackedStage* depthwise = item.find(Role::kDepthwise);
  if (!depthwise) {
    const int in = item.desc.in();
    int chunk = static_cast<int>(kChunkBytes / sizeof(float)) / in;
    plan.chunk = chunk < kChunkPixels ? kChunkPixels : chunk / kChunkPixels * kChunkPixels;
    plan.split = item.desc.pool ? Split::kPanels : Split::kGrid;
    if (item.desc.pool) plan.chunk = kPoolChunk;
    return plan;
  }
  const Geometry& g = depthwise->desc.geometry;
  plan.ring_rows = ring_rows(g, 1);
  const size_t half = caches.l2 / 2 / sizeof(float);
  if (item.desc.squeezed()) return plan_squeezed(item, shape, isa, caches, threads, plan);
  while (plan.column_parts < shape.out_w && ring_floats(item, shape, isa, plan) > half) ++plan.column_parts;
  if (plan.column_parts == 1) {
    // Rows too short for whole tiles are taken several at a time, as far as the ring stays small. Always where only the
    // project has a matrix: its weights are read once for each step, and there is room.
    const bool until_full = item.find(Role::kExpand) || !item.find(Role::kProject);
    while (plan.rows_per_step < shape.out_h && !(until_full && fills_tiles(isa, plan.rows_per_step * shape.out_w))) {
      ItemPlan more = plan;
      ++more.rows_per_step;
      more.ring_rows = ring_rows(g, more.rows_per_step);
      if (ring_floats(item, shape, isa, more) > half) break;
      plan = more;
    }
  }
  if (!item.find(Role::kProject)) return plan;
  // Bands of fewer than four rows spend too much on their seams. And where the cache does not hold rows enough to fill
  // the tiles, or not the weights beside the ring, channels pass in groups, unless the depthwise output, which is then
  // kept whole, is large: all tiles are full, and a weight is read once or a few times instead of once for every row.
  const bool few_rows = threads > 1 && shape.out_h < 4 * threads && plan.column_parts == 1,
             short_steps = plan.column_parts > 1 ||
                           (plan.rows_per_step < shape.out_h && !fills_tiles(isa, plan.rows_per_step * shape.out_w)),
             heavy = item.find(Role::kExpand) && plan.rows_per_step < shape.out_h && dense_floats(item) > half;
  const bool in_groups = (short_steps || heavy) && depthwise_floats(item, shape, isa) <= kKeptHalves * half;
  if (!few_rows && !in_groups) return plan;
  plan.column_parts = 1;
  plan.split = Split::kHidden;
  plan.rows_per_step = shape.out_h;
  plan.ring_rows = std::min(ring_rows(g, plan.rows_per_step), shape.depthwise.h);
  // Few hidden channels at a time: their ring stays in the first cache.
  const size_t ring = ring_floats(item, shape, isa, plan) / hidden_units(item, isa);
  plan.hidden_panels = std::max(1, static_cast<int>(caches.l1d / 2 / sizeof(float) / std::max<size_t>(1, ring)));
  plan.chunk = project_chunk(depthwise->desc.out, shape.out_h * shape.out_w, caches);
  return plan;
}

Grid choose_grid(int m, int n, int tasks) {
  Grid best{1, 1};
  double best_load = static_cast<double>(m) * n;
  for (int parts = 1; parts <= std::min(n, tasks); ++parts) {
    const int m_parts = std::min(m, (tasks + parts - 1) / parts);
    if (m_parts < 1) break;
    const double load = std::ceil(static_cast<double>(m) / m_parts) * std::ceil(static_cast<double>(n) / parts);
    if (load < best_load) {
      best_load = load;
      best = {m_parts, parts};
    }
  }
  return best;
}

namespace {
int workers_for_work(double multiply_adds, double of_one, int threads) {
  const double most = multiply_adds / of_one;
  return most < 2 ? 1 : std::min(threads, static_cast<int>(std::min(most, 1e6)));
}
}  // namespace

int useful_workers(double multiply_adds, int threads) {
  return workers_for_work(multiply_adds, kWorkPerWorker, threads);
}

int useful_parts(double multiply_adds, int workers) { return workers_for_work(multiply_adds, kWorkPerPart, workers); }

std::string kernel_name(const ItemDesc& item) {
  if (item.linear) return "linear";
  if (item.mean) return "pool";
  static const char* const roles[] = {"expand", "depthwise", "squeeze", "excite", "project"};
  std::string name;
  for (const StageDesc& s : item.stages) {
    const Geometry& g = s.geometry;
    if (s.role == Role::kReduce) name += "+squeeze";
    if (s.role == Role::kReduce || s.role == Role::kExcite) continue;
    const char* role = item.stages.size() == 1 && s.role == Role::kExpand ? "conv" : roles[static_cast<int>(s.role)];
    name += (name.empty() ? "" : "+") + std::string(role) + std::to_string(g.kh) + "x" + std::to_string(g.kw);
    if (g.sh != 1 || g.sw != 1) name += "s" + std::to_string(std::max(g.sh, g.sw));
    if (g.dh != 1 || g.dw != 1) name += "d" + std::to_string(std::max(g.dh, g.dw));
  }
  if (item.residual) name += item.residual_back ? "+shortcut" : "+residual";
  if (item.pool) name += "+pool";
  return name;
}

const char* split_name(Split split) {
  switch (split) {
    case Split::kRows:
      return "rows";
    case Split::kHidden:
      return "hidden";
    case Split::kGrid:
      return "grid";
    case Split::kPanels:
      return "panels";
  }
  return "";
}

}  // namespace mobilenet_ext
