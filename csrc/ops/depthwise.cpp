// The depthwise convolution alone, with gradients: depthwise_conv2d and its backward. channels_last float32 tensors are
// served here, a few microseconds a call; everything else by the operators of mobilenet_ext/training/depthwise.py.
#include <array>
#include <tuple>
#include <vector>

#include "cpu/depthwise_train.h"
#include "cpu/passes.h"
#include "train_checks.h"

namespace mobilenet_ext {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

bool served(const Tensor& t) {
  return t.is_cpu() && t.scalar_type() == ScalarType::Float && t.dim() == 4 && is_channels_last(t);
}
bool served(const Tensor& x, const Tensor& weight) {
  return served(x) && weight.is_cpu() && weight.scalar_type() == ScalarType::Float && weight.is_contiguous();
}

template <class... Args>
auto stack_of(const Args&... args) {
  return std::array<StableIValue, sizeof...(Args)>{torch::stable::detail::from(args)...};
}

// `geometry`: kernel, stride, dilation, padding top, bottom, left, right.
DepthwiseShape shape_of(const Tensor& x, const Tensor& weight, const std::vector<int64_t>& g) {
  STD_TORCH_CHECK(g.size() == 10, "geometry has ", g.size(), " values; allowed: 10");
  auto output = [&](int axis) {
    const int64_t room = x.size(2 + axis) + g[6 + 2 * axis] + g[7 + 2 * axis] - g[4 + axis] * (g[axis] - 1) - 1;
    return room < 0 || g[2 + axis] < 1 ? 0 : room / g[2 + axis] + 1;
  };
  return depthwise_shape(x, weight, {g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[8], output(0), output(1)});
}

Tensor image(const Tensor& like, int64_t n, int64_t c, int64_t h, int64_t w) {
  return torch::stable::empty({n, c, h, w}, ScalarType::Float, std::nullopt, like.device(), std::nullopt,
                              MemoryFormat::ChannelsLast);
}
Tensor floats_of(const Tensor& like, std::initializer_list<int64_t> shape) {
  return torch::stable::empty(shape, ScalarType::Float, std::nullopt, like.device());
}

Tensor depthwise_conv2d(const Tensor& x, const Tensor& weight, const MaybeTensor& bias,
                        const std::vector<int64_t>& geometry) {
  if (!served(x, weight) || (bias && !bias->is_contiguous())) {
    auto stack = stack_of(x, weight, bias, geometry);
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher("mobilenet_ext::depthwise_conv2d_general", "", stack.data(), TORCH_ABI_VERSION));
    return torch::stable::detail::to<Tensor>(stack[0]);
  }
  const DepthwiseShape s = shape_of(x, weight, geometry);
  Tensor y = image(x, s.n, s.channels, s.oh, s.ow);
  const Kernels k("depthwise_forward");
  depthwise_forward(k.isa, k.train, s, floats(x), {}, floats(weight), vector("bias", bias, s.channels), writable(y),
                    nullptr, nullptr, training_threads());
  return y;
}

// `needs`: whether the gradients of x, weight and bias are wanted; the others are empty.
std::tuple<Tensor, Tensor, Tensor> depthwise_conv2d_backward(const Tensor& g, const Tensor& x, const Tensor& weight,
                                                             const std::vector<int64_t>& geometry,
                                                             const std::vector<int64_t>& needs) {
  STD_TORCH_CHECK(needs.size() == 3, "needs has ", needs.size(), " values; allowed: 3");
  if (!served(x, weight) || !served(g)) {
    auto stack = stack_of(g, x, weight, geometry, needs);
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher("mobilenet_ext::depthwise_conv2d_backward_general", "", stack.data(), TORCH_ABI_VERSION));
    return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1]),
            torch::stable::detail::to<Tensor>(stack[2])};
  }
  const DepthwiseShape s = shape_of(x, weight, geometry);
  check_size("g", g, s.n, s.channels, s.oh, s.ow);
  Tensor dx = needs[0] ? image(x, s.n, s.channels, s.h, s.w) : floats_of(x, {0});
  Tensor dw = needs[1] ? floats_of(x, {s.channels, 1, s.kh, s.kw}) : floats_of(x, {0});
  Tensor db = needs[2] ? floats_of(x, {s.channels}) : floats_of(x, {0});
  if (needs[0] || needs[1]) {
    const Kernels k("depthwise_backward");
    depthwise_backward(k.isa, k.train, s, floats(g), {}, floats(x), {}, nullptr, floats(weight),
                       needs[0] ? writable(dx) : nullptr, needs[1] ? writable(dw) : nullptr, nullptr,
                       training_threads());
  }
  if (needs[2]) {
    Pass p{static_cast<int64_t>(s.n) * s.oh * s.ow, s.channels};
    p.x = floats(g);
    std::vector<double> mean(s.channels), var(s.channels);
    if (p.pixels) run_moments(Kernels("moments").train, p, mean.data(), var.data(), training_threads());
    float* sums = writable(db);
    for (int c = 0; c < s.channels; ++c) sums[c] = static_cast<float>(mean[c] * static_cast<double>(p.pixels));
  }
  return {dx, dw, db};
}

}  // namespace
}  // namespace mobilenet_ext

STABLE_TORCH_LIBRARY_IMPL(mobilenet_ext, CPU, m) {
  m.impl("depthwise_conv2d", TORCH_BOX(&mobilenet_ext::depthwise_conv2d));
  m.impl("depthwise_conv2d_backward", TORCH_BOX(&mobilenet_ext::depthwise_conv2d_backward));
}
