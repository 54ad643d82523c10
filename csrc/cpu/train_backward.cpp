#include <cmath>

#include "train_run.h"

namespace mobilenet_ext {
namespace {

class BlockBackward : BlockRun {
 public:
  BlockBackward(const IsaTable& isa, const TrainTable& train, const TrainBlock& block, const TrainSaved& saved,
                float* dx, const std::vector<StageGradients>& grads, const Threads& threads)
      : BlockRun(isa, train, block, threads), saved_(saved), dx_(dx), grads_(grads), sums_(block.stages.size()) {
    int all = 0;
    for (const TrainStage& stage : block.stages) all += stage.batch ? stage.desc.out : 0;
    const double* at = saved.stats;
    for (size_t i = 0; i < block.stages.size(); ++i) {
      const TrainStage& stage = block.stages[i];
      norms_[i].emplace(stage.desc, stage.tensors, stage.batch ? at : nullptr, stage.batch ? at + all : nullptr);
      if (stage.batch) at += stage.desc.out;
    }
  }

  void run() {
    if (depthwise_ < 0) {
      single();
    } else if (std::any_of(block_.stages.begin(), block_.stages.end(), [](const TrainStage& s) { return s.batch; })) {
      batch();
    } else {
      frozen();
    }
    for (size_t i = 0; i < sums_.size(); ++i) {
      if (!sums_[i].empty()) norm(static_cast<int>(i)).gradients(sums_[i], grads_[i]);
    }
  }

 private:
  void add(int stage, const ChannelSums& part) {
    ChannelSums& sums = sums_[stage];
    if (sums.empty()) sums.assign(part.size(), 0.0);
    for (size_t i = 0; i < part.size(); ++i) sums[i] += part[i];
  }

  ChannelSums reduce(const float* g, const float* bare, int64_t pixels, const Norm& norm) const {
    Pass p = activated(bare, pixels, norm);
    p.g = g;
    p.center = norm.center();
    ChannelSums sums(2 * norm.channels());
    run_reduce(train_, p, sums.data(), threads_);
    return sums;
  }

  void gradient(const float* g, const float* bare, int64_t pixels, const Norm& norm, const Norm::Coefficients& k,
                float* to) const {
    Pass p = activated(bare, pixels, norm);
    p.g = g;
    p.a = k.a;
    p.b = k.b_or_null();
    p.c = k.c_or_null();
    p.center = k.center;
    p.y = to;
    run_gradient(train_, p, threads_);
  }

  // y = x * scale + shift (+ r)
  void affine(const float* x, int64_t pixels, const std::vector<float>& scale, const std::vector<float>& shift,
              const float* r, float* y) const {
    Pass p = pass(x, pixels, static_cast<int>(scale.size()));
    p.scale = scale.data();
    p.shift = shift.data();
    p.lo = -HUGE_VALF;
    p.hi = HUGE_VALF;
    p.r = r;
    p.y = y;
    run_apply(train_, p, threads_);
  }
  // y += other
  void add_rows(const float* other, int64_t pixels, int channels, float* y) const {
    affine(y, pixels, std::vector<float>(channels, 1.0f), std::vector<float>(channels, 0.0f), other, y);
  }

  const float* g(const Part& part) const { return saved_.g + part.first * out_pixels_ * out(); }
  const float* v(const Part& part) const { return saved_.v + part.first * out_pixels_ * hidden_; }
  float* dx(const Part& part) const { return dx_ + part.first * in_pixels_ * in(); }

  // [rows][columns] with row r times scale[r]
  static std::vector<float> scaled_rows(const float* weight, const float* scale, int rows, int columns) {
    std::vector<float> scaled(static_cast<size_t>(rows) * columns);
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < columns; ++c) {
        const size_t at = static_cast<size_t>(r) * columns + c;
        scaled[at] = weight[at] * scale[r];
      }
    }
    return scaled;
  }

