// The plan: how a chain runs on a given input size, cache and number of threads. Pure functions of their arguments.
// No choice made here changes a bit of the result.
#pragma once
#include <string>
#include <vector>

#include "detect.h"
#include "pack.h"

namespace mobilenet_ext {

// An item placed on its input; a 1x1 convolution at stride 1 over dense pixels is one long row (h = 1).
struct ItemShape {
  Placed expand, depthwise;  // those that exist
  int h = 0, w = 0, out_h = 0, out_w = 0;
  double multiply_adds = 0;
};
std::vector<ItemShape> shapes(const ChainDesc& chain, int h, int w);

enum class Split {
  kRows,    // bands of output rows; the rows that two bands share are made once, by tasks of their own
  kHidden,  // hidden channels up to the depthwise output, then pixels x panels of the project
  kGrid,    // single convolutions: rows or pixels x panels
  kPanels,  // pool: panels only, so that a pooled sum stays one chain
};

struct ItemPlan {
  Split split = Split::kRows;
  int rows_per_step = 1;  // output rows between two visits of the ring
  int ring_rows = 0;      // expanded rows kept
  int column_parts = 1;   // an image too wide for the cache is cut into this many column bands
  int hidden_panels = 0;  // kHidden: expand panels (or channel blocks) that share one ring before the next ones begin
  int chunk = 0;          // single 1x1 convolutions: pixels that pass all panels before the next ones are read;
                          // kHidden: pixels that pass all panels of the project
};

// One worker, or `threads` workers that share one image of the item.
ItemPlan plan_item(const PackedItem& item, const ItemShape& shape, const IsaTable& isa, const CacheSizes& caches,
                   int threads);

// Cut [0, m) x [0, n) into at least about `tasks` parts whose largest is as small as possible.
struct Grid {
  int m_parts, n_parts;
};
Grid choose_grid(int m, int n, int tasks);

// Workers worth waking for this much arithmetic.
int useful_workers(double multiply_adds, int threads);
// Of workers that run already, those among whom this much is worth dividing.
int useful_parts(double multiply_adds, int workers);

// "expand1x1+depthwise3x3s2+project1x1": what runs as one kernel, for reports and the verbose line.
std::string kernel_name(const ItemDesc& item);
const char* split_name(Split split);

}  // namespace mobilenet_ext
