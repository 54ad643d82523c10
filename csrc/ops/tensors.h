// The few things the stable ABI lacks, and the checks every op shares.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <string>

namespace mobilenet_ext {

using torch::stable::Tensor;

// Tensor._version; throws for inference tensors, which have none.
int64_t version_of(const Tensor& t);
bool is_inference(const Tensor& t);
// The same storage outside autograd: keeps the memory alive, so that its address cannot be used again.
Tensor detached(const Tensor& t);

// Dense in memory in channels_last order, ignoring dimensions of size 1 (as torch.Tensor.is_contiguous does).
bool is_channels_last(const Tensor& t);
// "(2, 3, 224, 224)"
std::string shape_text(const Tensor& t);

}  // namespace mobilenet_ext
