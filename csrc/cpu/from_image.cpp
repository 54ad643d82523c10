#include "from_image.h"

#include <algorithm>

namespace mobilenet_ext {
namespace {

// Of so many channels the weights and some columns of three rows stay in the first cache.
constexpr int kChannelsAtOnce = 256;

}  // namespace

bool filters_image(const Job& job, bool partial_blocks) {
  if (job.item.find(Role::kExpand) || job.in.channel != 1) return false;
  const StageDesc& stage = job.item.find(Role::kDepthwise)->desc;
  const Geometry& g = stage.geometry;
  const Placed& p = job.shape.depthwise;
  if (g.kh > 3 || g.kw != 3 || g.sw > 2 || g.dh != 1 || g.dw != 1) return false;
  // Every output row sees a row of the image.
  if (p.top >= g.kh || (p.out_h - 1) * g.sh - p.top >= p.h) return false;
  const int right = (p.out_w - 1) * g.sw + g.kw - 1 - p.left - (p.w - 1);
  return p.left <= 1 && right <= 1 && (partial_blocks || stage.in % job.chain.header.isa->vector == 0);
}

void filter_image_row(const Job& job, Blocks blocks, int y, int x0, int x1, const DepthwiseOut& out,
                      const float** rows) {
  const IsaTable& isa = *job.chain.header.isa;
  const PackedStage& stage = *job.item.find(Role::kDepthwise);
  const Geometry& k = stage.desc.geometry;
  const Placed& p = job.shape.depthwise;
  const int top = y * k.sh - p.top, left = x0 * k.sw - p.left, last = (x1 - 1) * k.sw + k.kw - 1 - p.left,
            taps = k.kh * k.kw;
  PixelRowArgs d{};
  d.rows = rows;
  d.stride = k.sw;
  d.width = x1 - x0;
  d.left = left < 0;
  d.right = last >= p.w;
  d.pixel = job.in.pixel;
  d.weight_block = static_cast<ptrdiff_t>(taps) * isa.vector;
  d.out_pixel = out.pixel;
  d.out_block = out.block;
  stage.set_activation(d);
  const int ahead = top + k.sh + (k.kh - 1) * k.dh;
  if (k.sh > 1) d.ahead_other = -job.in.row;
  const int step = std::max(1, kChannelsAtOnce / isa.vector);
  for (int block = blocks.begin; block < blocks.end; block += step) {
    const int first = block * isa.vector,
              end = std::min(stage.desc.in, std::min(block + step, blocks.end) * isa.vector);
    const float* in = job.in.data + first;
    int begin = k.kh;
    d.count = 0;
    for (int ky = 0; ky < k.kh; ++ky) {
      const int iy = top + ky * k.dh;
      if (iy < 0 || iy >= p.h) continue;
      begin = std::min(begin, ky);
      rows[d.count++] = in + iy * job.in.row + left * job.in.pixel;
    }
    d.channels = end - first;
    d.weights =
        job.chain.at(stage.weights) + block * d.weight_block + static_cast<ptrdiff_t>(begin) * k.kw * isa.vector;
    d.bias = job.chain.at(stage.bias) + first;
    d.out = out.data + (block - blocks.begin) * out.block;
    d.ahead = ahead < p.h ? in + ahead * job.in.row + std::max(left, 0) * job.in.pixel : nullptr;
    isa.depthwise_pixels(d);
  }
}

}  // namespace mobilenet_ext
