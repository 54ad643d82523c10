// What forward and backward of a block in training share: sizes, parts of the batch, the stages on one part.
#pragma once
#include <algorithm>
#include <memory>
#include <optional>

#include "patches.h"
#include "product.h"
#include "train_block.h"

namespace mobilenet_ext {

// Memory for one call: from the pool, unless it is so much that the pool should not keep it.
class Working {
 public:
  explicit Working(size_t floats) {
    constexpr size_t kKept = 16 << 20;  // 64 MB
    if (floats <= kKept) {
      scratch_ = std::make_unique<Scratch>(floats);
    } else {
      buffer_ = Buffer(floats);
    }
  }
  float* data() const { return scratch_ ? scratch_->data() : buffer_.data(); }

 private:
  std::unique_ptr<Scratch> scratch_;
  Buffer buffer_;
};

// Count, mean and variance of every channel over parts of the batch (Chan, Golub and LeVeque 1979).
class Moments {
 public:
  explicit Moments(int channels) : mean(channels, 0.0), var(channels, 0.0), part_mean(channels), part_var(channels) {}
  // Takes in what part_mean and part_var hold, of `count` values.
  void add(int64_t count) {
    const double n = static_cast<double>(count_), m = static_cast<double>(count), all = n + m;
    for (size_t c = 0; c < mean.size(); ++c) {
      const double delta = part_mean[c] - mean[c];
      mean[c] = count_ ? mean[c] + delta * (m / all) : part_mean[c];
      var[c] = count_ ? (var[c] * n + part_var[c] * m + delta * delta * (n * m / all)) / all : part_var[c];
    }
    count_ += count;
  }
  int64_t count() const { return count_; }

  std::vector<double> mean, var, part_mean, part_var;

 private:
  int64_t count_ = 0;
};

// Images [first, first + count).
struct Part {
  int first, count;
};

class BlockRun {
 public:
  BlockRun(const IsaTable& isa, const TrainTable& train, const TrainBlock& block, const Threads& threads)
      : isa_(isa), train_(train), block_(block), threads_(threads), norms_(block.stages.size()) {
    for (size_t i = 0; i < block.stages.size(); ++i) {
      const Role role = block.stages[i].desc.role;
      (role == Role::kExpand ? expand_ : role == Role::kDepthwise ? depthwise_ : project_) = static_cast<int>(i);
    }
    columns_ = in();
    hidden_h_ = block.h;
    hidden_w_ = block.w;
    if (expand_ >= 0 && !desc(expand_).pointwise()) {
      const Geometry& g = desc(expand_).geometry;
      const Placed dense = place(g, block.h, block.w);
      patches_ = PatchShape{block.h, block.w, in(),      g.kh,       g.kw,        g.sh,       g.sw,
                            g.dh,    g.dw,    dense.top, dense.left, dense.out_h, dense.out_w};
      columns_ = g.kh * g.kw * in();
      hidden_h_ = dense.out_h;
      hidden_w_ = dense.out_w;
      weight_ = by_patch_columns(tensors(expand_).weight, desc(expand_).out, in(), g.kh * g.kw);
    }
    out_h_ = hidden_h_;
    out_w_ = hidden_w_;
    if (depthwise_ >= 0) {
      placed_ = place(desc(depthwise_).geometry, hidden_h_, hidden_w_);
      out_h_ = placed_.out_h;
      out_w_ = placed_.out_w;
    }
    hidden_ = expand_ >= 0 ? desc(expand_).out : in();
    in_pixels_ = static_cast<int64_t>(block.h) * block.w;
    pixels_ = static_cast<int64_t>(hidden_h_) * hidden_w_;
    out_pixels_ = static_cast<int64_t>(out_h_) * out_w_;
  }

 protected:
  const StageDesc& desc(int stage) const { return block_.stages[stage].desc; }
  const StageTensors& tensors(int stage) const { return block_.stages[stage].tensors; }
  const Norm& norm(int stage) const { return *norms_[stage]; }
  bool is_batch(int stage) const { return block_.stages[stage].batch; }
  int in() const { return block_.stages.front().desc.in; }
  int out() const { return block_.stages.back().desc.out; }
  int last() const { return static_cast<int>(block_.stages.size()) - 1; }
  int64_t count() const { return block_.n * out_pixels_; }

  const float* x(const Part& part) const { return block_.x + part.first * in_pixels_ * in(); }