  // A lone convolution.
  void single() {
    const std::vector<Part> parts = this->parts();
    const Norm& norm = this->norm(expand_);
    const size_t floats = static_cast<size_t>(widest(parts)) * pixels_ * out();
    const Working memory(2 * floats + room(parts));
    float *du = memory.data(), *made = du + floats, *patches = made + floats;
    std::vector<float> by_columns(patches_ && grads_[expand_].weight ? static_cast<size_t>(out()) * columns_ : 0);
    float* weights = by_columns.empty() ? grads_[expand_].weight : by_columns.data();
    if (saved_.p) sums_[expand_] = reduce(saved_.g, saved_.p, count(), norm);
    for (const Part& part : parts) {
      const int64_t pixels = part.count * pixels_;
      const float *matrix = this->matrix(part, patches), *u = made;
      if (saved_.p) {
        u = saved_.p + part.first * pixels_ * out();
      } else {
        expanded(matrix, part, made);
        add(expand_, reduce(g(part), u, pixels, norm));
      }
      gradient(g(part), u, pixels, norm, norm.coefficients(sums_[expand_], count()), du);
      if (weights) weight_product(du, out(), matrix, columns_, pixels, nullptr, part.first > 0, weights);
      if (!dx_) continue;
      product(du, tensors(expand_).weight, false, dx(part), pixels, out(), in());
      if (block_.residual) add_rows(g(part), pixels, in(), dx(part));
    }
    put_expand(by_columns);
  }

  // The weight gradient by columns of the patches in the order of the weight; nothing to do where that is the same.
  void put_expand(const std::vector<float>& by_columns) const {
    if (by_columns.empty()) return;
    const int taps = columns_ / in();
    float* to = grads_[expand_].weight;
    for (int o = 0; o < hidden_; ++o) {
      for (int i = 0; i < in(); ++i) {
        for (int t = 0; t < taps; ++t) *to++ = by_columns[static_cast<size_t>(o) * columns_ + t * in() + i];
      }
    }
  }

  // Statistics of the batch: sums over all of it stand between the stages.
  void batch() {
    const Norm& dw = norm(depthwise_);
    const std::vector<Part> parts = this->parts();
    const size_t hidden_floats = expand_ >= 0 ? static_cast<size_t>(widest(parts)) * pixels_ * hidden_ : 0;
    const size_t all_floats = project_ >= 0 ? static_cast<size_t>(count()) * hidden_ : 0;
    const size_t projected = project_ >= 0 ? static_cast<size_t>(count()) * out() : 0;
    // The activated depthwise result of a part shares its place with the expanded one, which comes later.
    const size_t out_floats = project_ >= 0 ? static_cast<size_t>(widest(parts)) * out_pixels_ * hidden_ : 0;
    const size_t part_floats = std::max(hidden_floats, out_floats);
    const Working memory(part_floats + hidden_floats + projected + (expand_ >= 0 ? room(parts) : 0)), whole(all_floats);
    float *u = memory.data(), *du = u + part_floats, *dp = du + hidden_floats, *patches = dp + projected;
    float* rows = whole.data();
    const float* da = saved_.g;
    if (project_ >= 0) {
      const Norm& last = norm(project_);
      sums_[project_] = reduce(saved_.g, saved_.p, count(), last);
      gradient(saved_.g, saved_.p, count(), last, last.coefficients(sums_[project_], count()), dp);
      std::vector<float> sum(grads_[project_].weight ? static_cast<size_t>(hidden_) * out() : 0);
      for (const Part& part : parts) {
        const int64_t pixels = part.count * out_pixels_;
        const float* some = dp + part.first * out_pixels_ * out();
        float* to = rows + part.first * out_pixels_ * hidden_;
        if (!sum.empty()) {
          apply(v(part), pixels, dw, nullptr, u);
          weight_product(u, hidden_, some, out(), pixels, nullptr, part.first > 0, sum.data());
        }
        product(some, tensors(project_).weight, false, to, pixels, out(), hidden_);
        add(depthwise_, reduce(to, v(part), pixels, dw));
      }
      if (!sum.empty()) put_project(sum, nullptr);
      da = rows;
    } else {
      sums_[depthwise_] = reduce(saved_.g, saved_.v, count(), dw);
    }
    const Norm::Coefficients k = dw.coefficients(sums_[depthwise_], count());
    if (expand_ < 0) return first_depthwise(da, saved_.v, k);
    Hidden hidden = begin_hidden(k);
    for (const Part& part : parts) {
      const float* matrix = this->matrix(part, patches);
      expanded(matrix, part, u);
      take(hidden, part, matrix, u, da + part.first * out_pixels_ * hidden_, v(part), du);
    }
    end_hidden(hidden);
  }

