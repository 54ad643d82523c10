// The left operand of a dense convolution's GEMM: pixels where they lie (1x1 over NHWC), gathered pixels (1x1 over any
// other layout, or where the rows of a tile would collide), or padded planes of input rows (larger kernels).
#pragma once
#include "memory.h"
#include "pack.h"

namespace mobilenet_ext {

// One image; strides in floats.
struct InView {
  const float* data;
  ptrdiff_t row, pixel, channel;
};
struct OutView {
  float* data;
  ptrdiff_t row, pixel, channel;
};

class Operand {
 public:
  // For output columns [begin, end) of the convolution (any sub-range for 1x1), at most `rows` output rows at once.
  Operand(const StageDesc& stage, const Placed& placed, const InView& in, int begin, int end, int rows, Arena& arena);

  // `count` output rows from y on, columns [begin, end): fills the A side of the arguments. More than one row only
  // where rows_join() says that they follow one another.
  void load(int y, int count, int begin, int end, GemmArgs& args);
  bool rows_join(int begin, int end) const;

 private:
  void load_planes(int y, GemmArgs& args);
  void fill_plane_row(int iy, float* to) const;
  void load_pixels(int y, GemmArgs& args);
  void fill_pixel_row(int iy, float* to) const;

  const StageDesc& stage_;
  const Placed& placed_;
  InView in_;
  int begin_;
  bool gather_ = false, planes_ = false;
  float* buffer_ =
      nullptr;  // gathered pixels [pixel][pixel_pitch(in)], or planes [slot][in][plane_row_] and a zero row
  ptrdiff_t* segments_ = nullptr;
  int* tags_ = nullptr;  // which input row a plane slot holds
  int slots_ = 0, plane_row_ = 0;
};

}  // namespace mobilenet_ext
