// chain, chain_cached, chain_grad: a packed chain on a tensor. Checks, allocation and threads; the work is csrc/cpu.
#include <climits>
#include <optional>

#include "freshness.h"

namespace mobilenet_ext {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

Input checked_input(const Tensor& x, const ChainDesc& desc) {
  STD_TORCH_CHECK(x.dim() == 4, "x has shape ", shape_text(x), "; allowed: four dimensions (N, C, H, W)");
  STD_TORCH_CHECK(x.is_cpu(), "x is not on the CPU, where this kernel runs");
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "x must be float32");
  STD_TORCH_CHECK(x.size(1) == desc.items.front().in(), "x has ", x.size(1), " channels (shape ", shape_text(x),
                  "); this block takes ", desc.items.front().in());
  for (int64_t d = 0; d < 4; ++d)
    STD_TORCH_CHECK(x.size(d) <= INT_MAX, "x has shape ", shape_text(x), "; sizes up to 2^31 - 1 are supported");
  STD_TORCH_CHECK(x.size(2) * x.size(3) <= INT_MAX, "x has shape ", shape_text(x),
                  "; images of up to 2^31 - 1 pixels are supported");
  Input in;
  in.data = static_cast<const float*>(x.const_data_ptr());
  in.n = static_cast<int>(x.size(0));
  in.c = static_cast<int>(x.size(1));
  in.h = static_cast<int>(x.size(2));
  in.w = static_cast<int>(x.size(3));
  in.image = x.stride(0);
  in.channel = in.c == 1 ? 1 : x.stride(1);
  in.row = x.stride(2);
  in.pixel = x.stride(3);
  // A dimension of one element has any stride: choose the one that makes rows join.
  if (in.w == 1) in.pixel = in.h == 1 ? in.c : in.row;
  if (in.h == 1) in.row = in.w * in.pixel;
  return in;
}

Tensor run_entry(const Entry& entry, const Tensor& x) {
  const ChainDesc& desc = entry.packed.desc;
  const Input in = checked_input(x, desc);
  const std::vector<ItemShape> placed = shapes(desc, in.h, in.w);
  for (const ItemShape& s : placed) {
    STD_TORCH_CHECK(s.out_h > 0 && s.out_w > 0, "x has shape ", shape_text(x),
                    ", too small: a stage of this chain would have an output of ", s.out_h, " x ", s.out_w, " pixels");
  }
  for (size_t i = 0; i < placed.size(); ++i) {
    const ItemShape& p = placed[desc.items[i].residual_back ? i - 1 : i];
    const ItemShape& end = placed[i];
    STD_TORCH_CHECK(!desc.items[i].residual || (end.out_h == p.h && end.out_w == p.w),
                    "residual needs an output of the ", "input's size; this block makes ", end.out_h, " x ", end.out_w,
                    " pixels of ", p.h, " x ", p.w);
  }
  const int64_t n = in.n, c = desc.items.back().out(), h = placed.back().out_h, w = placed.back().out_w;
  Output out;
  Tensor y = [&] {
    if (desc.flat_output()) return torch::stable::empty({n, c}, ScalarType::Float, std::nullopt, x.device());
    // Ambiguous strides count as NCHW.
    const bool nchw = desc.follow_input && (x.is_contiguous() || !is_channels_last(x));
    return torch::stable::empty({n, c, h, w}, ScalarType::Float, std::nullopt, x.device(), std::nullopt,
                                nchw ? MemoryFormat::Contiguous : MemoryFormat::ChannelsLast);
  }();
  out.data = static_cast<float*>(y.mutable_data_ptr());
  const bool flat = desc.flat_output(),
             planar = !flat && desc.follow_input && (x.is_contiguous() || !is_channels_last(x));
  out.image = flat ? c : c * h * w;
  out.channel = planar ? h * w : 1;
  out.pixel = planar ? 1 : c;
  if (c == 1) out.channel = 1;
  if (n > 0) {
    run_chain(entry.packed, entry.tasks, in, out, static_cast<int>(torch::stable::get_num_threads()),
              [](int workers, const Worker& worker) {
                torch::stable::parallel_for(0, workers, 1,
                                            [&](int64_t index, int64_t) { worker(static_cast<int>(index)); });
              });
  }
  return y;
}

Tensor chain(const Tensor& x, const std::vector<Tensor>& sources, const std::optional<Tensor>& slot,
             const std::vector<int64_t>& program, const std::vector<double>& constants) {
  if (sources.empty() && slot) {
    const int64_t key = *static_cast<const int64_t*>(slot->const_data_ptr());
    const auto entry = trusted_entry(key);
    STD_TORCH_CHECK(entry != nullptr && entry->program == program && entry->constants == constants, "slot ", key,
                    " holds nothing packed for this chain and the instruction set in use; call mobilenet_ext.freeze "
                    "on the model again");
    return run_entry(*entry, x);
  }
  return run_entry(*fresh_entry(sources, slot ? &*slot : nullptr, program, constants), x);
}

Tensor chain_cached(const Tensor& x, const Tensor& slot) {
  const int64_t key = *static_cast<const int64_t*>(slot.const_data_ptr());
  const auto entry = trusted_entry(key);
  STD_TORCH_CHECK(entry != nullptr, "slot ", key, " holds nothing packed for the instruction set in use");
  return run_entry(*entry, x);
}

}  // namespace
}  // namespace mobilenet_ext

STABLE_TORCH_LIBRARY_IMPL(mobilenet_ext, CPU, m) {
  m.impl("chain", TORCH_BOX(&mobilenet_ext::chain));
  m.impl("chain_cached", TORCH_BOX(&mobilenet_ext::chain_cached));
  m.impl("chain_grad", TORCH_BOX(&mobilenet_ext::chain));
}