  // Every BatchNorm frozen: each part of the batch goes through the whole block at once.
  void frozen() {
    const Norm& dw = norm(depthwise_);
    const std::vector<Part> parts = this->parts();
    const size_t images = widest(parts), hidden_floats = expand_ >= 0 ? images * pixels_ * hidden_ : 0;
    const size_t out_floats = images * out_pixels_ * hidden_, projected = images * out_pixels_ * out();
    const bool projects = project_ >= 0, bare = projects && !scales_project();
    // The activated depthwise result shares its place with the hidden gradient, which comes later.
    const size_t shared = std::max(hidden_floats, projects ? out_floats : 0);
    const size_t projected_floats = bare ? projected : 0;
    const Working memory(hidden_floats + out_floats + (projects ? out_floats : 0) + shared + 2 * projected_floats +
                         (expand_ >= 0 ? room(parts) : 0));
    float *u = memory.data(), *v = u + hidden_floats, *da = v + out_floats, *du = da + (projects ? out_floats : 0);
    float *p = du + shared, *dp = p + projected_floats, *patches = dp + projected_floats;
    const Norm::Coefficients k = dw.coefficients({}, count());
    std::vector<float> sum(projects && grads_[project_].weight ? static_cast<size_t>(hidden_) * out() : 0), scaled;
    if (projects && !bare) scaled = scaled_rows(tensors(project_).weight, norm(project_).scale(), out(), hidden_);
    Hidden hidden = begin_hidden(k);
    for (const Part& part : parts) {
      const int64_t pixels = part.count * out_pixels_;
      const float *matrix = nullptr, *arrives = g(part);
      if (expand_ >= 0) {
        matrix = this->matrix(part, patches);
        expanded(matrix, part, u);
      }
      convolve(expand_ >= 0 ? u : x(part), part.count, v, nullptr, nullptr);
      if (projects) {
        float* a = du;
        apply(v, pixels, dw, nullptr, a);
        if (bare) {
          const Norm& last = norm(project_);
          product(a, tensors(project_).weight, true, p, pixels, hidden_, out());
          add(project_, reduce(arrives, p, pixels, last));
          gradient(arrives, p, pixels, last, last.coefficients({}, count()), dp);
          arrives = dp;
        }
        if (!sum.empty()) weight_product(a, hidden_, arrives, out(), pixels, nullptr, part.first > 0, sum.data());
        product(arrives, bare ? tensors(project_).weight : scaled.data(), false, da, pixels, out(), hidden_);
        arrives = da;
      }
      add(depthwise_, reduce(arrives, v, pixels, dw));
      if (expand_ < 0) {
        first_depthwise(arrives, v, k);
      } else {
        take(hidden, part, matrix, u, arrives, v, du);
      }
    }
    if (expand_ >= 0) end_hidden(hidden);
    if (!projects || sum.empty()) return;
    if (!bare) project_sums(sum);
    put_project(sum, bare ? nullptr : norm(project_).scale());
  }

  // Without an activation behind it the project's BatchNorm is a factor of its weights, and project_sums makes its sums
  // of the whole batch at the end, from the gradient of the weights.
  bool scales_project() const { return !norm(project_).clamps() && grads_[project_].weight; }

  // Those of g and g * (p - center) from `product`, a^T g: with p = W a the sum of g * p is one over W.
  void project_sums(const std::vector<float>& product) {
    const Norm& last = norm(project_);
    std::vector<double> mean(out()), var(out());
    run_moments(train_, pass(saved_.g, count(), out()), mean.data(), var.data(), threads_);
    ChannelSums& sums = sums_[project_];
    sums.assign(2 * static_cast<size_t>(out()), 0.0);
    const float* weight = tensors(project_).weight;
    for (int o = 0; o < out(); ++o) {
      double along = 0;
      for (int h = 0; h < hidden_; ++h) {
        along += static_cast<double>(product[static_cast<size_t>(h) * out() + o]) *
                 static_cast<double>(weight[static_cast<size_t>(o) * hidden_ + h]);
      }
      sums[o] = mean[o] * static_cast<double>(count());
      sums[out() + o] = along - static_cast<double>(last.center()[o]) * sums[o];
    }
  }

