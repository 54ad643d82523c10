// The CUDA kernels as operators mobilenet_ext_cuda::*: checks, allocation, device and stream; the work is csrc/cuda.
// Whether tensors are on a GPU is checked last, so that tensors on the CPU show every other message where there is
// none. A library of its own, since one that links libtorch_cuda cannot be loaded under a torch without CUDA.
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <array>
#include <climits>
#include <cstdint>
#include <string>
#include <utility>

#include "cuda/launch.h"
#include "tensors.h"

namespace mobilenet_ext {
namespace {

using cuda::Dtype;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::headeronly::toString;
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

std::string device_text(const Tensor& t) {
  if (t.is_cuda()) return "cuda:" + std::to_string(t.get_device_index());
  return t.is_cpu() ? "cpu" : "a device that is neither cuda nor cpu";
}

std::string strides_text(const Tensor& t) {
  std::string s;
  for (int64_t d = 0; d < t.dim(); ++d) s += (d ? ", " : "") + std::to_string(t.stride(d));
  return "(" + s + ")";
}

void check_on_gpu(const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.is_cuda(), name, " is on ", device_text(t), "; allowed: cuda");
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
      STD_TORCH_CHECK(false, name, " is ", toString(t.scalar_type()), "; allowed: Float, Half, BFloat16");
  }
}

void check_image(const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 4, name, " has shape ", shape_text(t), "; allowed: four dimensions (N, C, H, W)");
  STD_TORCH_CHECK(is_channels_last(t) || t.numel() == 0, name, " has shape ", shape_text(t), " and strides ",
                  strides_text(t), "; allowed: those of channels_last");
  STD_TORCH_CHECK(t.size(1) * t.size(2) * t.size(3) < (int64_t{1} << 31), name, " has shape ", shape_text(t),
                  "; allowed: images of fewer than 2^31 elements");
}

// Contiguous, of this many elements, beside x; fp32 where `dtype` is.
void check_tensor(const std::string& name, const Tensor& t, const Tensor& x, ScalarType dtype, int64_t count) {
  STD_TORCH_CHECK(device_text(t) == device_text(x), name, " is on ", device_text(t), "; allowed: the device of x, ",
                  device_text(x));
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, " is ", toString(t.scalar_type()), "; allowed: ", toString(dtype));
  STD_TORCH_CHECK(t.is_contiguous() && t.numel() == count, name, " has shape ", shape_text(t), " and strides ",
                  strides_text(t), "; allowed: ", count, " contiguous elements");
}

int check_activation(const std::string& name, int64_t code) {
  STD_TORCH_CHECK(code >= 0 && code <= 2, name, " is ", code, "; allowed: 0 (none), 1 (ReLU), 2 (ReLU6)");
  return static_cast<int>(code);
}

