// Every kernel, compiled by nvcc, and the C launchers.
#include <cuda_runtime.h>

#include "device.h"

namespace mobilenet_ext {
namespace cuda {
namespace {

template <class... Params, class... Args>
int launch(void (*kernel)(Params...), int64_t grid_x, int grid_y, dim3 threads, size_t shared, void* stream,
           const Args&... args) {
  if (grid_x > 0x7fffffff) return static_cast<int>(cudaErrorInvalidConfiguration);
  if (shared > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) {
      cudaGetLastError();  // otherwise the next launch, of anyone, would report it
      return static_cast<int>(error);
    }
  }
  kernel<<<dim3(static_cast<unsigned>(grid_x), grid_y), threads, shared, static_cast<cudaStream_t>(stream)>>>(args...);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace
}  // namespace cuda
}  // namespace mobilenet_ext

#define MNX_LAUNCH(kernel, gx, gy, threads, shared, stream, ...) \
  launch(&MNX_UNWRAP kernel, gx, gy, dim3((threads).x, (threads).y, (threads).z), shared, stream, __VA_ARGS__)
#define MNX_UNWRAP(...) __VA_ARGS__
#include "launch.inl"

namespace mobilenet_ext {
namespace cuda {

int probe(int device) {
  int before = 0;
  cudaError_t error = cudaGetDevice(&before);
  if (error == cudaSuccess) error = cudaSetDevice(device);
  if (error == cudaSuccess) {
    cudaFuncAttributes attributes;
    error = cudaFuncGetAttributes(&attributes, depthwise_weight_sum_kernel);
    cudaSetDevice(before);
  }
  cudaGetLastError();
  return static_cast<int>(error);
}

}  // namespace cuda
}  // namespace mobilenet_ext
