// Chains on every instruction set against float64: shapes at every vector boundary, strides, kernels, pads, layouts;
// the same bits on every vector ISA and at every thread count; every element written; NaN kept.
#include "chain_cases.h"

using namespace test;

namespace {

// Every activation in every kernel that may end in one; squeeze-and-excitation; shortcuts over two items.
void add_family_cases(const std::function<void(std::string, std::vector<ItemDesc>, int, int, int, Layout)>& add) {
  const Layout layouts[] = {Layout::kNhwc, Layout::kNchw, Layout::kPitched};
  for (int code = 3; code <= kLastActivation; ++code) {
    const auto a = static_cast<Activation>(code);
    const std::string name = " activation " + std::to_string(code);
    for (int out : {1, 7, 8, 24, 37, 48, 70})
      add("pointwise" + name, {item({stage(Role::kExpand, 9, out, {}, a)}, out == 9)}, 2, 7, 9, layouts[out % 3]);
    add("pointwise residual" + name, {item({stage(Role::kExpand, 20, 20, {}, a)}, true)}, 2, 5, 6, layouts[code % 3]);
    add("dense" + name, {item({stage(Role::kExpand, 3, 19, square(3, 2), a)})}, 1, 9, 12, layouts[code % 3]);
    add("depthwise" + name, {item({stage(Role::kDepthwise, 21, 21, square(code % 2 ? 5 : 7, 1 + code % 2), a)})}, 2, 9,
        8, layouts[code % 3]);
    ItemDesc block = inverted(12, 45, 12, square(3), true);
    for (StageDesc& s : block.stages) s.activation = a;
    for (StageDesc& s : block.stages) s.slope = a == Activation::kLeakyRelu ? 0.25 : 0;
    add("block" + name, {block}, 2, 11, 10, layouts[code % 3]);
    add("pool" + name,
        {item({stage(Role::kExpand, 24, 43, {}, a)}, false, true), linear_item(43, 37, a),
         linear_item(37, 11, Activation::kNone)},
        3, 9, 9, Layout::kNhwc);
  }
  int turn = 0;
  for (int h : {1, 2, 7, 14, 30}) {
    for (int stride : {1, 2}) {
      const int in = 9 + turn % 4, hidden = turn % 3 ? in * 4 - turn % 2 : in,
                out = stride == 1 && turn % 2 == 0 ? in : 21;
      const auto inner = static_cast<Activation>(1 + turn % 4);
      add("squeezed " + std::to_string(h) + " s" + std::to_string(stride),
          {squeezed(in, hidden, out, 1 + 3 * (turn % 4), square(turn % 2 ? 5 : 3, stride), stride == 1 && in == out,
                    inner, turn % 2 ? Activation::kHardsigmoid : Activation::kSigmoid)},
          1 + turn % 3, h, h + turn % 2, layouts[turn % 3]);
      ++turn;
    }
  }
  add("wide squeezed", {squeezed(8, 200, 12, 10, square(3), false)}, 1, 5, 700, Layout::kNhwc);
  ItemDesc mean = item({stage(Role::kExpand, 70, 70, {})}, false, true);
  mean.mean = true;
  mean.stages[0].sources = 0;
  mean.stages[0].activation = Activation::kNone;
  for (Layout layout : layouts) {
    add("mean", {mean}, 2, 9, 11, layout);
    add("block and mean", {inverted(12, 45, 70, square(3), false), mean, linear_item(70, 5, Activation::kNone)}, 3, 13,
        12, layout);
  }
  // Dilated depthwise: every residue, and the stride that equals the dilation.
  for (int k : {3, 5, 7}) {
    for (int dilation : {2, 3}) {
      for (int stride : {1, 2, 3}) {
        add("dilated k" + std::to_string(k) + " d" + std::to_string(dilation) + " s" + std::to_string(stride),
            {inverted(5, 19, 7, square(k, stride, dilation), false)}, 1, 13, stride == 1 ? 2 * dilation - 1 : 14,
            layouts[stride % 3]);
      }
    }
  }
  // A start depthwise and a shortcut around both items; first in the chain, and later where buffers are shared.
  ItemDesc start = item({stage(Role::kDepthwise, 16, 16, square(5), Activation::kNone)});
  ItemDesc back = inverted(16, 50, 16, square(3), true);
  ItemDesc plain = item({stage(Role::kExpand, 16, 16, {}, Activation::kNone)}, true);
  plain.residual_back = back.residual_back = true;
  ItemDesc edge = item({stage(Role::kExpand, 16, 16, square(3), Activation::kSilu)});
  for (Layout layout : layouts) {
    add("shortcut over two", {start, back}, 2, 14, 13, layout);
    add("shortcut over two, single", {edge, plain}, 2, 9, 8, layout);
    add("shortcuts", {edge, plain, start, back, edge, plain, inverted(16, 30, 9, square(3), false)}, 3, 15, 14, layout);
    add("late shortcut", {start, inverted(16, 40, 16, square(3), true), edge, plain}, 2, 12, 14, layout);
  }
}

std::vector<Case> cases() {
  std::vector<Case> list;
  auto add = [&](std::string name, std::vector<ItemDesc> items, int n, int h, int w, Layout layout = Layout::kNhwc,
                 bool follow = true) {
    Case c;
    c.name = std::move(name);
    c.chain.items = std::move(items);
    c.chain.follow_input = follow;
    c.n = n;
    c.h = h;
    c.w = w;
    c.layout = layout;
    list.push_back(std::move(c));
  };
  const Layout layouts[] = {Layout::kNhwc, Layout::kNchw, Layout::kPitched};
  // Output widths at and one off every panel and vector boundary; depths that leave every remainder of the unroll.
  int turn = 0;
  for (int out : {1, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 23, 24, 25, 31, 32, 33, 40, 47, 48, 49, 63, 64, 65, 96, 144}) {
    for (int in : {1, 5, 16}) {
      add("pointwise " + std::to_string(in) + "->" + std::to_string(out),
          {item({stage(Role::kExpand, in, out, {}, static_cast<Activation>(turn % 3))})}, 1 + turn % 2, 3, 5,
          layouts[turn % 3]);
      ++turn;
    }
  }
  for (int pixels : {1, 2, 3, 6, 7, 8, 9, 13, 14, 15, 27, 28, 29})
    add("pixels " + std::to_string(pixels), {item({stage(Role::kExpand, 9, 33, {})})}, 1, 1, pixels);
  // Sums of several chains: cut inside a segment, between segments, a rest of every unroll; residual, activation, pool.
  turn = 0;
  for (int in : {512, 513, 516, 960, 1285}) {
    const Layout layout = layouts[turn % 3];
    add("long " + std::to_string(in),
        {item({stage(Role::kExpand, in, in == 960 ? 960 : 33, {})}, in == 960, in == 513)}, 1, 3, 9, layout);
    add("long linear " + std::to_string(in), {item({stage(Role::kExpand, in, 75, {}, Activation::kSilu)})}, 1, 1, 1,
        layout);
    add("long project " + std::to_string(in), {inverted(12, in, 12, square(3), true)}, 2, 5, 7, layout);
    add("long dense " + std::to_string(in), {item({stage(Role::kExpand, in / 5, 19, square(3))})}, 1, 4, 5, layout);
    ++turn;
  }
  // Pixels a page apart: between two items they lie further apart, of the caller's they are copied.
  for (Layout layout : layouts) {
    add("page between items",
        {item({stage(Role::kExpand, 5, 1024, {})}), item({stage(Role::kExpand, 1024, 1024, {})}, true),
         item({stage(Role::kDepthwise, 1024, 1024, square(3))}), item({stage(Role::kExpand, 1024, 7, square(3))}),
         item({stage(Role::kExpand, 7, 1024, {})}), inverted(1024, 20, 1024, square(3), true),
         item({stage(Role::kExpand, 1024, 33, {})}, false, true)},
        3, 5, 4, layout);
    Geometry twos;
    twos.sh = twos.sw = 2;
    add("page of the caller", {item({stage(Role::kExpand, 1024, 20, {})})}, 2, 4, 9, layout);
    add("half a page, stride 2", {item({stage(Role::kExpand, 512, 20, twos)})}, 1, 5, 9, layout);
    add("page, block", {inverted(1024, 24, 9, square(3, 2), false)}, 1, 7, 6, layout);
  }
  // Depthwise: kernels, strides, dilations, pads, odd sizes, channels off the vector.
  turn = 0;
  for (int k : {1, 2, 3, 4, 5, 7}) {
    for (int stride : {1, 2, 3}) {
      for (int dilation : {1, 2}) {
        for (int channels : {1, 7, 16, 19, 33}) {
          Geometry g = square(k, stride, dilation);
          if (turn % 3 == 1) g.same = true;
          if (turn % 5 == 2) g.top += 1, g.right += 2, g.left = 0;
          g.kh = turn % 7 == 3 ? k + 1 : k;
          const int h = 9 + turn % 4, w = 11 + turn % 5;
          add("depthwise k" + std::to_string(k) + " s" + std::to_string(stride) + " d" + std::to_string(dilation) +
                  " c" + std::to_string(channels),
              {item({stage(Role::kDepthwise, channels, channels, g, static_cast<Activation>(turn % 3))}, false)},
              1 + turn % 2, h, w, layouts[turn % 3]);
          ++turn;
        }
      }
    }
  }
  for (int w : {1, 2, 3, 4, 7, 8, 9, 13, 14, 15, 16, 17, 29})
    add("depthwise width " + std::to_string(w), {item({stage(Role::kDepthwise, 16, 16, square(3))}, true)}, 1, 4, w);
  // Dense stems from both layouts, with pads of every kind.
  turn = 0;
  for (int k : {2, 3, 5}) {
    for (int stride : {1, 2}) {
      for (int in : {7, 8, 13}) {
        for (int dilation : {1, 2}) {
          Geometry g = square(k, stride, dilation);
          if (turn % 2) g.same = true;
          add("dense of " + std::to_string(in) + " k" + std::to_string(k) + " s" + std::to_string(stride) + " d" +
                  std::to_string(dilation),
              {item({stage(Role::kExpand, in, 21, g)})}, 2, 10, 13, layouts[turn % 3]);
          ++turn;
        }
      }
    }
  }
  for (int k : {2, 3, 5}) {
    for (int stride : {1, 2}) {
      for (int out : {8, 32, 35}) {
        Geometry g = square(k, stride, turn % 4 == 3 ? 2 : 1);
        if (turn % 2) g.same = true;
        add("dense k" + std::to_string(k) + " s" + std::to_string(stride), {item({stage(Role::kExpand, 3, out, g)})}, 2,
            10, 13, layouts[turn % 3]);
        ++turn;
      }
    }
  }
  Geometry strided;
  strided.sh = strided.sw = 2;
  add("pointwise stride 2", {item({stage(Role::kExpand, 6, 20, strided)})}, 2, 7, 9);
  add("pointwise residual", {item({stage(Role::kExpand, 20, 20, {}, Activation::kNone)}, true)}, 2, 5, 6,
      Layout::kNchw);
  // Whole blocks: odd sizes, 1x1 images, residuals, both strides, channels off the vector, no expand, 5x5, dilation.
  turn = 0;
  for (int h : {1, 2, 3, 7, 14, 15, 30}) {
    for (int stride : {1, 2}) {
      const int in = 8 + turn % 5, hidden = turn % 4 == 0 ? in : in * 6 - turn % 3,
                out = stride == 1 && turn % 2 == 0 ? in : 24 + turn % 3;
      Geometry g = square(turn % 3 == 2 ? 5 : 3, stride, turn % 6 == 5 ? 2 : 1);
      if (turn % 4 == 1) g.same = true;
      add("block " + std::to_string(h) + " s" + std::to_string(stride),
          {inverted(in, hidden, out, g, stride == 1 && in == out)}, 1 + turn % 3, h, h + turn % 2, layouts[turn % 3],
          turn % 2);
      ++turn;
    }
  }
  // Wide enough that columns must be split on a small second-level cache.
  add("wide block", {inverted(8, 200, 12, square(3), false)}, 1, 6, 700);
  add("wide strided block", {inverted(8, 160, 12, square(5, 2), false)}, 1, 5, 801, Layout::kPitched);
  // A stem and a block in one ring; then a chain of everything, with head and classifier.
  ItemDesc stem = item({stage(Role::kExpand, 3, 24, square(3, 2)), stage(Role::kDepthwise, 24, 24, square(3)),
                        stage(Role::kProject, 24, 16, {}, Activation::kNone)});
  add("stem and block", {stem}, 2, 21, 18, Layout::kNchw);
  ItemDesc head = item({stage(Role::kExpand, 24, 40, {})}, false, true);
  ItemDesc linear;
  linear.linear = true;
  linear.stages.push_back(stage(Role::kExpand, 40, 37, {}, Activation::kNone));
  linear.stages[0].sources = kWeight | kConvBias;
  for (int n : {1, 2, 3, 5, 16}) {
    add("network batch " + std::to_string(n),
        {stem, inverted(16, 96, 24, square(3, 2), false), inverted(24, 144, 24, square(3), true), head, linear}, n, 33,
        33, layouts[n % 2]);
  }
  linear.stages[0] = stage(Role::kExpand, 40, 37, {}, Activation::kHardswish);
  const ItemDesc last = linear_item(37, 10, Activation::kNone);
  for (int n : {1, 3}) {
    add("squeezed network batch " + std::to_string(n),
        {stem, squeezed(16, 96, 24, 8, square(5, 2), false, Activation::kHardswish, Activation::kHardsigmoid),
         squeezed(24, 144, 24, 6, square(3), true), head, linear, last},
        n, 33, 33);
  }
  add_family_cases([&](std::string name, std::vector<ItemDesc> items, int n, int h, int w, Layout layout) {
    add(std::move(name), std::move(items), n, h, w, layout);
  });
  return list;
}

void check_isas() {
  unsigned seed = 1;
  for (const Case& c : cases()) {
    const Data d = make_data(c, seed++);
    const Result* first = nullptr;
    std::vector<Result> results;
    results.reserve(8);
    for (const Isa& isa : isas()) {
      if (!isa.supported) continue;
      results.push_back(run(c, d, *isa.table, 1, serial));
      compare(c, d, results.back(), isa.table->name);
      if (!first) {
        first = &results[0];
      } else {
        CHECK_MESSAGE(std::memcmp(first->v.data(), results.back().v.data(), first->v.size() * sizeof(float)) == 0,
                      c.name + ": " + isa.table->name + " and " + isas()[0].table->name + " differ in a bit");
      }
    }
    // Threads change who works, never a bit; nor does a list made for many threads and run by one.
    // In the second, one thread does the work of all.
    for (const auto& [threads, parallel] : {std::pair{2, threaded}, std::pair{3, serial}, std::pair{16, threaded}}) {
      const Result r = run(c, d, active_isa(), threads, parallel);
      CHECK_MESSAGE(std::memcmp(first->v.data(), r.v.data(), r.v.size() * sizeof(float)) == 0,
                    c.name + ": threads " + std::to_string(threads));
    }
  }
}

void check_special_values() {
  Case c{"special", {}, 1, 6, 6, Layout::kNhwc};
  c.chain.items = {inverted(8, 48, 8, square(3), true)};
  Data d = make_data(c, 3);
  d.storage[0] = std::numeric_limits<float>::quiet_NaN();
  for (const Isa& isa : isas()) {
    if (!isa.supported) continue;
    const Result r = run(c, d, *isa.table, 1, serial);
    // Output pixels within reach of the NaN are NaN, all others are not.
    for (int y = 0; y < 6; ++y) {
      for (int x = 0; x < 6; ++x) CHECK(std::isnan(r.v[y * 6 + x]) == (y <= 1 && x <= 1));
    }
  }
  // Denormal folded weights are flushed and counted.
  Data e = make_data(c, 4);
  e.tensors[0][0].weight[5] = 1e-39f;
  e.tensors[0][1].weight[7] = -3e-40f;
  const PackedChain packed = pack(c.chain, e.sources, active_isa());
  CHECK(packed.denormals == 2);
}

}  // namespace

int main() {
  check_isas();
  check_special_values();
  return report();
}
