// What the training operators check of their tensors, and the threads they run on.
#pragma once
#include <optional>

#include "cpu/depthwise_train.h"
#include "cpu/registry.h"
#include "cpu/run.h"
#include "cpu/train_table.h"
#include "cpu/workers.h"
#include "tensors.h"

namespace mobilenet_ext {

using MaybeTensor = std::optional<Tensor>;

// PyTorch's.
Threads training_threads();

inline const float* floats(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }
// Large tensors come fresh from the system, on huge pages from here on.
float* writable(const Tensor& out);

// `values` contiguous float32 on the CPU.
const float* vector(const char* name, const Tensor& t, int64_t values);
const float* vector(const char* name, const MaybeTensor& t, int64_t values);
// A channels_last float32 image on the CPU.
void check_image(const char* name, const Tensor& t);
void check_size(const char* name, const Tensor& t, int64_t n, int64_t c, int64_t h, int64_t w);
// `geometry`: kernel, stride, dilation, padding top and left, output size.
DepthwiseShape depthwise_shape(const Tensor& x, const Tensor& weight, const std::vector<int64_t>& geometry);
// Float64, uninitialised.
Tensor doubles(std::initializer_list<int64_t> shape, const Tensor& like);

// The tables in use; counts a run of `kind`.
struct Kernels {
  explicit Kernels(const char* kind) : isa(active_isa()), train(train_table(isa)) { count_run(kind, isa.name); }
  const IsaTable& isa;
  const TrainTable& train;
};

}  // namespace mobilenet_ext
