#include "train_checks.h"

#include <climits>

namespace mobilenet_ext {

using torch::headeronly::ScalarType;

Threads training_threads() {
  static const Parallel parallel = [](int workers, const Worker& worker) {
    torch::stable::parallel_for(0, workers, 1, [&](int64_t index, int64_t) { worker(static_cast<int>(index)); });
  };
  return {static_cast<int>(torch::stable::get_num_threads()), parallel};
}

float* writable(const Tensor& out) {
  constexpr size_t kLarge = size_t{8} << 20;
  float* data = static_cast<float*>(out.mutable_data_ptr());
  const size_t bytes = static_cast<size_t>(out.numel()) * sizeof(float);
  if (bytes >= kLarge) advise_huge_pages(data, bytes);
  return data;
}

const float* vector(const char* name, const Tensor& t, int64_t values) {
  STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == ScalarType::Float && t.is_contiguous() && t.numel() == values, name,
                  " has shape ", shape_text(t), "; allowed: ", values, " contiguous float32 values on the CPU");
  return floats(t);
}

const float* vector(const char* name, const MaybeTensor& t, int64_t values) {
  return t ? vector(name, *t, values) : nullptr;
}

void check_image(const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 4 && t.is_cpu() && t.scalar_type() == ScalarType::Float && is_channels_last(t), name,
                  " has shape ", shape_text(t), "; allowed: a channels_last float32 (N, C, H, W) on the CPU");
  for (int64_t d = 0; d < 4; ++d)
    STD_TORCH_CHECK(t.size(d) <= INT_MAX, name, " has shape ", shape_text(t), "; sizes up to 2^31 - 1 are supported");
}

void check_size(const char* name, const Tensor& t, int64_t n, int64_t c, int64_t h, int64_t w) {
  check_image(name, t);
  STD_TORCH_CHECK(t.size(0) == n && t.size(1) == c && t.size(2) == h && t.size(3) == w, name, " has shape ",
                  shape_text(t), "; allowed: (", n, ", ", c, ", ", h, ", ", w, ")");
}

DepthwiseShape depthwise_shape(const Tensor& x, const Tensor& weight, const std::vector<int64_t>& g) {
  check_image("x", x);
  STD_TORCH_CHECK(g.size() == 10, "geometry has ", g.size(), " values; allowed: 10");
  for (int64_t v : g) STD_TORCH_CHECK(v >= 0 && v <= INT_MAX, "geometry holds ", v, "; allowed: 0 to 2^31 - 1");
  auto value = [&](int i) { return static_cast<int>(g[i]); };
  DepthwiseShape s{};
  s.n = static_cast<int>(x.size(0));
  s.channels = static_cast<int>(x.size(1));
  s.h = static_cast<int>(x.size(2));
  s.w = static_cast<int>(x.size(3));
  s.kh = value(0), s.kw = value(1), s.sh = value(2), s.sw = value(3), s.dh = value(4), s.dw = value(5);
  s.top = value(6), s.left = value(7), s.oh = value(8), s.ow = value(9);
  STD_TORCH_CHECK(s.kh >= 1 && s.kw >= 1 && s.sh >= 1 && s.sw >= 1 && s.dh >= 1 && s.dw >= 1,
                  "kernel, stride and dilation must be at least 1");
  STD_TORCH_CHECK(s.oh >= 1 && s.ow >= 1, "the output has ", s.oh, " x ", s.ow, " pixels; allowed: at least one");
  STD_TORCH_CHECK(weight.is_cpu() && weight.scalar_type() == ScalarType::Float && weight.is_contiguous() &&
                      weight.dim() == 4 && weight.size(0) == s.channels && weight.size(1) == 1 &&
                      weight.size(2) == s.kh && weight.size(3) == s.kw,
                  "weight has shape ", shape_text(weight), "; allowed: a contiguous float32 (", s.channels, ", 1, ",
                  s.kh, ", ", s.kw, ") on the CPU");
  return s;
}

Tensor doubles(std::initializer_list<int64_t> shape, const Tensor& like) {
  return torch::stable::empty(shape, ScalarType::Double, std::nullopt, like.device());
}

}  // namespace mobilenet_ext
