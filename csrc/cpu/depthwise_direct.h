// What forward and backward share where depthwise rows are read straight from the tensors, without rings of gathered
// rows: nothing is applied as they are read.
#pragma once
#include "depthwise_rows.h"

namespace mobilenet_ext {

// Whether depthwise_pixels takes the convolution, and depthwise_pixels_back both its gradients.
bool forward_is_direct(const DepthwiseShape& s);
bool backward_is_direct(const DepthwiseShape& s);

// Groups whose rows in flight, `columns` pixels together, stay in a part of the second cache: all channels, but of very
// wide images.
std::vector<Group> direct_groups(const DepthwiseShape& s, const TrainTable& isa, int columns);

// Whether results go past the caches: when a call touches more than the last one holds, what it writes first would be
// gone from there before anyone reads it, and room for it costs reading it. Whole vectors at aligned addresses only.
bool streams(const DepthwiseShape& s, const float* out, int64_t floats);

// The rows of one image as the kernels read them: where they lie, or copied to a ring. Pixels some powers of two apart
// share so few sets of the first cache that the lines of one tile displace one another.
class DirectRows {
 public:
  // `rows` of the ring; with `ring` null it only says how many floats that takes.
  DirectRows(const float* image, int height, int width, int channels, const Group& group, int rows, float* ring);
  static size_t ring_floats(int width, int channels, int rows);

  ptrdiff_t pixel() const { return pixel_; }
  // Column 0 of a row; asked for in ascending order, the last `rows` ones remain.
  const float* row(int y);
  // Where row y lies, to be asked for; null past the end, and where rows are copied: that reads memory in its order.
  const float* ahead(int y) const {
    return y < height_ && !ring_ ? image_ + static_cast<ptrdiff_t>(y) * row_ : nullptr;
  }

 private:
  const float* image_;
  int height_, width_, rows_;
  size_t bytes_;  // of a pixel's channels in the group
  ptrdiff_t row_, image_pixel_, pixel_;
  float* ring_;  // null: rows are read where they lie
  int last_ = -1;
};

// Both gradients of one band of input rows. One of them alone takes as long: memory is what takes time, so the kernel
// makes both, and the one that nobody wants stays in scratch.
class DirectBackward {
 public:
  DirectBackward(const TrainTable& train, const DepthwiseShape& s, const float* g, const float* x, const float* weight,
                 float* dx);
  size_t tap_floats() const { return static_cast<size_t>(blocks_of(train_, s_.channels)) * 9 * train_.vector; }
  size_t scratch_floats() const;
  // `taps` receives the weight gradient as the kernels lay it out: [block][ky][kx][vector]; null: not wanted.
  void run(const Band& band, float* scratch, double* taps, double*) const;

 private:
  // `unwanted`: where the row of dx goes if nobody wants it.
  void make_row(int n, int iy, const Group& group, DirectRows& rows, float* sums, float* unwanted) const;
  size_t row_floats() const { return static_cast<size_t>(s_.w) * s_.channels; }

  const TrainTable& train_;
  const DepthwiseShape& s_;
  const float *g_, *x_;
  float* dx_;  // or null
  std::vector<Group> groups_;
  std::vector<float> packed_;
  bool stream_;
};

}  // namespace mobilenet_ext
