#include "train_run.h"

namespace mobilenet_ext {
namespace {

class Forward : BlockRun {
 public:
  Forward(const IsaTable& isa, const TrainTable& train, const TrainBlock& block, const TrainResults& to,
          const Threads& threads)
      : BlockRun(isa, train, block, threads), to_(to) {
    for (const TrainStage& stage : block.stages) all_channels_ += stage.batch ? stage.desc.out : 0;
  }

  void run() {
    if (depthwise_ < 0) {
      const std::vector<Part> parts = this->parts();
      const Working memory(room(parts));
      for (const Part& part : parts) {
        expanded(matrix(part, memory.data()), part, to_.p + part.first * pixels_ * hidden_);
      }
      close(expand_, to_.p);
      return finish(to_.p);
    }
    hidden();
    if (project_ < 0) return finish(to_.v);
    product(to_.v, tensors(project_).weight, true, to_.p, count(), hidden_, out(), norm(depthwise_).act());
    close(project_, to_.p);
    finish(to_.p);
  }

 private:
  // The BatchNorm of a stage whose bare result for the whole batch is at `bare`.
  void close(int stage, const float* bare) {
    if (!is_batch(stage)) return close_with(stage, nullptr);
    Moments m(desc(stage).out);
    run_moments(train_, pass(bare, count(), desc(stage).out), m.part_mean.data(), m.part_var.data(), threads_);
    m.add(count());
    close_with(stage, &m);
  }
  void close_with(int stage, const Moments* found) {
    norms_[stage].emplace(desc(stage), tensors(stage), found ? found->mean.data() : nullptr,
                          found ? found->var.data() : nullptr);
    if (!found) return;
    const int channels = desc(stage).out;
    const double n = static_cast<double>(found->count()), unbiased = n > 1 ? n / (n - 1) : 1.0;
    for (int c = 0; c < channels; ++c) {
      to_.stats[written_ + c] = found->mean[c];
      to_.stats[all_channels_ + written_ + c] = found->var[c];
      to_.stats[2 * all_channels_ + written_ + c] = found->var[c] * unbiased;
    }
    written_ += channels;
  }

  // The depthwise result of the whole batch, with the statistics of both stages.
  void hidden() {
    const std::vector<Part> parts = this->parts();
    const size_t hidden_floats = expand_ >= 0 ? static_cast<size_t>(widest(parts)) * pixels_ * hidden_ : 0;
    const Working memory(hidden_floats + (expand_ >= 0 ? room(parts) : 0));
    float *u = memory.data(), *patches = u + hidden_floats;
    if (expand_ >= 0) {
      if (is_batch(expand_)) {
        Moments m(hidden_);
        for (const Part& part : parts) {
          const int64_t pixels = part.count * pixels_;
          expanded(matrix(part, patches), part, u);
          run_moments(train_, pass(u, pixels, hidden_), m.part_mean.data(), m.part_var.data(), threads_);
          m.add(pixels);
        }
        close_with(expand_, &m);
      } else {
        close_with(expand_, nullptr);
      }
    }
    const bool kept = expand_ >= 0 && is_batch(expand_) && parts.size() == 1;
    const bool batch = is_batch(depthwise_);
    Moments m(hidden_);
    for (const Part& part : parts) {
      if (expand_ >= 0 && !kept) expanded(matrix(part, patches), part, u);
      convolve(expand_ >= 0 ? u : x(part), part.count, to_.v + part.first * out_pixels_ * hidden_,
               batch ? m.part_mean.data() : nullptr, batch ? m.part_var.data() : nullptr);
      if (batch) m.add(part.count * out_pixels_);
    }
    close_with(depthwise_, batch ? &m : nullptr);
  }

  void finish(const float* bare) const {
    apply(bare, count(), norm(last()), block_.residual ? block_.x : nullptr, to_.y);
  }

  TrainResults to_;
  int all_channels_ = 0, written_ = 0;
};

}  // namespace

bool trains(const ItemDesc& item) {
  if (item.linear || item.pool || item.mean || item.residual_back || item.squeezed()) return false;
  for (const StageDesc& stage : item.stages) {
    if (!is_clamp(stage.activation)) return false;
    const bool strided = stage.geometry.sh != 1 || stage.geometry.sw != 1;
    if (stage.role == Role::kProject && (!stage.pointwise() || strided)) return false;
    // Larger ones than a network's first are PyTorch's: patches of many channels would take more time than they save.
    if (stage.role == Role::kExpand && (stage.pointwise() ? strided : stage.by_pixels())) return false;
  }
  return true;
}

void train_forward(const IsaTable& isa, const TrainTable& train, const TrainBlock& block, const TrainResults& to,
                   const Threads& threads) {
  Forward(isa, train, block, to, threads).run();
}

}  // namespace mobilenet_ext
