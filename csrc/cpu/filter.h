// The depthwise stage of a block, fed by the ring of hidden rows. Internal to the files of block.h.
#pragma once
#include <algorithm>

#include "block.h"

namespace mobilenet_ext {

// Where a depthwise row goes: pixel and channel block strides, and how many channels of the last block exist there.
struct DepthwiseOut {
  float* data;
  ptrdiff_t pixel, block;
  int last_valid;
};

// One output row of some channel blocks from the ring; `out` starts at block hidden.blocks().begin.
void depthwise_row(const Job& job, const HiddenRows& hidden, Blocks blocks, int y, int width, const DepthwiseOut& out,
                   const float** rows);

// Hidden rows that output row y needs.
int first_row_needed(const Job& job, int y);
int last_row_needed(const Job& job, int y);

// Output rows [y, y + count): the hidden rows they still lack, then the depthwise stage; out(r) says where row r goes.
// Expanded rows are made for all channels at once, which keeps the loops long (panel by panel was 3 % slower at stride
// 2); rows that are only copied are used block by block, while they are in the first cache.
template <class Out>
void filter_rows(const Job& job, HiddenRows& hidden, int y, int count, int width, int* next, const float** rows,
                 Out&& out) {
  const int last = last_row_needed(job, y + count - 1);
  const int begin = std::max(*next, first_row_needed(job, y)), end = std::max(begin, last + 1);
  const Blocks all = hidden.blocks();
  const int size = job.item.find(Role::kExpand) ? all.end - all.begin : 1;
  for (int block = all.begin; block < all.end; block += size) {
    const Blocks some{block, block + size};
    hidden.make(begin, end, some);
    for (int r = 0; r < count; ++r) depthwise_row(job, hidden, some, y + r, width, out(r), rows);
  }
  *next = end;
}

}  // namespace mobilenet_ext
