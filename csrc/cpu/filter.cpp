#include "filter.h"

namespace mobilenet_ext {

void depthwise_row(const Job& job, const HiddenRows& hidden, Blocks blocks, int y, int width, const DepthwiseOut& out,
                   const float** rows) {
  const IsaTable& isa = *job.chain.header.isa;
  const PackedStage& stage = *job.item.find(Role::kDepthwise);
  const Geometry& k = stage.desc.geometry;
  const int top = y * k.sh - job.shape.depthwise.top, skipped = blocks.begin - hidden.blocks().begin;
  DepthwiseArgs d{};
  d.ky_begin = k.kh;
  for (int ky = 0; ky < k.kh; ++ky) {
    const int iy = top + ky * k.dh;
    if (iy < 0 || iy >= job.shape.depthwise.h) continue;
    rows[ky] = hidden.row(iy) + skipped * hidden.block_floats();
    d.ky_begin = std::min(d.ky_begin, ky);
    d.ky_end = ky + 1;
  }
  d.rows = rows;
  d.kh = k.kh;
  d.kw = k.kw;
  d.stride = k.sw;
  d.dilation = k.dw;
  d.in_block = hidden.block_floats();
  d.weights = job.chain.at(stage.weights) + static_cast<size_t>(blocks.begin) * k.kh * k.kw * isa.vector;
  d.bias = job.chain.at(stage.bias) + blocks.begin * isa.vector;
  d.out = out.data + skipped * out.block;
  d.out_pixel = out.pixel;
  d.out_block = out.block;
  d.width = width;
  d.blocks = blocks.end - blocks.begin;
  d.last_valid = blocks.end == hidden.blocks().end ? out.last_valid : isa.vector;
  stage.set_activation(d);
  isa.depthwise_row(d);
}

int last_row_needed(const Job& job, int y) {
  const Geometry& k = job.item.find(Role::kDepthwise)->desc.geometry;
  return std::min(job.shape.depthwise.h - 1, y * k.sh - job.shape.depthwise.top + (k.kh - 1) * k.dh);
}
int first_row_needed(const Job& job, int y) {
  return std::max(0, y * job.item.find(Role::kDepthwise)->desc.geometry.sh - job.shape.depthwise.top);
}

}  // namespace mobilenet_ext
