// The CUDA kernels as operators mobilenet_ext_cuda::*: checks, allocation, device and stream; the work is csrc/cuda.
// A library of its own, since one that links libtorch_cuda cannot be loaded under a torch without CUDA.
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <array>
#include <cstdint>

#include "cuda/launch.h"
#include "tensors.h"

namespace mobilenet_ext {
namespace {

using cuda::Dtype;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::accelerator::DeviceGuard;

void check_launch(int error, const char* what) {
  STD_TORCH_CHECK(error == 0, what, ": ", cudaGetErrorString(static_cast<cudaError_t>(error)));
}

void* current_stream(const Tensor& x) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return stream;
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check_launch(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

Dtype dtype_of(const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Dtype::kFloat;
    case ScalarType::Half:
      return Dtype::kHalf;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    default:
      STD_TORCH_CHECK(false, name, " has a dtype without a kernel; allowed: float32, float16, bfloat16");
  }
}

void check_image(const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 4, name, " has shape ", shape_text(t), "; allowed: four dimensions (N, C, H, W)");
  STD_TORCH_CHECK(t.is_cuda(), name, " is not on a GPU, where this kernel runs");
  STD_TORCH_CHECK(is_channels_last(t) || t.numel() == 0, name, " is not channels_last (shape ", shape_text(t), ")");
  STD_TORCH_CHECK(t.size(1) * t.size(2) * t.size(3) < (int64_t{1} << 31), name, " has shape ", shape_text(t),
                  "; images of fewer than 2^31 elements are supported");
}

// Contiguous, of this many elements, beside x; fp32 where `dtype` is.
void check_tensor(const char* name, const Tensor& t, const Tensor& x, ScalarType dtype, int64_t count) {
  STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == x.get_device_index(), name, " is not on the device of x");
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, " has the wrong dtype; weights have that of x, vectors are float32");
  STD_TORCH_CHECK(t.is_contiguous() && t.numel() == count, name, " has shape ", shape_text(t), "; needed are ", count,
                  " contiguous elements");
}

// geometry: kernel, stride, top, left, output (or, for backward_data, input) height and width.
cuda::Depthwise shape_of(const Tensor& x, const std::vector<int64_t>& geometry) {
  STD_TORCH_CHECK(geometry.size() == 6, "geometry has ", geometry.size(), " numbers; needed are 6");
  const auto g = [&](int i) { return static_cast<int>(geometry[static_cast<size_t>(i)]); };
  STD_TORCH_CHECK((g(0) == 3 || g(0) == 5) && (g(1) == 1 || g(1) == 2), "kernel ", g(0), " and stride ", g(1),
                  "; allowed: kernel 3 or 5, stride 1 or 2");
  STD_TORCH_CHECK(g(2) >= 0 && g(3) >= 0 && g(4) > 0 && g(5) > 0, "padding or size of the geometry is out of range");
  return {x.size(0),
          static_cast<int>(x.size(2)),
          static_cast<int>(x.size(3)),
          static_cast<int>(x.size(1)),
          g(4),
          g(5),
          g(0),
          g(1),
          g(2),
          g(3)};
}

Tensor new_image(const Tensor& like, int64_t n, int64_t c, int64_t h, int64_t w) {
  return torch::stable::empty({n, c, h, w}, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              MemoryFormat::ChannelsLast);
}

const float* floats(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }

Tensor depthwise(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& shift,
                 const std::vector<int64_t>& geometry, int64_t activation) {
  check_image("x", x);
  const Dtype dtype = dtype_of("x", x);
  const cuda::Depthwise shape = shape_of(x, geometry);
  check_tensor("weight", weight, x, x.scalar_type(), int64_t{shape.kernel} * shape.kernel * shape.c);
  check_tensor("scale", scale, x, ScalarType::Float, shape.c);
  check_tensor("shift", shift, x, ScalarType::Float, shape.c);
  const DeviceGuard guard(x.get_device_index());
  Tensor y = new_image(x, shape.n, shape.c, shape.oh, shape.ow);
  if (y.numel() == 0) return y;
  const cuda::DepthwiseForward p{shape,         x.const_data_ptr(),   weight.const_data_ptr(),     floats(scale),
                                 floats(shift), y.mutable_data_ptr(), static_cast<int>(activation)};
  check_launch(cuda::depthwise_forward(p, dtype, current_stream(x)), "depthwise");
  return y;
}

