// Chains on every instruction set against float64: shapes at every vector boundary, strides, kernels, pads, layouts;
// the same bits on every vector ISA, at every thread count and batch position; every element written; NaN kept.
#include <cstring>
#include <thread>

#include "check.h"
#include "cpu/registry.h"
#include "cpu/run.h"
#include "reference.h"

using namespace test;

namespace {

enum class Layout { kNhwc, kNchw, kPitched };

struct Case {
  std::string name;
  ChainDesc chain;
  int n, h, w;
  Layout layout = Layout::kNhwc;
};

const Parallel serial = [](int, const std::function<void()>& worker) { worker(); };
const Parallel threaded = [](int workers, const std::function<void()>& worker) {
  std::vector<std::thread> threads;
  for (int i = 0; i < workers; ++i) threads.emplace_back(worker);
  for (auto& t : threads) t.join();
};

struct Data {
  std::vector<std::vector<StageTensors>> tensors;
  std::vector<SourceView> sources;
  std::vector<float> storage;
  Input input{};
  std::vector<Image> images;
};

Data make_data(const Case& c, unsigned seed) {
  Data d;
  std::mt19937 rng(seed);
  for (const ItemDesc& item : c.chain.items) {
    d.tensors.emplace_back();
    if (item.mean) continue;
    for (const StageDesc& s : item.stages) d.tensors.back().push_back(random_tensors(s, rng));
  }
  for (size_t i = 0; i < c.chain.items.size(); ++i) {
    for (size_t s = 0; s < d.tensors[i].size(); ++s) {
      for (const SourceView& v : views(c.chain.items[i].stages[s], d.tensors[i][s])) d.sources.push_back(v);
    }
  }
  const int ch = c.chain.items[0].in();
  Input& in = d.input;
  in.n = c.n;
  in.c = ch;
  in.h = c.h;
  in.w = c.w;
  if (c.layout == Layout::kNchw) {
    in.pixel = 1;
    in.row = c.w;
    in.channel = static_cast<ptrdiff_t>(c.h) * c.w;
    in.image = in.channel * ch;
  } else {
    in.channel = 1;
    in.pixel = c.layout == Layout::kPitched ? ch + 3 : ch;
    in.row = in.pixel * (c.w + (c.layout == Layout::kPitched ? 2 : 0));
    in.image = in.row * c.h;
  }
  d.storage.assign(static_cast<size_t>(in.image) * c.n + 64, std::numeric_limits<float>::quiet_NaN());
  in.data = d.storage.data();
  std::normal_distribution<float> normal;
  for (int n = 0; n < c.n; ++n) {
    Image image;
    image.c = ch;
    image.h = c.h;
    image.w = c.w;
    for (int i = 0; i < ch; ++i) {
      for (int y = 0; y < c.h; ++y) {
        for (int x = 0; x < c.w; ++x) {
          const float v = 2 * normal(rng);
          d.storage[n * in.image + i * in.channel + y * in.row + x * in.pixel] = v;
          image.v.push_back(v);
        }
      }
    }
    image.bound.assign(image.v.size(), 0.0);
    d.images.push_back(image);
  }
  return d;
}

struct Result {
  int c, h, w;
  std::vector<float> v;  // NCHW
};

Result run(const Case& c, const Data& d, const IsaTable& isa, int threads, const Parallel& parallel) {
  const PackedChain packed = pack(c.chain, d.sources, isa);
  const std::vector<ItemShape> s = shapes(c.chain, c.h, c.w);
  const bool flat = c.chain.flat_output(), planar = c.chain.follow_input && c.layout == Layout::kNchw && !flat;
  Result r{c.chain.items.back().out(), flat ? 1 : s.back().out_h, flat ? 1 : s.back().out_w, {}};
  const size_t pixels = static_cast<size_t>(r.h) * r.w, image = pixels * r.c;
  std::vector<float> raw(image * c.n + 16, std::numeric_limits<float>::quiet_NaN());
  Output out{raw.data(), static_cast<ptrdiff_t>(image), planar ? static_cast<ptrdiff_t>(pixels) : 1, planar ? 1 : r.c};
  if (r.c == 1) out.channel = 1;
  TaskCache cache;
  run_chain(packed, cache, d.input, out, threads, parallel);
  for (size_t i = image * c.n; i < raw.size(); ++i)
    CHECK_MESSAGE(std::isnan(raw[i]), c.name + ": wrote past the output");
  for (int n = 0; n < c.n; ++n) {
    for (int ch = 0; ch < r.c; ++ch) {
      for (size_t p = 0; p < pixels; ++p) r.v.push_back(raw[n * image + ch * out.channel + p * out.pixel]);
    }
  }
  return r;
}

void compare(const Case& c, const Data& d, const Result& r, const char* isa) {
  size_t at = 0;
  double worst = 0;
  for (const Image& image : d.images) {
    Image y = image, before = image;
    for (size_t i = 0; i < c.chain.items.size(); ++i) {
      const Image entry = y;
      y = run_item(c.chain.items[i], d.tensors[i], y, c.chain.items[i].residual_back ? before : entry);
      before = entry;
    }
    CHECK_MESSAGE(y.c == r.c && y.h == r.h && y.w == r.w, c.name + ": shape");
    for (size_t i = 0; i < y.v.size(); ++i, ++at) {
      const double error = std::fabs(r.v[at] - y.v[i]);
      worst = std::isnan(error) ? 1e30 : std::max(worst, error / (y.bound[i] + 1e-30));
    }
  }
  CHECK_MESSAGE(worst <= 1.0, c.name + " on " + isa + ": error is " + std::to_string(worst) + " of its bound");
}

ItemDesc item(std::vector<StageDesc> stages, bool residual = false, bool pool = false) {
  ItemDesc i;
  i.stages = std::move(stages);
  i.residual = residual;
  i.pool = pool;
  return i;
}

ItemDesc inverted(int in, int hidden, int out, Geometry g, bool residual) {
  std::vector<StageDesc> s;
  if (hidden != in) s.push_back(stage(Role::kExpand, in, hidden, {}));
  s.push_back(stage(Role::kDepthwise, hidden, hidden, g));
  s.push_back(stage(Role::kProject, hidden, out, {}, Activation::kNone));
  return item(s, residual);
}

// With squeeze-and-excitation before the project.
ItemDesc squeezed(int in, int hidden, int out, int reduced, Geometry g, bool residual,
                  Activation inner = Activation::kSilu, Activation gate = Activation::kSigmoid) {
  ItemDesc i = inverted(in, hidden, out, g, residual);
  for (StageDesc& s : i.stages) {
    if (s.role != Role::kProject) s.activation = inner;
  }
  StageDesc reduce = stage(Role::kReduce, hidden, reduced, {}, inner),
            excite = stage(Role::kExcite, reduced, hidden, {}, gate);
  reduce.sources = excite.sources = kWeight | kConvBias;
  i.stages.insert(i.stages.end() - 1, {reduce, excite});
  return i;
}

ItemDesc linear_item(int in, int out, Activation a, unsigned sources = kWeight | kConvBias) {
  ItemDesc linear;
  linear.linear = true;
  linear.stages.push_back(stage(Role::kExpand, in, out, {}, a));
  linear.stages[0].sources = sources;
  return linear;
}

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
    for (int threads : {2, 3, 16}) {
      for (const Parallel& parallel : {threaded, serial}) {
        const Result r = run(c, d, active_isa(), threads, parallel);
        CHECK_MESSAGE(std::memcmp(first->v.data(), r.v.data(), r.v.size() * sizeof(float)) == 0,
                      c.name + ": threads " + std::to_string(threads));
      }
    }
  }
}

