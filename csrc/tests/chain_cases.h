// A chain to test: its layers, random tensors and input, a run that checks what it writes, float64 to compare with.
#pragma once
#include <cstring>
#include <thread>

#include "check.h"
#include "cpu/registry.h"
#include "cpu/run.h"
#include "reference.h"

namespace test {

enum class Layout { kNhwc, kNchw, kPitched };

struct Case {
  std::string name;
  ChainDesc chain;
  int n, h, w;
  Layout layout = Layout::kNhwc;
};

inline const Parallel serial = [](int, const Worker& worker) { worker(0); };
inline const Parallel threaded = [](int workers, const Worker& worker) {
  std::vector<std::thread> threads;
  for (int i = 0; i < workers; ++i) threads.emplace_back(worker, i);
  for (auto& t : threads) t.join();
};

struct Data {
  std::vector<std::vector<StageTensors>> tensors;
  std::vector<SourceView> sources;
  std::vector<float> storage;
  Input input{};
  std::vector<Image> images;
};

inline Data make_data(const Case& c, unsigned seed) {
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

inline Result run(const Case& c, const Data& d, const IsaTable& isa, int threads, const Parallel& parallel) {
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

inline void compare(const Case& c, const Data& d, const Result& r, const char* isa) {
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

inline ItemDesc item(std::vector<StageDesc> stages, bool residual = false, bool pool = false) {
  ItemDesc i;
  i.stages = std::move(stages);
  i.residual = residual;
  i.pool = pool;
  return i;
}

inline ItemDesc inverted(int in, int hidden, int out, Geometry g, bool residual) {
  std::vector<StageDesc> s;
  if (hidden != in) s.push_back(stage(Role::kExpand, in, hidden, {}));
  s.push_back(stage(Role::kDepthwise, hidden, hidden, g));
  s.push_back(stage(Role::kProject, hidden, out, {}, Activation::kNone));
  return item(s, residual);
}

// With squeeze-and-excitation before the project.
inline ItemDesc squeezed(int in, int hidden, int out, int reduced, Geometry g, bool residual,
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

inline ItemDesc linear_item(int in, int out, Activation a, unsigned sources = kWeight | kConvBias) {
  ItemDesc linear;
  linear.linear = true;
  linear.stages.push_back(stage(Role::kExpand, in, out, {}, a));
  linear.stages[0].sources = sources;
  return linear;
}

}  // namespace test
