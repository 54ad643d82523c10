// What one task does with one image of one item. Every function first carves its scratch from the arena and, when the
// arena only measures, returns there: the same code says how much scratch a task needs.
#pragma once
#include "dense.h"
#include "hidden_rows.h"

namespace mobilenet_ext {

struct Region {
  int y0, y1, x0, x1;  // output rows and columns
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

// What squeeze-and-excitation keeps of one image: sums [row][channel] of the depthwise output, the vector between its
// two layers, and one scale per channel; channels padded to whole blocks.
struct Squeeze {
  double* sums = nullptr;
  float *reduced = nullptr, *scale = nullptr;
};
size_t squeeze_floats(const Job& job);
Squeeze squeeze_at(const Job& job, float* memory);

// Some units of hidden channels and some output rows up to the depthwise output: shared[block][pixel][vector] of the
// whole image, and with squeeze-and-excitation each row's sums. Seams only with all units at once.
void run_hidden(const Job& job, Range units, Range rows, const Seam& above, const Seam& below, float* shared,
                const Squeeze& squeeze, Arena& arena);
// The two layers of squeeze-and-excitation.
void run_reduce(const Job& job, const Squeeze& squeeze, Range panels, Arena& arena);
void run_excite(const Job& job, const Squeeze& squeeze, Range panels);
// Then some pixels and panels of the project.
void run_project(const Job& job, const float* shared, const Squeeze& squeeze, Range pixels, Range panels, Arena& arena);

// All of these in turn, by one worker.
void run_in_phases(const Job& job, Arena& arena);

// Single convolutions: a region of the output and some panels; pool: some panels.
void run_conv(const Job& job, const Region& region, Range panels, Arena& arena);
void run_pool(const Job& job, Range panels, Arena& arena);
// The parts that run_pool is split into: panels, or groups of channels where there is no convolution.
int pool_parts(const PackedItem& item);

}  // namespace mobilenet_ext