Tensor depthwise_backward_data(const Tensor& dy, const Tensor& weight, const std::vector<int64_t>& geometry) {
  check_image("dy", dy);
  const Dtype dtype = dtype_of("dy", dy);
  cuda::Depthwise shape = shape_of(dy, geometry);
  std::swap(shape.h, shape.oh);
  std::swap(shape.w, shape.ow);
  check_tensor("weight", weight, dy, dy.scalar_type(), int64_t{shape.kernel} * shape.kernel * shape.c);
  const DeviceGuard guard(dy.get_device_index());
  Tensor dx = new_image(dy, shape.n, shape.c, shape.h, shape.w);
  if (dx.numel() == 0) return dx;
  const cuda::DepthwiseBackwardData p{shape, dy.const_data_ptr(), weight.const_data_ptr(), dx.mutable_data_ptr()};
  check_launch(cuda::depthwise_backward_data(p, dtype, current_stream(dy)), "depthwise_backward_data");
  return dx;
}

Tensor depthwise_backward_weight(const Tensor& x, const Tensor& dy, const std::vector<int64_t>& geometry) {
  check_image("x", x);
  check_image("dy", dy);
  const Dtype dtype = dtype_of("x", x);
  const cuda::Depthwise shape = shape_of(x, geometry);
  STD_TORCH_CHECK(dy.scalar_type() == x.scalar_type() && dy.size(0) == shape.n && dy.size(1) == shape.c &&
                      dy.size(2) == shape.oh && dy.size(3) == shape.ow,
                  "dy has shape ", shape_text(dy), "; the geometry of x ", shape_text(x),
                  " needs another, or its dtype");
  const DeviceGuard guard(x.get_device_index());
  Tensor dw = torch::stable::empty({shape.kernel, shape.kernel, shape.c}, ScalarType::Float, std::nullopt, x.device());
  if (x.numel() == 0) return torch::stable::fill_(dw, 0);
  Tensor partial =
      torch::stable::empty({cuda::weight_partials(shape, dtype)}, ScalarType::Float, std::nullopt, x.device());
  const cuda::DepthwiseBackwardWeight p{shape, x.const_data_ptr(), dy.const_data_ptr(),
                                        static_cast<float*>(partial.mutable_data_ptr()),
                                        static_cast<float*>(dw.mutable_data_ptr())};
  check_launch(cuda::depthwise_backward_weight(p, dtype, current_stream(x)), "depthwise_backward_weight");
  return dw;
}

