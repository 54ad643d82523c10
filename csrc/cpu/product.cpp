#include "product.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "pack.h"
#include "pitch.h"

namespace mobilenet_ext {
namespace {

// b as panels [k][width]; says where each lies.
std::vector<Panel> pack_panels(const IsaTable& isa, const Product& p, Buffer& packed, const Threads& threads) {
  std::vector<Panel> panels = choose_panels(isa, p.n, false);
  size_t floats = 0;
  for (Panel& panel : panels) {
    panel.weights = floats;
    floats += (static_cast<size_t>(p.k) * panel.kind->width + 15) / 16 * 16;
  }
  packed = Buffer(std::max<size_t>(1, floats));
  const int tasks = static_cast<int>(panels.size());
  for_each_task(tasks, workers_for(4 * floats, tasks, threads), 0, threads, [&](int i, float*) {
    const Panel& panel = panels[i];
    const int width = panel.kind->width;
    float* to = packed.data() + panel.weights;
    if (panel.valid < width) std::fill_n(to, static_cast<ptrdiff_t>(p.k) * width, 0.0f);
    if (!p.transposed) {
      for (int k = 0; k < p.k; ++k) {
        std::copy_n(p.b + static_cast<ptrdiff_t>(k) * p.n + panel.first, panel.valid,
                    to + static_cast<ptrdiff_t>(k) * width);
      }
      return;
    }
    constexpr int kTile = 64;  // rows of a panel that stay in the first cache while all columns are filled
    for (int from = 0; from < p.k; from += kTile) {
      const int count = std::min(kTile, p.k - from);
      for (int n = 0; n < panel.valid; ++n) {
        const float* in = p.b + static_cast<ptrdiff_t>(panel.first + n) * p.k + from;
        for (int k = 0; k < count; ++k) to[static_cast<ptrdiff_t>(from + k) * width + n] = in[k];
      }
    }
  });
  return panels;
}

// Vectors [first, first + vectors) of the narrow side: twos, and a three or a one where their number is odd.
struct NarrowPanel {
  int first, vectors;
};

std::vector<NarrowPanel> narrow_panels(int count) {
  std::vector<NarrowPanel> panels;
  for (int first = 0; first < count;) {
    const int left = count - first;
    panels.push_back({first, left % 2 == 0 ? 2 : std::min(left, 3)});
    first += panels.back().vectors;
  }
  return panels;
}

// `valid` columns of some pixels, less their centers, as [pixel][width]; the rest is zero.
void pack_narrow(const float* from, int pitch, int pixels, const float* center, int valid, int width, float* to) {
  for (int i = 0; i < pixels; ++i, from += pitch, to += width) {
    if (center) {
      for (int j = 0; j < valid; ++j) to[j] = from[j] - center[j];
    } else {
      std::copy_n(from, valid, to);
    }
    std::fill_n(to + valid, width - valid, 0.0f);
  }
}

}  // namespace

void run_product(const IsaTable& isa, const TrainTable& train, const Product& p, const Threads& threads) {
  if (p.pixels == 0 || p.n == 0) return;
  Buffer packed;
  const std::vector<Panel> panels = pack_panels(isa, p, packed, threads);
  int widest = 0;
  for (const Panel& panel : panels) widest = std::max(widest, panel.kind->width);
  const std::vector<float> bias(widest, 0.0f);
  // A block of a's rows stays in the caches while all panels pass over it.
  const int rows = std::clamp(24 * 1024 / std::max(1, p.k) / 24 * 24, 24, 192);
  const int tasks = static_cast<int>((p.pixels + rows - 1) / rows);
  const ptrdiff_t pitch = pixel_pitch(p.k);
  const size_t scratch_floats = p.scale || pitch != p.k ? static_cast<size_t>(rows * pitch) : 0;
  const int workers = workers_for(p.pixels * std::max(p.k, p.n), tasks, threads);
  const ptrdiff_t segment = 0;
  for_each_task(tasks, workers, scratch_floats, threads, [&](int i, float* scratch) {
    const int64_t first = static_cast<int64_t>(i) * rows;
    GemmArgs g{};
    g.a = p.a + first * p.k;
    g.m = static_cast<int>(std::min<int64_t>(rows, p.pixels - first));
    if (pitch != p.k) {
      for (int m = 0; m < g.m; ++m) std::copy_n(g.a + static_cast<ptrdiff_t>(m) * p.k, p.k, scratch + m * pitch);
      g.a = scratch;
    }
    if (p.scale) {
      PassArgs pass{};
      pass.x = g.a;
      pass.y = scratch;
      pass.pitch = pitch;
      pass.pixels = g.m;
      pass.channels = p.k;
      pass.scale = p.scale;
      pass.shift = p.shift;
      pass.lo = p.lo;
      pass.hi = p.hi;
      train.apply(pass);
      g.a = scratch;
    }
    g.a_pixel = pitch;
    g.segments = &segment;
    g.segment_count = 1;
    g.segment_length = p.k;
    g.bias = bias.data();
    g.c_pixel = p.n;
    g.lo = -HUGE_VALF;
    g.hi = HUGE_VALF;
    for (const Panel& panel : panels) {
      g.b = packed.data() + panel.weights;
      g.c = p.out + first * p.n + panel.first;
      g.c_vector = panel.kind->vector;
      g.n_valid = panel.valid;
      panel.kind->gemm(g);
    }
  });
}

void run_weight_product(const TrainTable& train, const WeightProduct& p, const Threads& threads) {
  constexpr int kPixels = 128, kColumns = 24, kGroups = 4;
  const int n = p.narrow_columns, vector = train.vector;
  if (p.pixels == 0 && !p.accumulate) std::fill_n(p.out, static_cast<ptrdiff_t>(p.wide_columns) * n, 0.0f);
  if (p.pixels == 0 || n == 0) return;
  // The narrow side as panels [block of pixels][panel][pixel][width].
  const std::vector<NarrowPanel> panels = narrow_panels((n + vector - 1) / vector);
  const ptrdiff_t block_floats = static_cast<ptrdiff_t>((n + vector - 1) / vector) * vector * kPixels;
  const int blocks = static_cast<int>((p.pixels + kPixels - 1) / kPixels);
  Scratch packed(static_cast<size_t>(blocks) * block_floats);
  auto pixels_of = [&](int block) {
    return static_cast<int>(std::min<int64_t>(kPixels, p.pixels - static_cast<int64_t>(block) * kPixels));
  };
  auto panel_at = [&](int block, const NarrowPanel& panel) {
    return packed.data() + block * block_floats + static_cast<ptrdiff_t>(panel.first) * vector * kPixels;
  };
  for_each_task(blocks, workers_for(p.pixels * n, blocks, threads), 0, threads, [&](int block, float*) {
    for (const NarrowPanel& panel : panels) {
      const int first = panel.first * vector, width = panel.vectors * vector, valid = std::min(width, n - first);
      pack_narrow(p.narrow + static_cast<ptrdiff_t>(block) * kPixels * n + first, n, pixels_of(block),
                  p.center ? p.center + first : nullptr, valid, width, panel_at(block, panel));
    }
  });
  // Neighbouring groups of columns go to one worker: then it reads the wide side in longer runs. Which worker takes
  // which changes no sum.
  const int groups = (p.wide_columns + kColumns - 1) / kColumns;
  const int workers = workers_for(p.pixels * p.wide_columns, groups, threads);
  const int per_task = std::min((groups + workers - 1) / workers, kGroups);
  const int tasks = (groups + per_task - 1) / per_task;
  // Where many panels read the same columns these are copied together first: a pixel's distance from the next maps
  // 128 of them to few sets of the first cache.
  const bool copies = panels.size() >= 8;
  for_each_task(tasks, workers, copies ? kPixels * kColumns : 0, threads, [&](int i, float* scratch) {
    const int end = std::min(p.wide_columns, (i + 1) * per_task * kColumns);
    WeightProductArgs w{};
    w.wide_pixel = copies ? kColumns : p.wide_columns;
    w.out_row = n;
    for (int block = 0; block < blocks; ++block) {
      w.pixels = pixels_of(block);
      w.add = block || p.accumulate;
      w.ahead = !copies && block + 1 < blocks ? static_cast<ptrdiff_t>(kPixels) * p.wide_columns : 0;
      for (int first = i * per_task * kColumns; first < end; first += kColumns) {
        w.wide = p.wide + static_cast<ptrdiff_t>(block) * kPixels * p.wide_columns + first;
        w.rows = std::min(kColumns, end - first);
        if (copies) {
          for (int k = 0; k < w.pixels; ++k) {
            std::copy_n(w.wide + static_cast<ptrdiff_t>(k) * p.wide_columns, w.rows, scratch + k * kColumns);
          }
          w.wide = scratch;
        }
        for (const NarrowPanel& panel : panels) {
          w.narrow = panel_at(block, panel);
          w.vectors = panel.vectors;
          w.valid = n - panel.first * vector;
          w.out = p.out + static_cast<ptrdiff_t>(first) * n + panel.first * vector;
          train.weight_product(w);
        }
      }
    }
  });
}

}  // namespace mobilenet_ext