  // The project weight's gradient [out][hidden] from [hidden][out].
  void put_project(const std::vector<float>& product, const float* scale) const {
    constexpr int kTile = 16;
    float* to = grads_[project_].weight;
    for (int from = 0; from < hidden_; from += kTile) {
      for (int o = 0; o < out(); ++o) {
        for (int h = from; h < std::min(hidden_, from + kTile); ++h) {
          const float value = product[static_cast<size_t>(h) * out() + o];
          to[static_cast<size_t>(o) * hidden_ + h] = scale ? value * scale[o] : value;
        }
      }
    }
  }

  GradientPrologue behind(const float* v, const Norm::Coefficients& k) const {
    return {v, norm(depthwise_).act(), k.a, k.b_or_null(), k.c_or_null(), k.center};
  }

  // The depthwise stage of a block that begins with it, on the whole batch.
  void first_depthwise(const float* da, const float* v, const Norm::Coefficients& k) const {
    depthwise_backward(isa_, train_, shape(block_.n), da, behind(v, k), block_.x, {}, nullptr,
                       tensors(depthwise_).weight, dx_, grads_[depthwise_].weight, nullptr, threads_);
    if (dx_ && block_.residual) add_rows(saved_.g, count(), in(), dx_);
  }

  // Depthwise and expand backward, part by part.
  struct Hidden {
    const Norm::Coefficients& k;
    std::vector<float> shift;     // the mean of x, with batch statistics: it must be gone from the products
    std::vector<float> scaled;    // the expand weight with its BatchNorm's scale
    std::vector<float> expand;    // the gradient of the expand weight, by columns of its matrix
    std::vector<float> taps;      // a part's gradient of the depthwise weight
    std::vector<double> weights;  // the sum of these
  };

  Hidden begin_hidden(const Norm::Coefficients& k) const {
    Hidden h{k, {}, {}, {}, {}, {}};
    if (expand_ < 0) return h;
    const Geometry& geometry = desc(depthwise_).geometry;
    if (grads_[depthwise_].weight) {
      h.taps.resize(static_cast<size_t>(hidden_) * geometry.kh * geometry.kw);
      h.weights.assign(h.taps.size(), 0.0);
    }
    if (grads_[expand_].weight) h.expand.resize(static_cast<size_t>(hidden_) * columns_);
    if (is_batch(expand_)) {
      const std::vector<Part> parts = this->parts();
      const Working memory(room(parts));
      Moments m(columns_);
      for (const Part& part : parts) {
        const int64_t pixels = part.count * pixels_;
        run_moments(train_, pass(matrix(part, memory.data()), pixels, columns_), m.part_mean.data(), m.part_var.data(),
                    threads_);
        m.add(pixels);
      }
      for (double mean : m.mean) h.shift.push_back(static_cast<float>(mean));
    }
    if (dx_) h.scaled = scaled_rows(tensors(expand_).weight, norm(expand_).scale(), hidden_, in());
    return h;
  }

  void take(Hidden& h, const Part& part, const float* matrix, const float* u, const float* da, const float* v,
            float* du) {
    ChannelSums sums(2 * static_cast<size_t>(hidden_));
    depthwise_backward(isa_, train_, shape(part.count), da, behind(v, h.k), u, norm(expand_).act(),
                       norm(expand_).center(), tensors(depthwise_).weight, du, h.taps.empty() ? nullptr : h.taps.data(),
                       sums.data(), threads_);
    add(expand_, sums);
    for (size_t i = 0; i < h.taps.size(); ++i) h.weights[i] += h.taps[i];
    const int64_t pixels = part.count * pixels_;
    if (!h.expand.empty()) {
      weight_product(du, hidden_, matrix, columns_, pixels, h.shift.empty() ? nullptr : h.shift.data(), part.first > 0,
                     h.expand.data());
    }
    if (!dx_) return;
    product(du, h.scaled.data(), false, dx(part), pixels, hidden_, in());
    if (block_.residual && h.shift.empty()) add_rows(g(part), pixels, in(), dx(part));
  }