// tensors: weight, scale, shift of expand, depthwise and project.
Tensor inverted_residual(const Tensor& x, const std::vector<Tensor>& tensors, const std::vector<int64_t>& geometry,
                         const std::vector<int64_t>& activations, bool residual, bool tf32) {
  check_image("x", x);
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0,
                  "x begins off a multiple of 16 bytes, which whole blocks need; clone it");
  STD_TORCH_CHECK(tensors.size() == 9 && activations.size() == 3, "tensors and activations have ", tensors.size(),
                  " and ", activations.size(), " entries; needed are 9 and 3");
  const Dtype dtype = dtype_of("x", x);
  const cuda::Depthwise shape = shape_of(x, geometry);
  STD_TORCH_CHECK(shape.kernel == 3, "kernel is ", shape.kernel, "; whole blocks take 3");
  STD_TORCH_CHECK(tensors[0].dim() == 2 && tensors[6].dim() == 2,
                  "expand and project weights must have two dimensions");
  const int64_t cin = x.size(1), hidden = tensors[0].size(1), cout = tensors[6].size(1);
  STD_TORCH_CHECK(cin % 8 == 0 && hidden % 8 == 0 && cout % 8 == 0, "widths are ", cin, ", ", hidden, " and ", cout,
                  "; whole blocks take multiples of 8");
  const std::array<int64_t, 3> widths{hidden, hidden, cout}, weights{cin * hidden, 9 * hidden, hidden * cout};
  for (size_t i = 0; i < 3; ++i) {
    check_tensor("weight", tensors[3 * i], x, x.scalar_type(), weights[i]);
    check_tensor("scale", tensors[3 * i + 1], x, ScalarType::Float, widths[i]);
    check_tensor("shift", tensors[3 * i + 2], x, ScalarType::Float, widths[i]);
  }
  STD_TORCH_CHECK(!residual || (cin == cout && shape.h == shape.oh && shape.w == shape.ow),
                  "residual needs an output like the input");
  const int device = x.get_device_index();
  const DeviceGuard guard(device);
  Tensor y = new_image(x, shape.n, cout, shape.oh, shape.ow);
  if (y.numel() == 0) return y;
  const auto at = [&](int i) { return tensors[static_cast<size_t>(i)].const_data_ptr(); };
  const auto vector = [&](int i) { return floats(tensors[static_cast<size_t>(i)]); };
  const auto act = [&](int i) { return static_cast<int>(activations[static_cast<size_t>(i)]); };
  cuda::Block block{shape.n,
                    shape.h,
                    shape.w,
                    static_cast<int>(cin),
                    static_cast<int>(hidden),
                    static_cast<int>(cout),
                    shape.oh,
                    shape.ow,
                    shape.stride,
                    shape.top,
                    shape.left,
                    x.const_data_ptr(),
                    at(0),
                    at(3),
                    at(6),
                    vector(1),
                    vector(2),
                    vector(4),
                    vector(5),
                    vector(7),
                    vector(8),
                    y.mutable_data_ptr(),
                    nullptr,
                    act(0),
                    act(1),
                    act(2),
                    residual,
                    tf32 && dtype == Dtype::kFloat};
  const size_t shared = static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  const int ctas = attribute(cudaDevAttrMultiProcessorCount, device);
  const cuda::BlockPlan plan = cuda::plan_block(block, dtype, shared, ctas);
  STD_TORCH_CHECK(plan.tile_h > 0, "no tile of this block (", cin, " -> ", hidden, " -> ", cout, ") fits into ", shared,
                  " bytes of shared memory");
  Tensor partial = torch::stable::empty({plan.splits > 1 ? plan.splits * y.numel() : 1}, ScalarType::Float,
                                        std::nullopt, x.device());
  block.partial = static_cast<float*>(partial.mutable_data_ptr());
  check_launch(cuda::inverted_residual(block, plan, dtype, current_stream(x)), "inverted_residual");
  return y;
}

// Throws with the runtime's words when kernels of this build cannot run on a device.
void probe(int64_t device) { check_launch(cuda::probe(static_cast<int>(device)), "the CUDA runtime says"); }

}  // namespace
}  // namespace mobilenet_ext

STABLE_TORCH_LIBRARY(mobilenet_ext_cuda, m) {
  // geometry: kernel, stride, top, left, height and width of the result (backward_weight: of dy).
  m.def("depthwise(Tensor x, Tensor weight, Tensor scale, Tensor shift, int[] geometry, int activation) -> Tensor");
  m.def("depthwise_backward_data(Tensor dy, Tensor weight, int[] geometry) -> Tensor");
  m.def("depthwise_backward_weight(Tensor x, Tensor dy, int[] geometry) -> Tensor");
  m.def(
      "inverted_residual(Tensor x, Tensor[] tensors, int[] geometry, int[] activations, bool residual, bool tf32) "
      "-> Tensor");
  m.def("probe(int device) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(mobilenet_ext_cuda, CUDA, m) {
  m.impl("depthwise", TORCH_BOX(&mobilenet_ext::depthwise));
  m.impl("depthwise_backward_data", TORCH_BOX(&mobilenet_ext::depthwise_backward_data));
  m.impl("depthwise_backward_weight", TORCH_BOX(&mobilenet_ext::depthwise_backward_weight));
  m.impl("inverted_residual", TORCH_BOX(&mobilenet_ext::inverted_residual));
}

STABLE_TORCH_LIBRARY_IMPL(mobilenet_ext_cuda, CompositeExplicitAutograd, m) {
  m.impl("probe", TORCH_BOX(&mobilenet_ext::probe));
}
