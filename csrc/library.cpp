// Every operator schema, and nothing else.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(mobilenet_ext, m) {
  // A chain of blocks on x (N, C, H, W). `program` and `constants` are a list of BlockSpecs as mobilenet_ext/spec.py
  // encodes it; `sources` its tensors; `slot` names the packed weights to reuse while the sources are unchanged.
  m.def("chain(Tensor x, Tensor[] sources, Tensor? slot, int[] program, float[] constants) -> Tensor");
  // The same with the slot's packed weights as they are: the caller has checked that they are fresh.
  m.def("chain_cached(Tensor x, Tensor slot) -> Tensor");
  // The differentiable form of chain: same forward, the backward recomputes.
  m.def("chain_grad(Tensor x, Tensor[] sources, Tensor? slot, int[] program, float[] constants) -> Tensor");
}
