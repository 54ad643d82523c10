// What forward and backward of the depthwise stage share: rings of rows, channel groups, bands, packed weights.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "depthwise_train.h"
#include "sums.h"

namespace mobilenet_ext {

constexpr float kInfinity = HUGE_VALF;

inline int ceil_div(int a, int b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }
inline int floor_div(int a, int b) { return -ceil_div(-a, b); }

inline int blocks_of(const TrainTable& isa, int channels) { return (channels + isa.vector - 1) / isa.vector; }

// Rows [block][left + width + right][vector] in a ring; the columns outside the image are zero.
class Rows {
 public:
  Rows(int rows, int width, int left, int right, int vector)
      : rows_(rows), left_(left), columns_(left + width + right), width_(width), vector_(vector) {}

  size_t floats(int blocks) const { return static_cast<size_t>(rows_) * blocks * block(); }
  ptrdiff_t block() const { return static_cast<ptrdiff_t>(columns_) * vector_; }
  // Column 0 of the image in row y.
  float* row(int y) const { return base_ + (y % rows_) * blocks_ * block() + static_cast<ptrdiff_t>(left_) * vector_; }

  void use(float* base, int blocks) {
    base_ = base;
    blocks_ = blocks;
    const ptrdiff_t past = static_cast<ptrdiff_t>(left_ + width_) * vector_;
    for (int line = 0; line < rows_ * blocks; ++line) {
      float* p = base + line * block();
      std::fill_n(p, left_ * vector_, 0.0f);
      std::fill_n(p + past, block() - past, 0.0f);
    }
  }

 private:
  int rows_, left_, columns_, width_, vector_;
  int blocks_ = 0;
  float* base_ = nullptr;
};

// Input columns outside the image that the last output column sees.
inline int columns_at_right(const DepthwiseShape& s) {
  return std::max(0, (s.ow - 1) * s.sw - s.left + (s.kw - 1) * s.dw - (s.w - 1));
}

inline Rows input_rows(const DepthwiseShape& s, const TrainTable& isa) {
  return Rows((s.kh - 1) * s.dh + 1, s.w, s.left, columns_at_right(s), isa.vector);
}

// Channels [first, first + channels) as blocks [block, block + blocks): as many as have their rings in a part of the
// second cache.
struct Group {
  int first, channels, block, blocks;
};

std::vector<Group> groups_of(const DepthwiseShape& s, const TrainTable& isa, size_t block_floats);
// All channels in groups of about as many blocks, at most `most`.
std::vector<Group> split_channels(const DepthwiseShape& s, const TrainTable& isa, int most);

// The kernel rows [begin, end) of output row oy that are inside the image.
inline void kernel_rows(const DepthwiseShape& s, int oy, int* begin, int* end) {
  const int first = oy * s.sh - s.top;
  *begin = std::min(s.kh, std::max(0, ceil_div(-first, s.dh)));
  *end = std::max(*begin, std::min(s.kh, floor_div(s.h - 1 - first, s.dh) + 1));
}

// Output rows after which the next group has its turn: what they read and write stays in the second cache.
inline int turn_rows(const DepthwiseShape& s, int images_in, int images_out) {
  constexpr int64_t kFloats = 1 << 16;  // a quarter of a megabyte
  const int64_t row = static_cast<int64_t>(s.channels) * (images_in * s.sh * s.w + images_out * s.ow);
  return static_cast<int>(std::clamp<int64_t>(kFloats / std::max<int64_t>(1, row), 1, s.oh));
}

std::vector<int> all_taps(int count);
// [channels][taps] -> [block][taps][vector], for the taps that `order` lists.
std::vector<float> pack_weight(const float* weight, int channels, int taps, const std::vector<int>& order, int vector);

// Output rows [begin, end) of image n.
struct Band {
  int n, begin, end;
};

// Whole images, cut into bands of eight rows or more where there are few; from the shape alone.
std::vector<Band> bands_of(const DepthwiseShape& s);

// Reads the rows of one input image into a ring, in order, each once, rows that nothing needs left out.
class InputReader {
 public:
  InputReader(const TrainTable& isa, const DepthwiseShape& s, const float* image, const Prologue& prologue,
              const Group& group, const Rows& rows);
  // Makes every row that output row oy needs; `pointers` receives them at the first tap of output column 0.
  void need(int oy, int* ky_begin, int* ky_end, const float** pointers);
  ptrdiff_t block() const { return rows_.block(); }

 private:
  const TrainTable& isa_;
  const DepthwiseShape& s_;
  const float* image_;
  Rows rows_;
  GatherArgs args_;
  int next_ = 0;
};

GatherArgs gather_args(const Prologue& p, int pixels, const DepthwiseShape& s, const Group& group);

// The floats that a call reads and writes, which tell how many workers it is worth.
int64_t elements(const DepthwiseShape& s);

}  // namespace mobilenet_ext
