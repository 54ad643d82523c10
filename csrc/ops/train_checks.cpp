#include "train_checks.h"

#include <climits>

namespace mobilenet_ext {

using torch::headeronly::ScalarType;

Threads training_threads() {
  static const Parallel parallel = [](int workers, const std::function<void()>& worker) {
    torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) { worker(); });
  };
  return {static_cast<int>(torch::stable::get_num_threads()), parallel};
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

Tensor doubles(std::initializer_list<int64_t> shape, const Tensor& like) {
  return torch::stable::empty(shape, ScalarType::Double, std::nullopt, like.device());
}

}  // namespace mobilenet_ext
