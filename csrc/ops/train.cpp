// The passes and depthwise kernels of training on tensors. Checks, allocation and threads; the work is csrc/cpu.
#include <climits>
#include <tuple>

#include "cpu/depthwise_train.h"
#include "cpu/passes.h"
#include "cpu/product.h"
#include "train_checks.h"

namespace mobilenet_ext {
namespace {

using torch::headeronly::ScalarType;

void check_matrix(const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 2 && t.is_cpu() && t.scalar_type() == ScalarType::Float && t.is_contiguous(), name,
                  " has shape ", shape_text(t), "; allowed: a contiguous float32 (pixels, channels) on the CPU");
  STD_TORCH_CHECK(t.size(1) <= INT_MAX, name, " has ", t.size(1), " channels; allowed: up to 2^31 - 1");
}

void check_same(const char* name, const Tensor& t, const Tensor& x) {
  STD_TORCH_CHECK(t.dim() == x.dim() && t.scalar_type() == ScalarType::Float && t.is_cpu(), name, " has shape ",
                  shape_text(t), "; allowed: float32 ", shape_text(x));
  for (int64_t d = 0; d < x.dim(); ++d)
    STD_TORCH_CHECK(t.size(d) == x.size(d), name, " has shape ", shape_text(t), "; allowed: ", shape_text(x));
}

Pass pass_over(const Tensor& x) {
  check_matrix("x", x);
  Pass p{x.size(0), static_cast<int>(x.size(1))};
  p.x = floats(x);
  return p;
}

Pass activated(const Tensor& x, const Tensor& scale, const Tensor& shift, double lo, double hi) {
  Pass p = pass_over(x);
  p.scale = vector("scale", scale, p.channels);
  p.shift = vector("shift", shift, p.channels);
  p.lo = static_cast<float>(lo);
  p.hi = static_cast<float>(hi);
  return p;
}

std::tuple<Tensor, Tensor> column_moments(const Tensor& x) {
  const Pass p = pass_over(x);
  Tensor mean = doubles({p.channels}, x), var = doubles({p.channels}, x);
  run_moments(Kernels("moments").train, p, static_cast<double*>(mean.mutable_data_ptr()),
              static_cast<double*>(var.mutable_data_ptr()), training_threads());
  return {mean, var};
}

void affine_act(const Tensor& x, const Tensor& scale, const Tensor& shift, const MaybeTensor& residual, double lo,
                double hi, const Tensor& out) {
  Pass p = activated(x, scale, shift, lo, hi);
  if (residual) {
    check_matrix("residual", *residual);
    check_same("residual", *residual, x);
    p.r = floats(*residual);
  }
  check_matrix("out", out);
  check_same("out", out, x);
  p.y = writable(out);
  run_apply(Kernels("apply").train, p, training_threads());
}

Tensor act_reduce(const Tensor& g, const Tensor& x, const Tensor& scale, const Tensor& shift, const MaybeTensor& center,
                  double lo, double hi) {
  Pass p = activated(x, scale, shift, lo, hi);
  check_matrix("g", g);
  check_same("g", g, x);
  p.g = floats(g);
  p.center = vector("center", center, p.channels);
  Tensor sums = doubles({2, p.channels}, x);
  run_reduce(Kernels("reduce").train, p, static_cast<double*>(sums.mutable_data_ptr()), training_threads());
  return sums;
}

void act_gradient(const Tensor& g, const Tensor& x, const Tensor& scale, const Tensor& shift, double lo, double hi,
                  const Tensor& a, const MaybeTensor& b, const MaybeTensor& c, const MaybeTensor& center,
                  const Tensor& out) {
  Pass p = activated(x, scale, shift, lo, hi);
  check_matrix("g", g);
  check_same("g", g, x);
  p.g = floats(g);
  p.a = vector("a", a, p.channels);
  p.b = vector("b", b, p.channels);
  p.c = vector("c", c, p.channels);
  STD_TORCH_CHECK((p.b == nullptr) == (p.c == nullptr), "b and c must both be given or both be None");
  p.center = vector("center", center, p.channels);
  check_matrix("out", out);
  check_same("out", out, x);
  p.y = writable(out);
  run_gradient(Kernels("gradient").train, p, training_threads());
}

void rows_product(const Tensor& a, const Tensor& b, bool transposed, const MaybeTensor& scale, const MaybeTensor& shift,
                  double lo, double hi, const Tensor& out) {
  check_matrix("a", a);
  check_matrix("b", b);
  check_matrix("out", out);
  Product p{};
  p.pixels = a.size(0);
  p.k = static_cast<int>(a.size(1));
  p.n = static_cast<int>(b.size(transposed ? 0 : 1));
  STD_TORCH_CHECK(b.size(0) <= INT_MAX && b.size(transposed ? 1 : 0) == p.k, "b has shape ", shape_text(b), "; a has ",
                  p.k, " columns");
  STD_TORCH_CHECK(out.size(0) == p.pixels && out.size(1) == p.n, "out has shape ", shape_text(out), "; allowed: (",
                  p.pixels, ", ", p.n, ")");
  STD_TORCH_CHECK(scale.has_value() == shift.has_value(), "scale and shift must both be given or both be None");
  p.transposed = transposed;
  p.scale = vector("scale", scale, p.k);
  p.shift = vector("shift", shift, p.k);
  p.lo = static_cast<float>(lo);
  p.hi = static_cast<float>(hi);
  p.a = floats(a);
  p.b = floats(b);
  p.out = writable(out);
  const Kernels k("product");
  run_product(k.isa, k.train, p, training_threads());
}

void weight_product(const Tensor& wide, const Tensor& narrow, const MaybeTensor& center, bool accumulate,
                    const Tensor& out) {
  check_matrix("wide", wide);
  check_matrix("narrow", narrow);
  check_matrix("out", out);
  STD_TORCH_CHECK(wide.size(0) == narrow.size(0), "narrow has shape ", shape_text(narrow), "; wide has ", wide.size(0),
                  " rows");
  WeightProduct p{};
  p.pixels = wide.size(0);
  p.wide_columns = static_cast<int>(wide.size(1));
  p.narrow_columns = static_cast<int>(narrow.size(1));
  STD_TORCH_CHECK(out.size(0) == p.wide_columns && out.size(1) == p.narrow_columns, "out has shape ", shape_text(out),
                  "; allowed: (", p.wide_columns, ", ", p.narrow_columns, ")");
  p.center = vector("center", center, p.narrow_columns);
  p.accumulate = accumulate;
  p.wide = floats(wide);
  p.narrow = floats(narrow);
  p.out = writable(out);
  run_weight_product(Kernels("weight_product").train, p, training_threads());
}

Prologue prologue_of(const MaybeTensor& scale, const MaybeTensor& shift, double lo, double hi, int channels) {
  STD_TORCH_CHECK(scale.has_value() == shift.has_value(), "scale and shift must both be given or both be None");
  return {vector("scale", scale, channels), vector("shift", shift, channels), static_cast<float>(lo),
          static_cast<float>(hi)};
}

std::tuple<Tensor, Tensor> depthwise_forward_op(const Tensor& x, const Tensor& weight, const MaybeTensor& bias,
                                                const MaybeTensor& scale, const MaybeTensor& shift, double lo,
                                                double hi, const std::vector<int64_t>& geometry, bool moments,
                                                const Tensor& out) {
  const DepthwiseShape s = depthwise_shape(x, weight, geometry);
  const Prologue prologue = prologue_of(scale, shift, lo, hi, s.channels);
  check_size("out", out, s.n, s.channels, s.oh, s.ow);
  const int64_t columns = moments ? s.channels : 0;
  Tensor mean = doubles({columns}, x), var = doubles({columns}, x);
  const Kernels k("depthwise_forward");
  depthwise_forward(k.isa, k.train, s, floats(x), prologue, floats(weight), vector("bias", bias, s.channels),
                    writable(out), moments ? static_cast<double*>(mean.mutable_data_ptr()) : nullptr,
                    moments ? static_cast<double*>(var.mutable_data_ptr()) : nullptr, training_threads());
  return {mean, var};
}

std::tuple<Tensor, Tensor> depthwise_backward_op(const Tensor& g, const MaybeTensor& y,
                                                 const std::vector<Tensor>& coefficients,
                                                 const std::vector<double>& y_bounds, const Tensor& x,
                                                 const Tensor& weight, const MaybeTensor& scale,
                                                 const MaybeTensor& shift, const MaybeTensor& center, double lo,
                                                 double hi, const std::vector<int64_t>& geometry, bool need_weight,
                                                 const MaybeTensor& out) {
  const DepthwiseShape s = depthwise_shape(x, weight, geometry);
  check_size("g", g, s.n, s.channels, s.oh, s.ow);
  if (out) check_size("out", *out, s.n, s.channels, s.h, s.w);
  GradientPrologue gradient;
  if (y) {
    check_image("y", *y);
    check_same("y", *y, g);
    const size_t count = coefficients.size();
    STD_TORCH_CHECK((count == 3 || count == 6) && y_bounds.size() == 2, "coefficients has ", count,
                    " tensors; allowed: scale, shift, a (, b, c, center), with two y_bounds");
    gradient.y = floats(*y);
    gradient.act = {vector("coefficients", coefficients[0], s.channels),
                    vector("coefficients", coefficients[1], s.channels), static_cast<float>(y_bounds[0]),
                    static_cast<float>(y_bounds[1])};
    gradient.a = vector("coefficients", coefficients[2], s.channels);
    if (count == 6) {
      gradient.b = vector("coefficients", coefficients[3], s.channels);
      gradient.c = vector("coefficients", coefficients[4], s.channels);
      gradient.center = vector("coefficients", coefficients[5], s.channels);
    }
  }
  const Prologue prologue = prologue_of(scale, shift, lo, hi, s.channels);
  const bool sums = out && prologue.scale != nullptr;
  Tensor dw = need_weight
                  ? torch::stable::empty({s.channels, 1, s.kh, s.kw}, ScalarType::Float, std::nullopt, x.device())
                  : torch::stable::empty({0}, ScalarType::Float, std::nullopt, x.device());
  Tensor sum = doubles({2, sums ? s.channels : 0}, x);
  const Kernels k("depthwise_backward");
  depthwise_backward(k.isa, k.train, s, floats(g), gradient, floats(x), prologue, vector("center", center, s.channels),
                     floats(weight), out ? writable(*out) : nullptr,
                     need_weight ? static_cast<float*>(dw.mutable_data_ptr()) : nullptr,
                     sums ? static_cast<double*>(sum.mutable_data_ptr()) : nullptr, training_threads());
  return {dw, sum};
}

}  // namespace
}  // namespace mobilenet_ext

STABLE_TORCH_LIBRARY_IMPL(mobilenet_ext, CPU, m) {
  m.impl("column_moments", TORCH_BOX(&mobilenet_ext::column_moments));
  m.impl("affine_act", TORCH_BOX(&mobilenet_ext::affine_act));
  m.impl("act_reduce", TORCH_BOX(&mobilenet_ext::act_reduce));
  m.impl("act_gradient", TORCH_BOX(&mobilenet_ext::act_gradient));
  m.impl("rows_product", TORCH_BOX(&mobilenet_ext::rows_product));
  m.impl("weight_product", TORCH_BOX(&mobilenet_ext::weight_product));
  m.impl("depthwise_forward", TORCH_BOX(&mobilenet_ext::depthwise_forward_op));
  m.impl("depthwise_backward", TORCH_BOX(&mobilenet_ext::depthwise_backward_op));
}
