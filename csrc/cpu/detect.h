// What the CPU and the operating system offer.
#pragma once
#include <cstddef>

namespace mobilenet_ext {

struct CpuFeatures {
  bool avx2 = false;    // AVX2 and FMA, with the operating system saving ymm registers
  bool avx512 = false;  // F, BW, DQ and VL, with the operating system saving zmm and mask registers
  bool avx512_bf16 = false, avx512_vnni = false;
  bool neon = false;
};
CpuFeatures detect_cpu();

// Bytes per core (l3: per socket); a conservative guess where the system does not say.
struct CacheSizes {
  size_t l1d, l2, l3;
};
const CacheSizes& cache_sizes();
// For tests whose plans must not depend on the machine; before anything is planned.
void pretend_cache_sizes(const CacheSizes& caches);

}  // namespace mobilenet_ext
