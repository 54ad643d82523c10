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
  *ky_begin = std::min(s_.kh, std::max(0, ceil_div(-first, s_.dh)));
  *ky_end = std::max(*ky_begin, std::min(s_.kh, floor_div(s_.h - 1 - first, s_.dh) + 1));
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
