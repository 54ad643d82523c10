#include "pack.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace mobilenet_ext {
namespace {

int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

struct StageSources {
  SourceView weight;
  const float *bias = nullptr, *gamma = nullptr, *beta = nullptr, *mean = nullptr, *var = nullptr;
};

StageSources split(const StageDesc& s, const SourceView*& next) {
  StageSources r;
  r.weight = *next++;
  if (s.sources & kConvBias) r.bias = (next++)->data;
  if (s.sources & kBnWeight) r.gamma = (next++)->data;
  if (s.sources & kBnBias) r.beta = (next++)->data;
  if (s.sources & kRunningMean) r.mean = (next++)->data;
  if (s.sources & kRunningVar) r.var = (next++)->data;
  if (s.sources & kBatchesTracked) ++next;
  return r;
}

// y = scale * conv(x, w) + shift, in float64: the one place that knows BatchNorm's formula on this side.
struct Folded {
  std::vector<double> scale, shift;
};

Folded fold(const StageDesc& s, const StageSources& src) {
  Folded f;
  f.scale.resize(s.out);
  f.shift.resize(s.out);
  for (int o = 0; o < s.out; ++o) {
    const double bias = src.bias ? src.bias[o] : 0.0;
    if (!src.mean) {
      f.scale[o] = 1.0;
      f.shift[o] = bias;
      continue;
    }
    const double gamma = src.gamma ? src.gamma[o] : 1.0, beta = src.beta ? src.beta[o] : 0.0;
    f.scale[o] = gamma / std::sqrt(static_cast<double>(src.var[o]) + s.eps);
    f.shift[o] = beta + (bias - src.mean[o]) * f.scale[o];
  }
  return f;
}

// Cast once, at the end; denormals become zero and are counted.
class Caster {
 public:
  float operator()(double v) {
    const float f = static_cast<float>(v);
    if (f != 0.0f && std::fabs(f) < std::numeric_limits<float>::min()) {
      ++count;
      return 0.0f;
    }
    return f;
  }
  int64_t count = 0;
};

void set_clamp(PackedStage& p) {
  const float infinity = std::numeric_limits<float>::infinity();
  const Activation a = p.desc.activation;
  p.lo = a == Activation::kRelu || a == Activation::kRelu6 ? 0.0f : -infinity;
  p.hi = a == Activation::kRelu6 ? 6.0f : infinity;
  p.finish = is_clamp(a) ? 0 : static_cast<int>(a);
  p.slope = static_cast<float>(p.desc.slope);
}

void pack_dense(PackedStage& p, const StageSources& src, const Folded& f, Caster& cast, float* blob) {
  const Geometry& g = p.desc.geometry;
  for (const Panel& panel : p.panels) {
    float* w = blob + panel.weights;
    const int width = panel.kind->width;
    std::memset(w, 0, sizeof(float) * p.k * width);
    const bool by_pixels = p.desc.by_pixels();
    for (int i = 0; i < p.desc.in; ++i) {
      for (int y = 0; y < g.kh; ++y) {
        for (int x = 0; x < g.kw; ++x) {
          const int k = by_pixels ? (y * g.kw + x) * p.desc.in + i : (i * g.kh + y) * g.kw + x;
          const float* in =
              src.weight.data + i * src.weight.strides[1] + y * src.weight.strides[2] + x * src.weight.strides[3];
          for (int n = 0; n < panel.valid; ++n) {
            const int o = panel.first + n;
            w[k * width + n] = cast(in[o * src.weight.strides[0]] * f.scale[o]);
          }
        }
      }
    }
  }
}

void pack_depthwise(PackedStage& p, const StageSources& src, const Folded& f, Caster& cast, float* blob, int vector) {
  const Geometry& g = p.desc.geometry;
  float* w = blob + p.weights;
  std::memset(w, 0, sizeof(float) * round_up(p.desc.out, vector) * g.kh * g.kw);
  for (int c = 0; c < p.desc.out; ++c) {
    for (int y = 0; y < g.kh; ++y) {
      for (int x = 0; x < g.kw; ++x) {
        const float value =
            src.weight.data[c * src.weight.strides[0] + y * src.weight.strides[2] + x * src.weight.strides[3]];
        w[((c / vector * g.kh + y) * g.kw + x) * vector + c % vector] = cast(value * f.scale[c]);
      }
    }
  }
}

}  // namespace

const PackedStage* PackedItem::find(Role role) const {
  for (const PackedStage& s : stages) {
    if (s.desc.role == role) return &s;
  }
  return nullptr;
}

