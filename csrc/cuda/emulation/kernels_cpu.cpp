// The same launchers with the same kernels, run by the emulation.
#include "emulation.h"

#define MNX_UNWRAP(...) __VA_ARGS__
#define MNX_LAUNCH(kernel, gx, gy, threads, shared, stream, ...)                                                \
  ((void)(stream),                                                                                              \
   ::mobilenet_ext::cuda::emulation::run(::mobilenet_ext::cuda::emulation::kKernel<&MNX_UNWRAP kernel>, gx, gy, \
                                         {(threads).x, (threads).y, (threads).z}, shared,                       \
                                         [&] { MNX_UNWRAP kernel(__VA_ARGS__); }),                              \
   0)
#include "../launch.inl"
