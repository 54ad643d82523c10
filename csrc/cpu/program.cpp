#include "program.h"

#include <algorithm>
#include <stdexcept>

namespace mobilenet_ext {
namespace {

constexpr int64_t kVersion = 2;
constexpr int64_t kBlockCode = 1, kLinearCode = 2, kMeanCode = 3;
constexpr int64_t kResidualFlag = 1, kPoolFlag = 2, kBackFlag = 4;

class Reader {
 public:
  explicit Reader(const std::vector<int64_t>& program) : program_(program) {}
  int64_t next(const char* name, int64_t lowest, int64_t highest) {
    if (position_ >= program_.size()) fail("ends before", name);
    const int64_t value = program_[position_++];
    if (value < lowest || value > highest) {
      throw std::invalid_argument("program: " + std::string(name) + " is " + std::to_string(value) +
                                  "; allowed: " + std::to_string(lowest) + " to " + std::to_string(highest));
    }
    return value;
  }
  int next_int(const char* name, int64_t lowest, int64_t highest = 1 << 24) {
    return static_cast<int>(next(name, lowest, highest));
  }
  void finish() const {
    if (position_ != program_.size()) throw std::invalid_argument("program: has values after its last item");
  }

 private:
  [[noreturn]] static void fail(const char* what, const char* name) {
    throw std::invalid_argument("program: " + std::string(what) + " " + name);
  }
  const std::vector<int64_t>& program_;
  size_t position_ = 0;
};

void read_sources(Reader& r, StageDesc& s);

StageDesc read_stage(Reader& r) {
  StageDesc s;
  s.role = static_cast<Role>(r.next("role", 0, 4));
  s.in = r.next_int("in_channels", 1);
  s.out = r.next_int("out_channels", 1);
  Geometry& g = s.geometry;
  g.kh = r.next_int("kernel height", 1);
  g.kw = r.next_int("kernel width", 1);
  g.sh = r.next_int("vertical stride", 1);
  g.sw = r.next_int("horizontal stride", 1);
  g.dh = r.next_int("vertical dilation", 1);
  g.dw = r.next_int("horizontal dilation", 1);
  g.same = r.next("padding mode", 0, 1) == 1;
  g.top = r.next_int("top padding", 0);
  g.bottom = r.next_int("bottom padding", 0);
  g.left = r.next_int("left padding", 0);
  g.right = r.next_int("right padding", 0);
  s.activation = static_cast<Activation>(r.next("activation", 0, kLastActivation));
  read_sources(r, s);
  return s;
}

void read_sources(Reader& r, StageDesc& s) {
  s.sources = static_cast<unsigned>(r.next("sources", 1, 127));
  const bool mean = s.sources & kRunningMean, var = s.sources & kRunningVar;
  if (!(s.sources & kWeight) || mean != var)
    throw std::invalid_argument("program: a stage lacks its weight or one of its BN statistics");
}

void check_item(const ItemDesc& item) {
  const StageDesc* depthwise = item.find(Role::kDepthwise);
  const StageDesc* project = item.find(Role::kProject);
  for (size_t i = 1; i < item.stages.size(); ++i) {
    if (item.stages[i - 1].out != item.stages[i].in || item.stages[i - 1].role >= item.stages[i].role) {
      throw std::invalid_argument("program: the stages of a block do not fit together");
    }
  }
  if (depthwise && depthwise->in != depthwise->out)
    throw std::invalid_argument("program: a depthwise stage changes the channel count");
  if (project && (!depthwise || !project->pointwise()))
    throw std::invalid_argument("program: project must be 1x1 after a depthwise stage");
  const StageDesc *reduce = item.find(Role::kReduce), *excite = item.find(Role::kExcite);
  const bool squeezed = reduce || excite;
  if (squeezed && (!reduce || !excite || !depthwise || !project || reduce->in != depthwise->out ||
                   excite->out != depthwise->out || !reduce->pointwise() || !excite->pointwise())) {
    throw std::invalid_argument(
        "program: squeeze-and-excitation is two 1x1 layers between a depthwise stage and its project");
  }
  if (item.pool && (item.stages.size() != 1 || !item.stages[0].pointwise() || item.residual)) {
    throw std::invalid_argument("program: pool is allowed on a single 1x1 convolution only");
  }
  if (item.residual && !item.residual_back && item.in() != item.out())
    throw std::invalid_argument("program: residual needs equal channels");
}

}  // namespace

Placed place(const Geometry& g, int h, int w) {
  Placed p;
  p.h = h;
  p.w = w;
  const int span_h = (g.kh - 1) * g.dh + 1, span_w = (g.kw - 1) * g.dw + 1;
  if (g.same) {
    p.out_h = (h + g.sh - 1) / g.sh;
    p.out_w = (w + g.sw - 1) / g.sw;
    p.top = std::max(0, (p.out_h - 1) * g.sh + span_h - h) / 2;
    p.left = std::max(0, (p.out_w - 1) * g.sw + span_w - w) / 2;
    return p;
  }
  const int free_h = h + g.top + g.bottom - span_h, free_w = w + g.left + g.right - span_w;
  p.out_h = free_h < 0 ? 0 : free_h / g.sh + 1;
  p.out_w = free_w < 0 ? 0 : free_w / g.sw + 1;
  p.top = g.top;
  p.left = g.left;
  return p;
}

bool StageDesc::pointwise() const {
  const Geometry& g = geometry;
  return role != Role::kDepthwise && g.kh == 1 && g.kw == 1 && g.top == 0 && g.bottom == 0 && g.left == 0 &&
         g.right == 0;
}

const StageDesc* ItemDesc::find(Role role) const {
  for (const StageDesc& s : stages) {
    if (s.role == role) return &s;
  }
  return nullptr;
}

int ChainDesc::source_count() const {
  int n = 0;
  for (const ItemDesc& item : items) {
    for (const StageDesc& s : item.stages) n += s.source_count();
  }
  return n;
}

ChainDesc decode(const std::vector<int64_t>& program, const std::vector<double>& constants) {
  Reader r(program);
  r.next("version", kVersion, kVersion);
  ChainDesc chain;
  const int64_t chain_flags = r.next("chain flags", 0, kFollowInputFlag | kTransientFlag);
  chain.follow_input = chain_flags & kFollowInputFlag;
  chain.transient = chain_flags & kTransientFlag;
  const int64_t count = r.next("number of items", 1, 1 << 16);
  size_t constant = 0;
  for (int64_t i = 0; i < count; ++i) {
    ItemDesc item;
    const int64_t code = r.next("item code", kBlockCode, kMeanCode);
    if (code == kMeanCode) {
      item.pool = item.mean = true;
      StageDesc s;
      s.in = s.out = r.next_int("channels", 1);
      s.sources = 0;
      item.stages.push_back(s);
    } else if (code == kLinearCode) {
      item.linear = true;
      StageDesc s;
      s.in = r.next_int("in_features", 1);
      s.out = r.next_int("out_features", 1);
      s.activation = static_cast<Activation>(r.next("activation", 0, kLastActivation));
      read_sources(r, s);
      item.stages.push_back(s);
      if (i == 0 || !(chain.items.back().pool || chain.items.back().linear))
        throw std::invalid_argument("program: a linear item must follow a pool or another linear item");
    } else {
      const int64_t flags = r.next("flags", 0, kResidualFlag | kPoolFlag | kBackFlag);
      item.residual_back = flags & kBackFlag;
      item.residual = flags & (kResidualFlag | kBackFlag);
      item.pool = flags & kPoolFlag;
      const int64_t stages = r.next("number of stages", 1, 5);
      for (int64_t s = 0; s < stages; ++s) item.stages.push_back(read_stage(r));
      check_item(item);
    }
    if (!chain.items.empty()) {
      const ItemDesc& before = chain.items.back();
      if (before.out() != item.in()) throw std::invalid_argument("program: the items of a chain do not fit together");
      if ((before.pool || before.linear) && !item.linear)
        throw std::invalid_argument("program: only a linear item may follow a pool or a linear item");
    }
    if (item.residual_back) {
      // The result may lie where the shortcut comes from, so it must be written once, last.
      if (chain.items.empty() || chain.items.back().in() != item.out() || !is_clamp(item.stages.back().activation) ||
          item.stages.back().role == Role::kDepthwise) {
        throw std::invalid_argument(
            "program: a shortcut over two items needs equal channels, a dense end and no late activation");
      }
    }
    for (StageDesc& s : item.stages) {
      if (item.mean) break;
      if (constant >= constants.size()) throw std::invalid_argument("program: fewer constants than stages");
      s.eps = constants[constant++];
      if (s.activation != Activation::kLeakyRelu) continue;
      if (constant >= constants.size()) throw std::invalid_argument("program: LeakyReLU lacks its slope");
      s.slope = constants[constant++];
    }
    chain.items.push_back(std::move(item));
  }
  r.finish();
  if (constant != constants.size()) throw std::invalid_argument("program: more constants than stages");
  return chain;
}

}  // namespace mobilenet_ext