// Enough arithmetic that bands, seams and hidden splits really happen.
void check_splits() {
  struct Wanted {
    ItemDesc item;
    int h, threads;
    TaskKind kind;
  };
  for (const Wanted& w : {Wanted{inverted(32, 192, 32, square(3), true), 28, 2, TaskKind::kSeam},
                          Wanted{inverted(32, 192, 48, square(3, 2), false), 56, 3, TaskKind::kSeam},
                          Wanted{inverted(24, 144, 24, square(5), true), 40, 2, TaskKind::kSeam},
                          Wanted{inverted(96, 576, 96, square(3), true), 7, 2, TaskKind::kHidden},
                          Wanted{inverted(96, 576, 160, square(3, 2), false), 14, 3, TaskKind::kHidden},
                          Wanted{squeezed(24, 72, 40, 24, square(5), false), 56, 2, TaskKind::kSeam},
                          Wanted{squeezed(32, 192, 48, 48, square(5, 2), false), 56, 3, TaskKind::kReduce},
                          Wanted{squeezed(96, 576, 160, 144, square(5), false), 7, 2, TaskKind::kExcite}}) {
    Case c{"split", {}, 1, w.h, w.h, Layout::kNhwc};
    c.chain.items = {w.item};
    const Data d = make_data(c, 7);
    const PackedChain packed = pack(c.chain, d.sources, active_isa());
    const TaskList list = make_tasks(packed, d.input, {nullptr, 0, 1, 1}, w.threads);
    bool found = false;
    for (const Task& t : list.tasks) found = found || t.kind == w.kind;
    CHECK(found);
    const Result alone = run(c, d, active_isa(), 1, serial);
    compare(c, d, alone, active_isa().name);
    for (int threads : {2, 3, 5, 16}) {
      const Result r = run(c, d, active_isa(), threads, threaded);
      CHECK_MESSAGE(std::memcmp(alone.v.data(), r.v.data(), r.v.size() * sizeof(float)) == 0,
                    "split over " + std::to_string(threads));
    }
    // The same image at every place of a batch that leaves a remainder.
    Case batch = c;
    batch.n = 5;
    Data repeated = make_data(batch, 7);
    for (int n = 0; n < 5; ++n)
      std::copy_n(d.storage.data(), d.input.image, repeated.storage.data() + n * repeated.input.image);
    const Result r = run(batch, repeated, active_isa(), 3, threaded);
    for (int n = 0; n < 5; ++n)
      CHECK(std::memcmp(alone.v.data(), r.v.data() + n * alone.v.size(), alone.v.size() * sizeof(float)) == 0);
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
  check_splits();
  check_special_values();
  return report();
}
