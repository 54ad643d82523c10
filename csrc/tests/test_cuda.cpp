// Every CUDA kernel, run on the CPU by the emulation, with the threads forwards, backwards and shuffled. Which kernels
// there are is what the launchers instantiate: one that no case runs in some order is a failure.
#include "cuda_cases.h"

namespace {

using namespace mobilenet_ext::cuda;  // NOLINT

void test_conversions() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float v = half_to_float(static_cast<uint16_t>(bits));
    if (std::isnan(v))
      CHECK(std::isnan(half_to_float(float_to_half(v))));
    else
      CHECK(float_to_half(v) == bits);
  }
  CHECK(float_to_half(65520.f) == 0x7c00 && float_to_half(65519.f) == 0x7bff);
  CHECK(float_to_half(1.f + 0.00048828125f) == 0x3c00 && float_to_half(1.f + 3 * 0.00048828125f) == 0x3c02);
  CHECK(to_float(from_float<BFloat16>(1.f + 0.00390625f)) == 1.f);
  CHECK(std::isnan(to_float(from_float<BFloat16>(NAN))));
}

void test_every_kernel_ran() {
  const char* const orders[] = {"forwards", "backwards", "shuffled"};
  CHECK(!emulation::kernels().empty());
  for (const emulation::Kernel& kernel : emulation::kernels())
    for (int order = 0; order < 3; ++order)
      CHECK_MESSAGE(kernel.runs[order] > 0, kernel.name + " never ran with its threads " + orders[order]);
}

// Each provokes one fault; the emulation must end the program. Reached only by name.
int provoke(const std::string& fault) {
  std::vector<float> data(64);
  emulation::clear_buffers();
  emulation::add_buffer("data", data.data(), data.size() * sizeof(float));
  emulation::run(-1, 1, 1, {64, 1, 1}, 256, [&] {
    if (fault == "out_of_bounds") load<1>(data.data() + threadIdx.x + 1);
    if (fault == "misaligned") load<4>(data.data() + 1);
    if (fault == "divergence" && threadIdx.x < 40) __syncthreads();
    if (fault == "shared") emulation::shared_memory()[threadIdx.x + 193] = 1;
  });
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  const std::string argument = count > 1 ? arguments[1] : "";
  if (argument == "kernels") {  // the CI stage gpu compares them with those that nvcc compiled
    for (const emulation::Kernel& kernel : emulation::kernels()) std::printf("%s\n", kernel.name.c_str());
    return 0;
  }
  if (!argument.empty() && argument != "unrun") return provoke(argument);
  if (argument.empty()) {
    test_conversions();
    test::depthwise_cases();
    test::block_cases();
  }
  test_every_kernel_ran();
  return test::report();
}
