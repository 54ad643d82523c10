#include "operand.h"

#include <algorithm>
#include <cstring>

#include "pitch.h"

namespace mobilenet_ext {
namespace {

constexpr int kLineFloats = 16;  // floats of a cache line

}  // namespace

Operand::Operand(const StageDesc& stage, const Placed& placed, const InView& in, int begin, int end, int rows,
                 Arena& arena)
    : stage_(stage), placed_(placed), in_(in), begin_(begin) {
  const Geometry& g = stage.geometry;
  planes_ = !stage.pointwise();
  if (!planes_) {
    gather_ = in.channel != 1 || tile_rows_collide(g.sw * in.pixel);
    segments_ = arena.take<ptrdiff_t>(1);
    if (segments_) segments_[0] = 0;
    if (gather_) buffer_ = arena.take<float>(static_cast<size_t>(rows) * (end - begin) * pixel_pitch(stage.in));
    return;
  }
  slots_ = (g.kh - 1) * g.dh + 1;
  plane_row_ = (end - begin - 1) * g.sw + (g.kw - 1) * g.dw + 1;
  const size_t zero_rows = stage.by_pixels() ? stage.in : 1;
  buffer_ = arena.take<float>((static_cast<size_t>(slots_) * stage.in + zero_rows) * plane_row_);
  segments_ =
      arena.take<ptrdiff_t>(static_cast<size_t>(stage.by_pixels() ? 1 : stage.in) * g.kh * (g.dw == 1 ? 1 : g.kw));
  tags_ = arena.take<int>(slots_);
  if (arena.measuring()) return;
  std::fill(tags_, tags_ + slots_, -1);
  const size_t zeros = static_cast<size_t>(plane_row_) * (stage.by_pixels() ? stage.in : 1);
  std::memset(buffer_ + static_cast<size_t>(slots_) * stage.in * plane_row_, 0, sizeof(float) * zeros);
}

bool Operand::rows_join(int begin, int end) const {
  if (planes_) return false;
  if (gather_) return true;
  const Geometry& g = stage_.geometry;
  return begin == 0 && end == placed_.out_w && g.sh == 1 && g.sw == 1 && in_.row == placed_.w * in_.pixel;
}

void Operand::load(int y, int count, int begin, int end, GemmArgs& args) {
  if (planes_) {
    load_planes(y, args);
    return;
  }
  const Geometry& g = stage_.geometry;
  args.segments = segments_;
  args.segment_count = 1;
  args.segment_length = stage_.in;
  const float* first =
      in_.data + static_cast<ptrdiff_t>(y) * g.sh * in_.row + static_cast<ptrdiff_t>(begin) * g.sw * in_.pixel;
  if (!gather_) {
    args.a = first;
    args.a_pixel = g.sw * in_.pixel;
    return;
  }
  const int width = end - begin, in = stage_.in;
  const ptrdiff_t pitch = pixel_pitch(in), pixel = g.sw * in_.pixel;
  for (int r = 0; r < count; ++r) {
    const float* from = first + static_cast<ptrdiff_t>(r) * g.sh * in_.row;
    float* to = buffer_ + r * width * pitch;
    if (in_.channel == 1) {
      for (int x = 0; x < width; ++x) std::memcpy(to + x * pitch, from + x * pixel, sizeof(float) * in);
      continue;
    }
    for (int c = 0; c < in; ++c) {
      for (int x = 0; x < width; ++x) to[x * pitch + c] = from[c * in_.channel + x * pixel];
    }
  }
  args.a = buffer_;
  args.a_pixel = pitch;
}

// One input row as planes [in][plane_row_], the columns outside the image zero.
void Operand::fill_plane_row(int iy, float* to) const {
  const Geometry& g = stage_.geometry;
  const int first = begin_ * g.sw - placed_.left;
  const int from = std::clamp(-first, 0, plane_row_), until = std::clamp(placed_.w - first, from, plane_row_);
  for (int c = 0; c < stage_.in; ++c) {
    const float* x = in_.data + iy * in_.row + c * in_.channel + static_cast<ptrdiff_t>(first + from) * in_.pixel;
    float* row = to + static_cast<size_t>(c) * plane_row_;
    std::fill(row, row + from, 0.0f);
    if (in_.pixel == 1) {
      // Rows of planes are too short for the hardware to run ahead: ask for the row that follows after this step.
      const float* ahead = x + g.sh * in_.row;
      for (int i = 0; i < until - from && iy + g.sh < placed_.h; i += kLineFloats) __builtin_prefetch(ahead + i);
      std::memcpy(row + from, x, sizeof(float) * (until - from));
    } else {
      for (int i = 0; i < until - from; ++i) row[from + i] = x[i * in_.pixel];
    }
    std::fill(row + until, row + plane_row_, 0.0f);
  }
}

// The same as pixels [plane_row_][in].
void Operand::fill_pixel_row(int iy, float* to) const {
  const Geometry& g = stage_.geometry;
  const int first = begin_ * g.sw - placed_.left, in = stage_.in;
  const int from = std::clamp(-first, 0, plane_row_), until = std::clamp(placed_.w - first, from, plane_row_);
  std::memset(to, 0, sizeof(float) * from * in);
  const float* x = in_.data + iy * in_.row + static_cast<ptrdiff_t>(first + from) * in_.pixel;
  float* row = to + static_cast<ptrdiff_t>(from) * in;
  if (in_.channel == 1 && in_.pixel == in) {
    std::memcpy(row, x, sizeof(float) * (until - from) * in);
  } else if (in_.channel == 1) {
    for (int i = 0; i < until - from; ++i)
      std::memcpy(row + static_cast<ptrdiff_t>(i) * in, x + i * in_.pixel, sizeof(float) * in);
  } else {
    for (int i = 0; i < until - from; ++i) {
      for (int c = 0; c < in; ++c) row[static_cast<ptrdiff_t>(i) * in + c] = x[i * in_.pixel + c * in_.channel];
    }
  }
  std::memset(to + static_cast<ptrdiff_t>(until) * in, 0, sizeof(float) * (plane_row_ - until) * in);
}

void Operand::load_pixels(int y, GemmArgs& args) {
  const Geometry& g = stage_.geometry;
  const ptrdiff_t slot_size = static_cast<ptrdiff_t>(stage_.in) * plane_row_;
  const int parts = g.dw == 1 ? 1 : g.kw;
  for (int ky = 0; ky < g.kh; ++ky) {
    const int iy = y * g.sh - placed_.top + ky * g.dh;
    const bool inside = iy >= 0 && iy < placed_.h;
    const int slot = inside ? iy % slots_ : slots_;  // the one after the last is zero
    if (inside && tags_[slot] != iy) {
      fill_pixel_row(iy, buffer_ + slot * slot_size);
      tags_[slot] = iy;
    }
    for (int p = 0; p < parts; ++p)
      segments_[ky * parts + p] = slot * slot_size + static_cast<ptrdiff_t>(p) * g.dw * stage_.in;
  }
  args.a = buffer_;
  args.a_pixel = static_cast<ptrdiff_t>(g.sw) * stage_.in;
  args.segments = segments_;
  args.segment_count = g.kh * parts;
  args.segment_length = g.kw / parts * stage_.in;
}

void Operand::load_planes(int y, GemmArgs& args) {
  if (stage_.by_pixels()) return load_pixels(y, args);
  const Geometry& g = stage_.geometry;
  const ptrdiff_t slot_size = static_cast<ptrdiff_t>(stage_.in) * plane_row_, zero_row = slots_ * slot_size;
  const int length = g.dw == 1 ? g.kw : 1, parts = g.kw / length;
  for (int ky = 0; ky < g.kh; ++ky) {
    const int iy = y * g.sh - placed_.top + ky * g.dh;
    const bool inside = iy >= 0 && iy < placed_.h;
    const int slot = inside ? iy % slots_ : 0;
    if (inside && tags_[slot] != iy) {
      fill_plane_row(iy, buffer_ + slot * slot_size);
      tags_[slot] = iy;
    }
    for (int c = 0; c < stage_.in; ++c) {
      for (int p = 0; p < parts; ++p) {
        const ptrdiff_t tap = static_cast<ptrdiff_t>(p) * g.dw;
        segments_[(c * g.kh + ky) * parts + p] =
            tap + (inside ? slot * slot_size + static_cast<ptrdiff_t>(c) * plane_row_ : zero_row);
      }
    }
  }
  args.a = buffer_;
  args.a_pixel = g.sw;
  args.segments = segments_;
  args.segment_count = stage_.in * g.kh * parts;
  args.segment_length = length;
}

}  // namespace mobilenet_ext
