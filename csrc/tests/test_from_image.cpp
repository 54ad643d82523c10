// Blocks that expand nothing read a channels_last image where it lies, with the bits of the path through the ring.
#include <cstring>

#include "check.h"
#include "cpu/registry.h"
#include "cpu/run.h"
#include "reference.h"

using namespace test;

namespace {

// A table whose depthwise functions count their calls.
const IsaTable* under;
int rows_of_ring, rows_of_image;
void ring_row(const DepthwiseArgs& d) {
  ++rows_of_ring;
  under->depthwise_row(d);
}
void image_row(const PixelRowArgs& d) {
  ++rows_of_image;
  under->depthwise_pixels(d);
}

struct Case {
  int channels, out, kernel, stride, h, w;
  bool project;
  Activation activation;
};

std::vector<float> run(const PackedChain& packed, const ItemShape& shape, const Case& c, bool nhwc,
                       const std::vector<float>& nchw) {
  std::vector<float> x(nchw.size()), y(static_cast<size_t>(shape.out_h) * shape.out_w * packed.items[0].desc.out());
  const int pixels = c.h * c.w;
  for (int i = 0; i < pixels; ++i) {
    for (int k = 0; k < c.channels; ++k) {
      x[nhwc ? static_cast<size_t>(i) * c.channels + k : static_cast<size_t>(k) * pixels + i] = nchw[k * pixels + i];
    }
  }
  Input in{};
  in.data = x.data();
  in.n = 1;
  in.c = c.channels;
  in.h = c.h;
  in.w = c.w;
  in.channel = nhwc ? 1 : pixels;
  in.pixel = nhwc ? c.channels : 1;
  in.row = in.pixel * c.w;
  in.image = static_cast<ptrdiff_t>(x.size());
  const int channels = c.project ? c.out : c.channels;
  const Output out{y.data(), static_cast<ptrdiff_t>(y.size()), 1, channels};
  TaskCache cache;
  run_chain(packed, cache, in, out, 1, [](int, const Worker& worker) { worker(0); });
  return y;
}

void check(const IsaTable& isa, const Case& c, bool direct) {
  ChainDesc chain;
  ItemDesc item;
  item.stages.push_back(stage(Role::kDepthwise, c.channels, c.channels, square(c.kernel, c.stride), c.activation));
  if (c.project) item.stages.push_back(stage(Role::kProject, c.channels, c.out, {}, c.activation));
  chain.items = {item};
  std::mt19937 rng(7);
  std::vector<StageTensors> tensors;
  std::vector<SourceView> sources;
  for (const StageDesc& s : item.stages) tensors.push_back(random_tensors(s, rng));
  for (size_t i = 0; i < tensors.size(); ++i) {
    for (const SourceView& v : views(item.stages[i], tensors[i])) sources.push_back(v);
  }
  const PackedChain packed = pack(chain, sources, isa);
  const ItemShape shape = shapes(chain, c.h, c.w)[0];
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(c.channels) * c.h * c.w);
  for (float& v : x) v = normal(rng);
  rows_of_ring = rows_of_image = 0;
  const std::vector<float> through_ring = run(packed, shape, c, false, x);
  if (c.h * c.w > 1) CHECK(rows_of_image == 0 && rows_of_ring > 0);  // of one pixel the formats are the same
  rows_of_ring = 0;
  const std::vector<float> from_image = run(packed, shape, c, true, x);
  CHECK(direct ? rows_of_image > 0 && rows_of_ring == 0 : rows_of_image == 0 && rows_of_ring > 0);
  CHECK(!std::memcmp(through_ring.data(), from_image.data(), sizeof(float) * from_image.size()));
}

}  // namespace

int main() {
  const struct {
    int h, w;
  } sizes[] = {{1, 1}, {1, 6}, {5, 9}, {7, 7}, {14, 14}, {3, 2}};
  for (const Isa& isa : isas()) {
    if (!isa.supported) continue;
    under = isa.table;
    IsaTable counted = *isa.table;
    counted.depthwise_row = &ring_row;
    counted.depthwise_pixels = &image_row;
    const int whole = 3 * counted.vector, many = 300 / counted.vector * counted.vector;
    for (const auto& size : sizes) {
      for (int stride : {1, 2}) {
        for (Activation a : {Activation::kNone, Activation::kRelu6, Activation::kHardswish, Activation::kSilu}) {
          check(counted, {whole, 21, 3, stride, size.h, size.w, true, a}, true);
          check(counted, {whole, 0, 3, stride, size.h, size.w, false, a}, true);
        }
        check(counted, {many, 16, 3, stride, size.h, size.w, true, Activation::kRelu6}, true);
        check(counted, {whole, 21, 5, stride, size.h, size.w, true, Activation::kRelu6}, false);
        // A partial block ends where the output does, but not in front of a project.
        if (counted.vector == 1) continue;
        check(counted, {whole + 1, 0, 3, stride, size.h, size.w, false, Activation::kHardswish}, true);
        check(counted, {whole + 1, 21, 3, stride, size.h, size.w, true, Activation::kHardswish}, false);
      }
    }
  }
  return report();
}