  // The matrix [pixels][columns_] that the expand stage multiplies: the input, or its patches, in `room`.
  size_t room(const std::vector<Part>& parts) const {
    return patches_ ? static_cast<size_t>(widest(parts)) * pixels_ * columns_ : 0;
  }
  const float* matrix(const Part& part, float* room) const {
    if (!patches_) return x(part);
    make_patches(*patches_, x(part), part.count, room, threads_);
    return room;
  }
  // Its other operand, [out][columns_].
  const float* expand_weight() const { return patches_ ? weight_.data() : tensors(expand_).weight; }

  // A few images at a time where a stage is made before another, else all.
  std::vector<Part> parts() const {
    int64_t count = block_.n;
    if (expand_ >= 0) {
      const int64_t image = pixels_ * hidden_ * static_cast<int64_t>(sizeof(float));
      count = std::max<int64_t>(1, block_.chunk_bytes / std::max<int64_t>(1, image));
    }
    std::vector<Part> parts;
    for (int first = 0; first < block_.n; first += static_cast<int>(std::min<int64_t>(count, block_.n))) {
      parts.push_back({first, static_cast<int>(std::min<int64_t>(count, block_.n - first))});
    }
    return parts;
  }
  int widest(const std::vector<Part>& parts) const {
    int most = 0;
    for (const Part& part : parts) most = std::max(most, part.count);
    return most;
  }

  DepthwiseShape shape(int images) const {
    const Geometry& g = desc(depthwise_).geometry;
    return {images, hidden_h_, hidden_w_, hidden_,     g.kh,         g.kw,   g.sh,
            g.sw,   g.dh,      g.dw,      placed_.top, placed_.left, out_h_, out_w_};
  }

  // a [pixels][k] times b; see Product.
  void product(const float* a, const float* b, bool transposed, float* to, int64_t pixels, int k, int n,
               const Prologue& before = {}) const {
    Product p{};
    p.a = a;
    p.b = b;
    p.out = to;
    p.pixels = pixels;
    p.k = k;
    p.n = n;
    p.transposed = transposed;
    p.scale = before.scale;
    p.shift = before.shift;
    p.lo = before.lo;
    p.hi = before.hi;
    run_product(isa_, train_, p, threads_);
  }

  // The bare expand convolution of some images, whose matrix is given.
  void expanded(const float* matrix, const Part& part, float* u) const {
    product(matrix, expand_weight(), true, u, part.count * pixels_, columns_, hidden_);
  }
  // The bare depthwise convolution of a part's bare expand convolution, or of the input where there is none.
  void convolve(const float* u, int images, float* v, double* mean, double* var) const {
    const Prologue before = expand_ >= 0 ? norm(expand_).act() : Prologue{};
    depthwise_forward(isa_, train_, shape(images), u, before, tensors(depthwise_).weight, nullptr, v, mean, var,
                      threads_);
  }

  Pass pass(const float* x, int64_t pixels, int channels) const {
    Pass p{pixels, channels};
    p.x = x;
    return p;
  }
  Pass activated(const float* x, int64_t pixels, const Norm& norm) const {
    Pass p = pass(x, pixels, norm.channels());
    const Prologue act = norm.act();
    p.scale = act.scale;
    p.shift = act.shift;
    p.lo = act.lo;
    p.hi = act.hi;
    return p;
  }
  void apply(const float* x, int64_t pixels, const Norm& norm, const float* residual, float* y) const {
    Pass p = activated(x, pixels, norm);
    p.r = residual;
    p.y = y;
    run_apply(train_, p, threads_);
  }
  // to (+)= wide^T (narrow - center)
  void weight_product(const float* wide, int wide_columns, const float* narrow, int narrow_columns, int64_t pixels,
                      const float* center, bool accumulate, float* to) const {
    WeightProduct p{};
    p.wide = wide;
    p.narrow = narrow;
    p.center = center;
    p.out = to;
    p.pixels = pixels;
    p.wide_columns = wide_columns;
    p.narrow_columns = narrow_columns;
    p.accumulate = accumulate;
    run_weight_product(train_, p, threads_);
  }

  const IsaTable& isa_;
  const TrainTable& train_;
  const TrainBlock& block_;
  const Threads& threads_;
  std::vector<std::optional<Norm>> norms_;  // of each stage, once its statistics are known
  int expand_ = -1, depthwise_ = -1, project_ = -1;
  int columns_;  // of the matrix that the expand stage multiplies
  int hidden_, hidden_h_, hidden_w_, out_h_, out_w_;
  int64_t in_pixels_, pixels_, out_pixels_;  // of an image: the input, between expand and depthwise, the output
  Placed placed_;
  std::optional<PatchShape> patches_;
  std::vector<float> weight_;
};

}  // namespace mobilenet_ext
