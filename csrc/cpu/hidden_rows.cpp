#include "hidden_rows.h"

#include <algorithm>
#include <cstring>

namespace mobilenet_ext {

HiddenRows::HiddenRows(const Job& job, int x0, int x1, Blocks blocks, Arena& arena)
    : job_(job), expand_(job.item.find(Role::kExpand)), vector_(job.chain.header.isa->vector), blocks_(blocks) {
  const Placed& d = job.shape.depthwise;
  const Geometry& g = job.item.find(Role::kDepthwise)->desc.geometry;
  origin_ = x0 * g.sw - d.left;
  row_w_ = (x1 - x0 - 1) * g.sw + (g.kw - 1) * g.dw + 1;
  c0_ = std::clamp(origin_, 0, d.w);
  c1_ = std::clamp(origin_ + row_w_, c0_, d.w);
  slots_ = job.plan.ring_rows;
  group_ = std::max(1, job.plan.rows_per_step * g.sh);
  row_floats_ = static_cast<size_t>(blocks.end - blocks.begin) * block_floats();
  ring_ = arena.take<float>(slots_ * row_floats_);
  if (expand_) {
    operand_.emplace(expand_->desc, job.shape.expand, job.in, c0_, c1_, group_, arena);
    offsets_ = arena.take<int32_t>(static_cast<size_t>(group_) * (c1_ - c0_));
  }
}

void HiddenRows::clear_pads(float* row) const {
  const int left = c0_ - origin_, right = origin_ + row_w_ - c1_;
  for (int b = 0; b < blocks_.end - blocks_.begin; ++b) {
    float* p = row + b * block_floats();
    std::memset(p, 0, sizeof(float) * left * vector_);
    std::memset(p + static_cast<size_t>(row_w_ - right) * vector_, 0, sizeof(float) * right * vector_);
  }
}

void HiddenRows::clear_pads() {
  for (int s = 0; s < slots_; ++s) clear_pads(ring_ + s * row_floats_);
}

const float* HiddenRows::row(int y) const {
  for (const Seam& seam : seams_) {
    if (y >= seam.begin && y < seam.end) return seam.rows + (y - seam.begin) * row_floats_;
  }
  return ring_ + (y % slots_) * row_floats_;
}

void HiddenRows::make(int begin, int end, Blocks which) {
  auto shared = [this](int y) {
    return (y >= seams_[0].begin && y < seams_[0].end) || (y >= seams_[1].begin && y < seams_[1].end);
  };
  const bool join = expand_ && operand_->rows_join(c0_, c1_);
  for (int y = begin; y < end;) {
    if (shared(y)) {
      ++y;
      continue;
    }
    int count = 1;
    while (join && count < group_ && y + count < end && !shared(y + count)) ++count;
    if (count == 1) {
      produce(y, 1, which, ring_ + (y % slots_) * row_floats_, nullptr);
    } else {
      // Several rows as one run of pixels, so that short rows still fill the tiles.
      int32_t* o = offsets_;
      for (int r = 0; r < count; ++r) {
        const int32_t start = static_cast<int32_t>((y + r) % slots_ * row_floats_) + (c0_ - origin_) * vector_;
        for (int x = 0; x < c1_ - c0_; ++x) *o++ = start + x * vector_;
      }
      produce(y, count, which, ring_, offsets_);
    }
    y += count;
  }
}

void HiddenRows::make_into(int y, float* row) {
  clear_pads(row);
  produce(y, 1, blocks_, row, nullptr);
}

void HiddenRows::gather(int y, Blocks which, float* first) {
  const int from = which.begin * vector_;
  RowArgs r{};
  r.in = job_.in.data + y * job_.in.row + c0_ * job_.in.pixel + from * job_.in.channel;
  r.out = first + (which.begin - blocks_.begin) * block_floats();
  r.pixel = job_.in.pixel;
  r.channel = job_.in.channel;
  r.block = block_floats();
  r.width = c1_ - c0_;
  r.channels = std::min(job_.item.desc.in(), which.end * vector_) - from;
  job_.chain.header.isa->gather_row(r);
}

void HiddenRows::produce(int y, int count, Blocks which, float* base, const int32_t* offsets) {
  const int width = c1_ - c0_;
  if (width == 0) return;
  float* first = base + (c0_ - origin_) * vector_;
  if (!expand_) return gather(y, which, first);
  GemmArgs g{};
  operand_->load(y, count, c0_, c1_, g);
  g.c_offsets = offsets;
  g.c_pixel = vector_;
  g.c_vector = block_floats();
  g.m = count * width;
  expand_->set_activation(g);
  for (const Panel& panel : expand_->panels) {
    const int block = panel.first / vector_;
    if (block < blocks_.begin || block >= blocks_.end) continue;
    g.b = job_.chain.at(panel.weights);
    g.bias = job_.chain.at(expand_->bias) + panel.first;
    g.c = (offsets ? base : first) + (block - blocks_.begin) * block_floats();
    g.n_valid = panel.kind->width;  // padding channels are stored too: their weights and bias are zero
    panel.kind->gemm(g);
  }
}

}  // namespace mobilenet_ext
