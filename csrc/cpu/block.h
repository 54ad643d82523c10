// What one task does with one image of one item. Every function first carves its scratch from the arena and, when the
// arena only measures, returns there: the same code says how much scratch a task needs.
#pragma once
#include "hidden_rows.h"

namespace mobilenet_ext {

struct Region {
  int y0, y1, x0, x1;  // output rows and columns
};
struct Range {
  int begin, end;
};

// The whole item by one worker.
void run_item(const Job& job, Arena& arena);

// Items with a depthwise stage: a region of the output, row by row through the ring.
void run_rows(const Job& job, const Region& region, const Seam& above, const Seam& below, Arena& arena);
// One hidden row, all channels and columns, for two bands that share it.
void run_seam_row(const Job& job, int y, float* row, Arena& arena);
size_t seam_row_floats(const Job& job);
// The hidden rows that the bands above and below output row `y` both read.
Range seam_rows(const Job& job, int y);

// Some units of hidden channels up to the depthwise output of the whole image: shared[block][pixel][vector].
void run_hidden(const Job& job, Range units, float* shared, Arena& arena);
// Then some pixels and panels of the project.
void run_project(const Job& job, const float* shared, Range pixels, Range panels, Arena& arena);

// Single convolutions: a region of the output and some panels; pool: some panels.
void run_conv(const Job& job, const Region& region, Range panels, Arena& arena);
void run_pool(const Job& job, Range panels, Arena& arena);

}  // namespace mobilenet_ext
