// A block in training on tensors: checks and allocation; the work is csrc/cpu/train_forward.cpp and train_backward.cpp.
#include "cpu/train_block.h"

#include <stdexcept>
#include <string>
#include <tuple>

#include "train_checks.h"

namespace mobilenet_ext {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

constexpr unsigned kSourceBits[] = {kWeight, kConvBias, kBnWeight, kBnBias, kRunningMean, kRunningVar, kBatchesTracked};

// The only item of a program.
ItemDesc only_item(const std::vector<int64_t>& program, const std::vector<double>& constants) {
  ChainDesc desc = decode(program, constants);
  if (desc.items.size() != 1 || !trains(desc.items[0])) {
    throw std::invalid_argument("program: the native training kernels take one block of 1x1 and depthwise stages");
  }
  return desc.items[0];
}

int64_t weight_values(const StageDesc& desc) {
  const int64_t channels = desc.role == Role::kDepthwise ? 1 : desc.in;
  return static_cast<int64_t>(desc.out) * channels * desc.geometry.kh * desc.geometry.kw;
}

TrainBlock block_of(const Tensor& x, const std::vector<Tensor>& sources, const ItemDesc& item,
                    const std::vector<int64_t>& batch, int64_t chunk_bytes) {
  check_image("x", x);
  STD_TORCH_CHECK(x.numel() > 0 && x.size(1) == item.in(), "x has shape ", shape_text(x), "; this block takes (N, ",
                  item.in(), ", H, W), not empty");
  STD_TORCH_CHECK(batch.size() == item.stages.size(), "batch has ", batch.size(),
                  " values; allowed: ", item.stages.size());
  TrainBlock block{{},
                   item.residual,
                   floats(x),
                   static_cast<int>(x.size(0)),
                   static_cast<int>(x.size(2)),
                   static_cast<int>(x.size(3)),
                   chunk_bytes};
  size_t next = 0;
  for (size_t i = 0; i < item.stages.size(); ++i) {
    const StageDesc& desc = item.stages[i];
    TrainStage stage{desc, {}, batch[i] != 0};
    STD_TORCH_CHECK(!stage.batch || (desc.sources & kRunningMean), "batch: stage ", i, " has no BatchNorm");
    const int64_t weights = weight_values(desc);
    for (unsigned bit : kSourceBits) {
      if (!(desc.sources & bit)) continue;
      STD_TORCH_CHECK(next < sources.size(), "sources has ", sources.size(), " tensors; this block needs more");
      const Tensor& source = sources[next++];
      if (bit == kBatchesTracked || (stage.batch && (bit == kRunningMean || bit == kRunningVar))) continue;
      (bit == kWeight        ? stage.tensors.weight
       : bit == kConvBias    ? stage.tensors.conv_bias
       : bit == kBnWeight    ? stage.tensors.bn_weight
       : bit == kBnBias      ? stage.tensors.bn_bias
       : bit == kRunningMean ? stage.tensors.running_mean
                             : stage.tensors.running_var) =
          vector("sources", source, bit == kWeight ? weights : desc.out);
    }
    block.stages.push_back(stage);
  }
  STD_TORCH_CHECK(next == sources.size(), "sources has ", sources.size(), " tensors; this block needs ", next);
  return block;
}

struct OutSize {
  int64_t h, w;
};

OutSize out_size(const ItemDesc& item, const Tensor& x) {
  OutSize size{x.size(2), x.size(3)};
  for (const StageDesc& stage : item.stages) {
    const Placed placed = place(stage.geometry, static_cast<int>(size.h), static_cast<int>(size.w));
    size = {placed.out_h, placed.out_w};
    STD_TORCH_CHECK(size.h > 0 && size.w > 0, "x has shape ", shape_text(x),
                    ", too small: a stage of this block would have an output of ", size.h, " x ", size.w, " pixels");
  }
  STD_TORCH_CHECK(!item.residual || (size.h == x.size(2) && size.w == x.size(3)),
                  "residual needs an output of the input's size; this block makes ", size.h, " x ", size.w,
                  " pixels of ", x.size(2), " x ", x.size(3));
  return size;
}

int64_t batch_channels(const TrainBlock& block) {
  int64_t channels = 0;
  for (const TrainStage& stage : block.stages) channels += stage.batch ? stage.desc.out : 0;
  return channels;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> train_block_forward(const Tensor& x, const std::vector<Tensor>& sources,
                                                               const std::vector<int64_t>& program,
                                                               const std::vector<double>& constants,
                                                               const std::vector<int64_t>& batch, int64_t chunk_bytes) {
  const ItemDesc item = only_item(program, constants);
  const TrainBlock block = block_of(x, sources, item, batch, chunk_bytes);
  const OutSize size = out_size(item, x);
  const int64_t n = x.size(0);
  auto image = [&](int64_t channels) {
    return torch::stable::empty({n, channels, size.h, size.w}, ScalarType::Float, std::nullopt, x.device(),
                                std::nullopt, MemoryFormat::ChannelsLast);
  };
  auto none = [&] { return torch::stable::empty({0}, ScalarType::Float, std::nullopt, x.device()); };
  const StageDesc* dw = item.find(Role::kDepthwise);
  const bool ends = item.stages.back().role == Role::kDepthwise;
  Tensor y = image(item.out()), v = dw ? image(dw->out) : none(), p = ends ? none() : image(item.out());
  Tensor stats = doubles({3, batch_channels(block)}, x);
  const Kernels k("train_block_forward");
  if (dw) count_run("depthwise_forward", k.isa.name);
  train_forward(k.isa, k.train, block,
                {writable(y), dw ? writable(v) : nullptr, ends ? nullptr : writable(p),
                 static_cast<double*>(stats.mutable_data_ptr())},
                training_threads());
  return {y, v, p, stats};
}

void train_block_backward(const Tensor& g, const Tensor& x, const MaybeTensor& v, const MaybeTensor& p,
                          const Tensor& stats, const std::vector<Tensor>& sources, const std::vector<int64_t>& program,
                          const std::vector<double>& constants, const std::vector<int64_t>& batch, int64_t chunk_bytes,
                          const std::vector<Tensor>& grads) {
  const ItemDesc item = only_item(program, constants);
  const TrainBlock block = block_of(x, sources, item, batch, chunk_bytes);
  const OutSize size = out_size(item, x);
  const int64_t n = x.size(0), channels = batch_channels(block);
  check_size("g", g, n, item.out(), size.h, size.w);
  const StageDesc* dw = item.find(Role::kDepthwise);
  TrainSaved saved{floats(g), nullptr, nullptr, nullptr};
  if (channels) {
    STD_TORCH_CHECK(stats.is_cpu() && stats.scalar_type() == ScalarType::Double && stats.is_contiguous() &&
                        stats.numel() == 3 * channels,
                    "stats has shape ", shape_text(stats), "; allowed: contiguous float64 (3, ", channels, ")");
    saved.stats = static_cast<const double*>(stats.const_data_ptr());
    if (dw) {
      STD_TORCH_CHECK(v.has_value(), "v is missing; with statistics of the batch the depthwise result is needed");
      check_size("v", *v, n, dw->out, size.h, size.w);
      saved.v = floats(*v);
    }
    if (item.stages.back().role != Role::kDepthwise) {
      STD_TORCH_CHECK(p.has_value(), "p is missing; with statistics of the batch the last convolution is needed");
      check_size("p", *p, n, item.out(), size.h, size.w);
      saved.p = floats(*p);
    }
  }
  STD_TORCH_CHECK(grads.size() == sources.size() + 1, "grads has ", grads.size(),
                  " tensors; allowed: ", sources.size() + 1);
  auto target = [&](const Tensor& t, int64_t values) -> float* {
    if (t.numel() == 0) return nullptr;
    vector("grads", t, values);
    return writable(t);
  };
  float* dx = nullptr;
  if (grads[0].numel()) {
    STD_TORCH_CHECK(item.stages[0].role != Role::kExpand || item.stages[0].pointwise(),
                    "grads: the gradient of the input of a dense convolution larger than 1x1 is not made here");
    check_size("grads", grads[0], n, item.in(), x.size(2), x.size(3));
    dx = writable(grads[0]);
  }
  std::vector<StageGradients> stages;
  size_t next = 1;
  for (const StageDesc& desc : item.stages) {
    const int64_t weights = weight_values(desc);
    StageGradients to;
    for (unsigned bit : kSourceBits) {
      if (!(desc.sources & bit)) continue;
      const Tensor& grad = grads[next++];
      if (bit > kBnBias) continue;
      (bit == kWeight     ? to.weight
       : bit == kConvBias ? to.conv_bias
       : bit == kBnWeight ? to.bn_weight
                          : to.bn_bias) = target(grad, bit == kWeight ? weights : desc.out);
    }
    stages.push_back(to);
  }
  const Kernels k("train_block_backward");
  if (dw) count_run("depthwise_backward", k.isa.name);
  train_backward(k.isa, k.train, block, saved, dx, stages, training_threads());
}

}  // namespace
}  // namespace mobilenet_ext

STABLE_TORCH_LIBRARY_IMPL(mobilenet_ext, CPU, m) {
  m.impl("train_block_forward_native", TORCH_BOX(&mobilenet_ext::train_block_forward));
  m.impl("train_block_backward_native", TORCH_BOX(&mobilenet_ext::train_block_backward));
}
