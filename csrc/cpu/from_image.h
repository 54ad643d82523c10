// The depthwise stage of a block that expands nothing, straight from its channels_last input: no ring, no copy.
// Internal to the files of block.h.
#pragma once
#include "filter.h"

namespace mobilenet_ext {

// Whether that is possible: the cases of depthwise_pixels, and channels in whole blocks unless they are written to
// where a partial one may end.
bool filters_image(const Job& job, bool partial_blocks);

// Columns [x0, x1) of one output row of some channel blocks; `out` starts at the first of `blocks`.
void filter_image_row(const Job& job, Blocks blocks, int y, int x0, int x1, const DepthwiseOut& out,
                      const float** rows);

}  // namespace mobilenet_ext