std::vector<Panel> choose_panels(const IsaTable& isa, int n, bool whole_blocks) {
  if (whole_blocks) n = round_up(n, isa.vector);
  const PanelKind* main = &isa.kinds[0];
  if (isa.alternative >= 0) {
    const PanelKind* other = &isa.kinds[isa.alternative];
    if (n % main->width != 0 && n % other->width == 0) main = other;
  }
  std::vector<Panel> panels;
  int first = 0;
  while (n - first >= main->width) {
    panels.push_back({main, first, main->width, 0});
    first += main->width;
  }
  while (first < n) {
    // The narrowest kind that holds the rest; failing that, the widest one.
    const PanelKind* best = nullptr;
    for (int i = 0; i < isa.kind_count; ++i) {
      const PanelKind* kind = &isa.kinds[i];
      if (whole_blocks && (kind->vector != isa.vector || kind->width > n - first)) continue;
      const bool holds = kind->width >= n - first, best_holds = best && best->width >= n - first;
      if (!best || (holds && (!best_holds || kind->width < best->width)) ||
          (!holds && !best_holds && kind->width > best->width))
        best = kind;
    }
    const int valid = best->width < n - first ? best->width : n - first;
    panels.push_back({best, first, valid, 0});
    first += valid;
  }
  return panels;
}

PackedChain lay_out(const ChainDesc& chain, const IsaTable& isa) {
  PackedChain packed;
  packed.header = {kPackedMagic, &isa, 0, kPackedLayout};
  packed.desc = chain;
  size_t floats = 0;
  auto take = [&floats](size_t n) {
    const size_t at = floats;
    floats += (n + 15) / 16 * 16;
    return at;
  };
  for (const ItemDesc& item : chain.items) {
    PackedItem pi;
    pi.desc = item;
    for (const StageDesc& stage : item.stages) {
      PackedStage p;
      p.desc = stage;
      set_clamp(p);
      if (item.mean) {
        pi.stages.push_back(p);
        continue;
      }
      if (stage.role == Role::kDepthwise) {
        const int channels = round_up(stage.out, isa.vector);
        p.weights = take(static_cast<size_t>(channels) * stage.geometry.kh * stage.geometry.kw);
        p.bias = take(channels);
      } else {
        const bool feeds_depthwise = stage.role == Role::kExpand && item.find(Role::kDepthwise);
        const int in = stage.role == Role::kProject ? round_up(stage.in, isa.vector) : stage.in;
        p.k = in * stage.geometry.kh * stage.geometry.kw;
        p.panels = choose_panels(isa, stage.out, feeds_depthwise);
        size_t bias = 0;
        for (Panel& panel : p.panels) {
          panel.weights = take(static_cast<size_t>(p.k) * panel.kind->width);
          if (feeds_depthwise && panel.first + panel.valid > stage.out) panel.valid = stage.out - panel.first;
          bias += panel.kind->width;
        }
        p.bias = take(bias);
      }
      pi.stages.push_back(p);
    }
    packed.items.push_back(std::move(pi));
  }
  packed.floats = floats;
  return packed;
}

PackedChain pack(const ChainDesc& chain, const std::vector<SourceView>& sources, const IsaTable& isa) {
  if (static_cast<int>(sources.size()) != chain.source_count()) {
    throw std::invalid_argument("sources has " + std::to_string(sources.size()) + " tensors; this program needs " +
                                std::to_string(chain.source_count()));
  }
  PackedChain packed = lay_out(chain, isa);
  packed.blob = Buffer(packed.floats);
  float* blob = packed.blob.data();
  Caster cast;
  const SourceView* next = sources.data();
  for (PackedItem& item : packed.items) {
    for (PackedStage& p : item.stages) {
      if (item.desc.mean) continue;
      const StageSources src = split(p.desc, next);
      const Folded f = fold(p.desc, src);
      const int padded = p.desc.role == Role::kDepthwise ? round_up(p.desc.out, isa.vector)
                                                         : p.panels.back().first + p.panels.back().kind->width;
      for (int o = 0; o < padded; ++o) blob[p.bias + o] = o < p.desc.out ? cast(f.shift[o]) : 0.0f;
      if (p.desc.role == Role::kDepthwise) {
        pack_depthwise(p, src, f, cast, blob, isa.vector);
      } else {
        pack_dense(p, src, f, cast, blob);
      }
    }
  }
  packed.denormals = cast.count;
  return packed;
}

int hidden_units(const PackedItem& item, const IsaTable& isa) {
  const PackedStage* expand = item.find(Role::kExpand);
  const int blocks = (item.find(Role::kDepthwise)->desc.out + isa.vector - 1) / isa.vector;
  return expand ? static_cast<int>(expand->panels.size()) : blocks;
}

int block_of_unit(const PackedItem& item, const IsaTable& isa, int unit) {
  const PackedStage* expand = item.find(Role::kExpand);
  if (unit == hidden_units(item, isa)) return (item.find(Role::kDepthwise)->desc.out + isa.vector - 1) / isa.vector;
  return expand ? expand->panels[unit].first / isa.vector : unit;
}

}  // namespace mobilenet_ext
