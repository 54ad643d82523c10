// The second GEMM of a block and what it needs of the output's layout. Internal to the files of block.h.
#pragma once
#include "block.h"

namespace mobilenet_ext {

inline int block_count(const Job& job) {
  const int vector = job.chain.header.isa->vector;
  return (job.item.find(Role::kDepthwise)->desc.out + vector - 1) / vector;
}

inline bool output_is_nhwc(const Job& job) { return job.out.channel == 1; }

// [m][channels] rows at `from` to output pixels [first, first + m), whose channels are strided.
void store_transposed(const Job& job, const float* from, int first, int m, int channels);

// What the shortcut adds at output pixels [first, first + m) as [m][channels], in place where it lies that way.
const float* residual_pixels(const Job& job, int first, int m, float* buffer, ptrdiff_t* pixel);

// Hidden pixels [block][pixel][vector] to output pixels.
class Project {
 public:
  Project(const Job& job, int most_pixels, Arena& arena);
  void run(const float* hidden, ptrdiff_t block_floats, int first, int m, Range panels);

 private:
  const Job& job_;
  const PackedStage& stage_;
  ptrdiff_t* segments_;
  float *residual_ = nullptr, *rows_ = nullptr;
};

}  // namespace mobilenet_ext
