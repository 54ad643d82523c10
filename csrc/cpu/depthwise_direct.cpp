#include "depthwise_direct.h"

#include <cstring>
#include <numeric>

#include "detect.h"

namespace mobilenet_ext {
namespace {

constexpr int kLineFloats = 16;
// The first cache of most processors.
constexpr int kSets = 64, kWays = 8;
// Three rows of a tile of four columns with those beside it.
constexpr int kTileLines = 18;

bool pixels_collide(int channels) {
  return channels % kLineFloats == 0 && kSets / std::gcd(kSets, channels / kLineFloats) * kWays < kTileLines;
}

}  // namespace

bool forward_is_direct(const DepthwiseShape& s) {
  // The last two: every output row sees a row of the image.
  return s.kh <= 3 && s.kw == 3 && s.sw <= 2 && s.dh == 1 && s.dw == 1 && s.left <= 1 && columns_at_right(s) <= 1 &&
         s.top < s.kh && (s.oh - 1) * s.sh - s.top < s.h;
}

bool backward_is_direct(const DepthwiseShape& s) {
  return s.kh == 3 && s.kw == 3 && s.dh == 1 && s.dw == 1 && s.sh == s.sw && s.left == 1 &&
         (s.sw == 1 ? s.ow == s.w : s.sw == 2 && s.ow == ceil_div(s.w, 2));
}

std::vector<Group> direct_groups(const DepthwiseShape& s, const TrainTable& isa, int columns) {
  constexpr int kFloats = 1 << 16;  // a quarter of a megabyte
  return split_channels(s, isa, std::max(1, kFloats / (columns * isa.vector)));
}

bool streams(const DepthwiseShape& s, const float* out, int64_t floats) {
  return static_cast<size_t>(floats) * sizeof(float) > cache_sizes().l3 && s.channels % kLineFloats == 0 &&
         reinterpret_cast<uintptr_t>(out) % kAlignment == 0;
}

DirectRows::DirectRows(const float* image, int height, int width, int channels, const Group& group, int rows,
                       float* ring)
    : image_(image + group.first),
      height_(height),
      width_(width),
      rows_(rows),
      bytes_(group.channels * sizeof(float)),
      row_(static_cast<ptrdiff_t>(width) * channels),
      image_pixel_(channels),
      pixel_(pixels_collide(channels) ? channels + kLineFloats : channels),
      ring_(pixels_collide(channels) ? ring : nullptr) {}

size_t DirectRows::ring_floats(int width, int channels, int rows) {
  return pixels_collide(channels) ? static_cast<size_t>(rows) * width * (channels + kLineFloats) : 0;
}

const float* DirectRows::row(int y) {
  if (!ring_) return image_ + y * row_;
  auto place = [&](int row) { return ring_ + row % rows_ * width_ * pixel_; };
  for (last_ = std::max(last_, y - rows_); last_ < y;) {
    const float* from = image_ + ++last_ * row_;
    float* to = place(last_);
    for (int i = 0; i < width_; ++i) std::memcpy(to + i * pixel_, from + i * image_pixel_, bytes_);
  }
  return place(y);
}

DirectBackward::DirectBackward(const TrainTable& train, const DepthwiseShape& s, const float* g, const float* x,
                               const float* weight, float* dx)
    : train_(train),
      s_(s),
      g_(g),
      x_(x),
      dx_(dx),
      groups_(direct_groups(s, train, 2 * s.w + 3 * s.ow)),
      packed_(pack_weight(weight, s.channels, 9, all_taps(9), train.vector)),
      stream_(dx && streams(s, dx, 2 * elements(s) - static_cast<int64_t>(s.n) * s.channels * s.oh * s.ow)) {}

size_t DirectBackward::scratch_floats() const {
  return tap_floats() + (dx_ ? 0 : row_floats()) + groups_.size() * DirectRows::ring_floats(s_.ow, s_.channels, 3);
}

void DirectBackward::run(const Band& band, float* scratch, double* taps, double*) const {
  float* sums = scratch;
  scratch += tap_floats();
  std::fill_n(sums, tap_floats(), 0.0f);
  if (taps) std::fill_n(taps, tap_floats(), 0.0);
  float* unwanted = scratch;
  if (!dx_) scratch += row_floats();
  std::vector<DirectRows> rows;
  const float* gradient = g_ + static_cast<ptrdiff_t>(band.n) * s_.oh * s_.ow * s_.channels;
  for (const Group& group : groups_) {
    rows.emplace_back(gradient, s_.oh, s_.ow, s_.channels, group, 3, scratch);
    scratch += DirectRows::ring_floats(s_.ow, s_.channels, 3);
  }
  const int begin = band.begin == 0 ? 0 : std::clamp(band.begin * s_.sh - s_.top, 0, s_.h);
  const int end = band.end == s_.oh ? s_.h : std::clamp(band.end * s_.sh - s_.top, 0, s_.h);
  int pending = 0;
  for (int iy = begin; iy < end; ++iy) {
    for (size_t i = 0; i < groups_.size(); ++i) make_row(band.n, iy, groups_[i], rows[i], sums, unwanted);
    pending += s_.w;
    if (pending < kFloatPixels && iy + 1 < end) continue;
    for (size_t i = 0; taps && i < tap_floats(); ++i) taps[i] += sums[i];
    std::fill_n(sums, tap_floats(), 0.0f);
    pending = 0;
  }
}

void DirectBackward::make_row(int n, int iy, const Group& group, DirectRows& rows, float* sums, float* unwanted) const {
  const ptrdiff_t row = static_cast<ptrdiff_t>(row_floats()), at = (static_cast<ptrdiff_t>(n) * s_.h + iy) * row;
  float* dx = (dx_ ? dx_ + at : unwanted) + group.first;
  // Kernel rows descend as the gradient's rows ascend.
  const float* pointers[3];
  int count = 0, kernel_row = 0, last = 0;
  for (int ky = 2; ky >= 0; --ky) {
    const int reach = iy + s_.top - ky;
    if (reach < 0 || reach % s_.sh || reach / s_.sh >= s_.oh) continue;
    if (count == 0) kernel_row = ky;
    last = reach / s_.sh;
    pointers[count++] = rows.row(last);
  }
  if (count == 0) {
    for (int i = 0; i < s_.w; ++i) std::fill_n(dx + i * s_.channels, group.channels, 0.0f);
    return;
  }
  const ptrdiff_t tap = (static_cast<ptrdiff_t>(group.block) * 9 + kernel_row * 3) * train_.vector;
  PixelBackArgs d{};
  d.rows = pointers;
  d.count = count;
  d.stride = s_.sh;
  d.width = s_.w;
  d.g_width = s_.ow;
  d.channels = group.channels;
  d.pixel = rows.pixel();
  d.x_pixel = s_.channels;
  d.x = x_ + at + group.first;
  d.dx = dx;
  d.weights = packed_.data() + tap;
  d.sums = sums + tap;
  d.weight_block = static_cast<ptrdiff_t>(9) * train_.vector;
  d.stream = stream_;
  d.g_ahead = rows.ahead(last + 1);
  if (iy + 1 < s_.h) {
    d.x_ahead = d.x + row;
    if (dx_ && !stream_) d.dx_ahead = d.dx + row;
  }
  train_.depthwise_pixels_back(d);
}

}  // namespace mobilenet_ext
