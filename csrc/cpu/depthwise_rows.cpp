#include "depthwise_rows.h"

#include <numeric>

namespace mobilenet_ext {

std::vector<float> pack_weight(const float* weight, int channels, int taps, const std::vector<int>& order, int vector) {
  const int blocks = (channels + vector - 1) / vector, count = static_cast<int>(order.size());
  std::vector<float> packed(static_cast<size_t>(blocks) * count * vector, 0.0f);
  float* to = packed.data();
  for (int first = 0; first < channels; first += vector) {
    const float* block = weight + static_cast<ptrdiff_t>(first) * taps;
    const int valid = std::min(vector, channels - first);
    for (int t = 0; t < count; ++t, to += vector) {
      for (int lane = 0; lane < valid; ++lane) to[lane] = block[lane * taps + order[t]];
    }
  }
  return packed;
}

std::vector<int> all_taps(int count) {
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  return order;
}

std::vector<Group> split_channels(const DepthwiseShape& s, const TrainTable& isa, int most) {
  const int all = blocks_of(isa, s.channels), count = (all + most - 1) / most;
  std::vector<Group> groups;
  for (int i = 0; i < count; ++i) {
    const int begin = all * i / count, end = all * (i + 1) / count, first = begin * isa.vector;
    groups.push_back({first, std::min(s.channels, end * isa.vector) - first, begin, end - begin});
  }
  return groups;
}

std::vector<Group> groups_of(const DepthwiseShape& s, const TrainTable& isa, size_t block_floats) {
  constexpr size_t kRingFloats = 1 << 15;  // 128 kB
  return split_channels(s, isa, std::max(1, static_cast<int>(kRingFloats / block_floats)));
}

std::vector<Band> bands_of(const DepthwiseShape& s) {
  const int wanted = s.n >= 16 ? 1 : (16 + std::max(1, s.n) - 1) / std::max(1, s.n);
  const int count = std::max(1, std::min(wanted, s.oh / 8));
  std::vector<Band> bands;
  for (int n = 0; n < s.n; ++n) {
    for (int i = 0; i < count; ++i) bands.push_back({n, s.oh * i / count, s.oh * (i + 1) / count});
  }
  return bands;
}

GatherArgs gather_args(const Prologue& p, int pixels, const DepthwiseShape& s, const Group& group) {
  GatherArgs a{};
  a.pixels = pixels;
  a.channels = group.channels;
  a.pitch = s.channels;
  if (p.scale) {
    a.scale = p.scale + group.first;
    a.shift = p.shift + group.first;
  }
  a.lo = p.lo;
  a.hi = p.hi;
  return a;
}

InputReader::InputReader(const TrainTable& isa, const DepthwiseShape& s, const float* image, const Prologue& prologue,
                         const Group& group, const Rows& rows)
    : isa_(isa), s_(s), image_(image + group.first), rows_(rows), args_(gather_args(prologue, s.w, s, group)) {
  args_.block = rows.block();
}

void InputReader::need(int oy, int* ky_begin, int* ky_end, const float** pointers) {
  const int first = oy * s_.sh - s_.top;
  kernel_rows(s_, oy, ky_begin, ky_end);
  next_ = std::max({next_, first, 0});  // with a dilation later rows need what this one steps over
  for (const int end = first + (*ky_end - 1) * s_.dh + 1; next_ < end; ++next_) {
    args_.x = image_ + static_cast<ptrdiff_t>(next_) * s_.w * s_.channels;
    args_.out = rows_.row(next_);
    isa_.gather(args_);
  }
  for (int ky = *ky_begin; ky < *ky_end; ++ky) {
    pointers[ky] = rows_.row(first + ky * s_.dh) - static_cast<ptrdiff_t>(s_.left) * isa_.vector;
  }
}

int64_t elements(const DepthwiseShape& s) {
  return static_cast<int64_t>(s.n) * s.channels * (static_cast<int64_t>(s.h) * s.w + static_cast<int64_t>(s.oh) * s.ow);
}

}  // namespace mobilenet_ext
