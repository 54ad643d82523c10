// Every operator schema, and nothing else.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(mobilenet_ext, m) {
  // A chain of blocks on x (N, C, H, W). `program` and `constants` are a list of BlockSpecs as mobilenet_ext/spec.py
  // encodes it; `sources` its tensors; `slot` names the packed weights to reuse while the sources are unchanged. No
  // sources: those of the slot as they are, which the caller has promised to be fresh.
  m.def("chain(Tensor x, Tensor[] sources, Tensor? slot, int[] program, float[] constants) -> Tensor");
  // The same with the slot's packed weights as they are: the caller has checked that they are fresh.
  m.def("chain_cached(Tensor x, Tensor slot) -> Tensor");
  // The differentiable form of chain: same forward, the backward recomputes.
  m.def("chain_grad(Tensor x, Tensor[] sources, Tensor? slot, int[] program, float[] constants) -> Tensor");

  // Training. Vectors hold one float32 per channel; moments and sums are float64. `lo` and `hi` are the bounds of an
  // activation, infinite for none. Matrices are (pixels, channels), contiguous. `out` is what is written.
  m.def("column_moments(Tensor x) -> (Tensor, Tensor)");  // mean and population variance
  m.def("affine_act(Tensor x, Tensor scale, Tensor shift, Tensor? residual, float lo, float hi, Tensor(a!) out) -> ()");
  m.def("act_reduce(Tensor g, Tensor x, Tensor scale, Tensor shift, Tensor? center, float lo, float hi) -> Tensor");
  m.def(
      "act_gradient(Tensor g, Tensor x, Tensor scale, Tensor shift, float lo, float hi, Tensor a, Tensor? b, Tensor? "
      "c, "
      "Tensor? center, Tensor(a!) out) -> ()");
  // out = a b^T (transposed) or a b, of clamp(a * scale + shift, lo, hi) if these are given.
  m.def(
      "rows_product(Tensor a, Tensor b, bool transposed, Tensor? scale, Tensor? shift, float lo, float hi, Tensor(a!) "
      "out) -> ()");
  // out (+)= wide^T (narrow - center)
  m.def("weight_product(Tensor wide, Tensor narrow, Tensor? center, bool accumulate, Tensor(a!) out) -> ()");
  // The depthwise convolution alone, channels_last result. `geometry`: kernel, stride, dilation, padding top, bottom,
  // left, right. What is not channels_last float32 goes to the general ones, which are implemented in
  // mobilenet_ext/training, as are the blocks below.
  m.def("depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias, int[] geometry) -> Tensor");
  m.def(
      "depthwise_conv2d_backward(Tensor g, Tensor x, Tensor weight, int[] geometry, int[] needs) -> (Tensor, Tensor, "
      "Tensor)");
  m.def("depthwise_conv2d_general(Tensor x, Tensor weight, Tensor? bias, int[] geometry) -> Tensor");
  m.def(
      "depthwise_conv2d_backward_general(Tensor g, Tensor x, Tensor weight, int[] geometry, int[] needs) -> (Tensor, "
      "Tensor, Tensor)");
  // One block. `batch` says of each stage whether its BatchNorm takes the batch's statistics. Gives y, the results of
  // the depthwise and of the last convolution, and the statistics (mean, variance, unbiased variance) of those stages,
  // each empty where the backward makes it again or there is none.
  m.def(
      "train_block(Tensor x, Tensor[] sources, Tensor? slot, int[] program, float[] constants, int[] batch) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  // Gradients of x and of every source, empty where `needs` (x first) says 0.
  m.def(
      "train_block_backward(Tensor g, Tensor x, Tensor v, Tensor p, Tensor stats, Tensor[] sources, int[] program, "
      "float[] constants, int[] batch, int[] needs) -> Tensor[]");
  // The same two for float32 blocks whose dense stages are 1x1, in native code; x, g, v and p are channels_last. About
  // `chunk_bytes` of hidden values exist at a time. `grads` has a tensor of x's and of every source's shape to fill, or
  // an empty one where none is wanted.
  m.def(
      "train_block_forward_native(Tensor x, Tensor[] sources, int[] program, float[] constants, int[] batch, int "
      "chunk_bytes) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "train_block_backward_native(Tensor g, Tensor x, Tensor? v, Tensor? p, Tensor stats, Tensor[] sources, int[] "
      "program, float[] constants, int[] batch, int chunk_bytes, Tensor(a!)[] grads) -> ()");
  // Images are (N, C, H, W), channels_last. `geometry`: kernel, stride, dilation, padding top and left, output size.
  m.def(
      "depthwise_forward(Tensor x, Tensor weight, Tensor? bias, Tensor? scale, Tensor? shift, float lo, float hi, "
      "int[] "
      "geometry, bool moments, Tensor(a!) out) -> (Tensor, Tensor)");
  // `y` with `coefficients` (scale, shift, a, b, c, center; lo and hi in y_bounds) is what turns g into the gradient of
  // the convolution's result; without it g is that gradient. Gives the weight's gradient and the two sums; `out` is dx.
  m.def(
      "depthwise_backward(Tensor g, Tensor? y, Tensor[] coefficients, float[] y_bounds, Tensor x, Tensor weight, "
      "Tensor? "
      "scale, Tensor? shift, Tensor? center, float lo, float hi, int[] geometry, bool need_weight, Tensor(a!)? out) -> "
      "(Tensor, Tensor)");
}
