#include "tensors.h"

#include <array>

namespace mobilenet_ext {
namespace {

template <class R>
R dispatch(const char* op, const Tensor& t) {
  std::array<StableIValue, 1> stack{torch::stable::detail::from(t)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<R>(stack[0]);
}

}  // namespace

int64_t version_of(const Tensor& t) { return dispatch<int64_t>("aten::_version", t); }
bool is_inference(const Tensor& t) { return dispatch<bool>("aten::is_inference", t); }
Tensor detached(const Tensor& t) { return dispatch<Tensor>("aten::detach", t); }

bool is_channels_last(const Tensor& t) {
  if (t.dim() != 4) return false;
  int64_t expected = 1;
  for (int d : {1, 3, 2, 0}) {
    if (t.size(d) != 1) {
      if (t.stride(d) != expected) return false;
      expected *= t.size(d);
    }
  }
  return true;
}

std::string shape_text(const Tensor& t) {
  std::string s = "(";
  for (int64_t d = 0; d < t.dim(); ++d) s += (d ? ", " : "") + std::to_string(t.size(d));
  return s + ")";
}

}  // namespace mobilenet_ext