  void end_hidden(Hidden& h) {
    if (float* to = grads_[depthwise_].weight) {
      for (size_t i = 0; i < h.weights.size(); ++i) to[i] = static_cast<float>(h.weights[i]);
    }
    if (!h.expand.empty()) h.expand = scaled_rows(h.expand.data(), norm(expand_).scale(), hidden_, columns_);
    if (!h.shift.empty()) take_off_statistics(h);
    if (h.expand.empty()) return;
    if (patches_) return put_expand(h.expand);
    std::copy(h.expand.begin(), h.expand.end(), grads_[expand_].weight);
  }

  // Takes off what the statistics of the expand stage take off, from matrices of the input's width only.
  //
  // With u - mean = W (x - mean of x), the gradient of u is scale * g - s * (u - mean) - c, so that of the weight loses
  // diag(s) W C, C the Gram matrix of the centred input (its columns sum to zero, so c adds nothing), and that of the
  // input loses (x - mean of x) W^T diag(s) W and the row c W.
  void take_off_statistics(Hidden& h) const {
    const Norm& first = norm(expand_);
    const int k = columns_;
    const int64_t all = block_.n * pixels_;
    const float* weight = expand_weight();
    const ChannelSums& sums = sums_[expand_];
    const std::vector<double> slope = first.slope(sums, all);
    const std::vector<float> slopes(slope.begin(), slope.end());
    const std::vector<float> sloped = scaled_rows(weight, slopes.data(), hidden_, k);
    std::vector<float> gram(static_cast<size_t>(k) * k), lost(dx_ ? gram.size() : 0), minus_row(k), minus_mean(k);
    if (dx_) {
      weight_product(weight, k, sloped.data(), k, hidden_, nullptr, false, lost.data());
      std::vector<double> row(k, 0.0);
      for (int c = 0; c < hidden_; ++c) {
        const double factor = first.exact_scale()[c] * (sums[c] / static_cast<double>(all));
        for (int i = 0; i < k; ++i) row[i] += factor * static_cast<double>(weight[static_cast<size_t>(c) * k + i]);
      }
      for (int i = 0; i < k; ++i) minus_row[i] = static_cast<float>(-row[i]);
    }
    for (int i = 0; i < k; ++i) minus_mean[i] = -h.shift[i];
    const std::vector<float> ones(k, 1.0f), minus(k, -1.0f);
    const std::vector<Part> parts = this->parts();
    const size_t floats = static_cast<size_t>(widest(parts)) * pixels_ * k;
    const Working memory(2 * floats + room(parts));
    float *centred = memory.data(), *product_of_it = centred + floats, *patches = product_of_it + floats;
    for (const Part& part : parts) {
      const int64_t pixels = part.count * pixels_;
      affine(matrix(part, patches), pixels, ones, minus_mean, nullptr, centred);
      if (!h.expand.empty()) weight_product(centred, k, centred, k, pixels, nullptr, part.first > 0, gram.data());
      if (!dx_) continue;
      product(centred, lost.data(), false, product_of_it, pixels, k, k);
      affine(product_of_it, pixels, minus, minus_row, dx(part), dx(part));
      if (block_.residual) add_rows(g(part), pixels, k, dx(part));
    }
    if (h.expand.empty()) return;
    std::vector<float> less(sloped.size());
    product(sloped.data(), gram.data(), false, less.data(), hidden_, k, k);
    for (size_t i = 0; i < less.size(); ++i) h.expand[i] -= less[i];
  }

  TrainSaved saved_;
  float* dx_;
  const std::vector<StageGradients>& grads_;
  std::vector<ChannelSums> sums_;  // of each stage, over the batch
};

}  // namespace

void train_backward(const IsaTable& isa, const TrainTable& train, const TrainBlock& block, const TrainSaved& saved,
                    float* dx, const std::vector<StageGradients>& grads, const Threads& threads) {
  BlockBackward(isa, train, block, saved, dx, grads, threads).run();
}

}  // namespace mobilenet_ext