// geometry: kernel, stride, top, left, output (or, for backward_data, input) height and width.
cuda::Depthwise shape_of(const Tensor& x, const std::vector<int64_t>& geometry) {
  STD_TORCH_CHECK(geometry.size() == 6, "geometry has ", geometry.size(), " numbers; allowed: 6");
  for (const int64_t value : geometry)
    STD_TORCH_CHECK(value >= 0 && value <= INT_MAX, "geometry holds ", value, "; allowed: 0 to 2^31 - 1");
  const auto g = [&](int i) { return static_cast<int>(geometry[static_cast<size_t>(i)]); };
  STD_TORCH_CHECK(g(0) == 3 || g(0) == 5, "geometry has kernel ", g(0), "; allowed: 3, 5");
  STD_TORCH_CHECK(g(1) == 1 || g(1) == 2, "geometry has stride ", g(1), "; allowed: 1, 2");
  STD_TORCH_CHECK(g(4) > 0 && g(5) > 0, "geometry has a result of ", g(4), " x ", g(5), " pixels; allowed: at least 1");
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
  const int act = check_activation("activation", activation);
  check_on_gpu("x", x);
  const DeviceGuard guard(x.get_device_index());
  Tensor y = new_image(x, shape.n, shape.c, shape.oh, shape.ow);
  if (y.numel() == 0) return y;
  const cuda::DepthwiseForward p{
      shape, x.const_data_ptr(), weight.const_data_ptr(), floats(scale), floats(shift), y.mutable_data_ptr(), act};
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
  check_on_gpu("dy", dy);
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
  STD_TORCH_CHECK(dy.scalar_type() == x.scalar_type(), "dy is ", toString(dy.scalar_type()), "; allowed: that of x, ",
                  toString(x.scalar_type()));
  STD_TORCH_CHECK(device_text(dy) == device_text(x), "dy is on ", device_text(dy), "; allowed: the device of x, ",
                  device_text(x));
  STD_TORCH_CHECK(dy.size(0) == shape.n && dy.size(1) == shape.c && dy.size(2) == shape.oh && dy.size(3) == shape.ow,
                  "dy has shape ", shape_text(dy), "; allowed: (", shape.n, ", ", shape.c, ", ", shape.oh, ", ",
                  shape.ow, ") by x and the geometry");
  check_on_gpu("x", x);
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
  const uintptr_t address = reinterpret_cast<uintptr_t>(x.const_data_ptr());
  STD_TORCH_CHECK(address % 16 == 0, "x begins ", address % 16, " bytes after a multiple of 16; allowed: on one");
  STD_TORCH_CHECK(tensors.size() == 9, "tensors has ", tensors.size(), " entries; allowed: 9");
  STD_TORCH_CHECK(activations.size() == 3, "activations has ", activations.size(), " entries; allowed: 3");
  const Dtype dtype = dtype_of("x", x);
  const cuda::Depthwise shape = shape_of(x, geometry);
  STD_TORCH_CHECK(shape.kernel == 3, "geometry has kernel ", shape.kernel, "; allowed for a whole block: 3");
  STD_TORCH_CHECK(tensors[0].dim() == 2, "the expand weight has shape ", shape_text(tensors[0]),
                  "; allowed: two dimensions (C, hidden)");
  STD_TORCH_CHECK(tensors[6].dim() == 2, "the project weight has shape ", shape_text(tensors[6]),
                  "; allowed: two dimensions (hidden, C')");
  const int64_t cin = x.size(1), hidden = tensors[0].size(1), cout = tensors[6].size(1);
  STD_TORCH_CHECK(cin % 8 == 0 && hidden % 8 == 0 && cout % 8 == 0, "the widths of the block are ", cin, ", ", hidden,
                  " and ", cout, "; allowed: multiples of 8");
  const std::array<int64_t, 3> widths{hidden, hidden, cout}, weights{cin * hidden, 9 * hidden, hidden * cout};
  const std::array<const char*, 3> roles{"expand", "depthwise", "project"};
  for (size_t i = 0; i < 3; ++i) {
    const std::string stage = std::string("the ") + roles[i];
    check_tensor(stage + " weight", tensors[3 * i], x, x.scalar_type(), weights[i]);
    check_tensor(stage + " scale", tensors[3 * i + 1], x, ScalarType::Float, widths[i]);
    check_tensor(stage + " shift", tensors[3 * i + 2], x, ScalarType::Float, widths[i]);
    check_activation(stage + " activation", activations[i]);
  }
  STD_TORCH_CHECK(!residual || (cin == cout && shape.h == shape.oh && shape.w == shape.ow), "the result is ", cout,
                  " x ", shape.oh, " x ", shape.ow, "; allowed with a residual: ", cin, " x ", shape.h, " x ", shape.w,
                  ", as x");
  check_on_gpu("x", x);
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
  STD_TORCH_CHECK(plan.tile_h > 0, "the widths of the block are ", cin, ", ", hidden, " and ", cout,
                  "; allowed on this GPU: those of which a tile fits into ", shared, " bytes of shared memory");
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

#define MNX_IMPLEMENT(m)                                                                     \
  m.impl("depthwise", TORCH_BOX(&mobilenet_ext::depthwise));                                 \
  m.impl("depthwise_backward_data", TORCH_BOX(&mobilenet_ext::depthwise_backward_data));     \
  m.impl("depthwise_backward_weight", TORCH_BOX(&mobilenet_ext::depthwise_backward_weight)); \
  m.impl("inverted_residual", TORCH_BOX(&mobilenet_ext::inverted_residual));

STABLE_TORCH_LIBRARY_IMPL(mobilenet_ext_cuda, CUDA,
                          m){MNX_IMPLEMENT(m)} STABLE_TORCH_LIBRARY_IMPL(mobilenet_ext_cuda, CPU, m){MNX_IMPLEMENT(m)}
// which say what is wrong

STABLE_TORCH_LIBRARY_IMPL(mobilenet_ext_cuda, CompositeExplicitAutograd, m) {
  m.impl("probe", TORCH_BOX(&mobilenet_ext::probe));
}
