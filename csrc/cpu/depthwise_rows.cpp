#include "depthwise_rows.h"

namespace mobilenet_ext {

std::vector<float> pack_weight(const float* weight, int channels, int taps, const std::vector<int>& order, int vector) {
  const int blocks = (channels + vector - 1) / vector, count = static_cast<int>(order.size());
  std::vector<float> packed(static_cast<size_t>(blocks) * count * vector, 0.0f);
  for (int c = 0; c < channels; ++c) {
    for (int t = 0; t < count; ++t) {
      packed[(static_cast<size_t>(c / vector) * count + t) * vector + c % vector] =
          weight[static_cast<ptrdiff_t>(c) * taps + order[t]];
    }
  }
  return packed;
}

namespace {

// All channels in groups of about as many blocks, at most `most`.
std::vector<Group> split_channels(const DepthwiseShape& s, const TrainTable& isa, int most) {
  const int all = blocks_of(isa, s.channels), count = (all + most - 1) / most;
  std::vector<Group> groups;
  for (int i = 0; i < count; ++i) {
    const int begin = all * i / count, end = all * (i + 1) / count, first = begin * isa.vector;
    groups.push_back({first, std::min(s.channels, end * isa.vector) - first, begin, end - begin});
  }
  return groups;
}

}  // namespace

std::vector<Group> groups_of(const DepthwiseShape& s, const TrainTable& isa, size_t block_floats) {
  constexpr size_t kRingFloats = 1 << 15;  // 128 kB
  return split_channels(s, isa, std::max(1, static_cast<int>(kRingFloats / block_floats)));
}

std::vector<Group> pixel_groups(const DepthwiseShape& s, const TrainTable& isa) {
  constexpr int kChannels = 256;
  return split_channels(s, isa, std::max(1, kChannels / isa.vector));
}

bool walks_pixels(const DepthwiseShape& s) {
  return s.kw == 3 && s.sw <= 2 && s.dw == 1 && s.left <= 1 && columns_at_right(s) <= 1;
}

int image_rows(const DepthwiseShape& s, const float* image, int oy, int* begin, const float** pointers) {
  int end = 0;
  kernel_rows(s, oy, begin, &end);
  for (int ky = *begin; ky < end; ++ky) {
    const ptrdiff_t row = oy * s.sh - s.top + ky * s.dh;
    pointers[ky - *begin] = image + (row * s.w - s.left) * s.channels;
  }
  return end - *begin;
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
