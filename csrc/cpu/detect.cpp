#include "detect.h"

#include <unistd.h>

#include <cstdint>
#include <cstdio>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace mobilenet_ext {

CpuFeatures detect_cpu() {
  CpuFeatures f;
#if defined(__x86_64__)
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return f;
  const bool fma = c & (1u << 12), osxsave = c & (1u << 27);
  if (!osxsave) return f;
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  const bool ymm = (low & 0x06) == 0x06, zmm = (low & 0xe6) == 0xe6;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
  f.avx2 = ymm && fma && (b & (1u << 5));
  const unsigned needed = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);  // F, DQ, BW, VL
  f.avx512 = f.avx2 && zmm && (b & needed) == needed;
  f.avx512_vnni = f.avx512 && (c & (1u << 11));
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) f.avx512_bf16 = f.avx512 && (a & (1u << 5));
#elif defined(__aarch64__)
  f.neon = true;  // part of the ARMv8-A baseline
#endif
  return f;
}

namespace {

size_t from_sysfs(int index) {
  char path[96];
  std::snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", index);
  std::FILE* file = std::fopen(path, "r");
  if (!file) return 0;
  unsigned long size = 0;
  char unit = 0;
  const int n = std::fscanf(file, "%lu%c", &size, &unit);
  std::fclose(file);
  if (n < 1) return 0;
  return unit == 'K' ? size << 10 : unit == 'M' ? size << 20 : size;
}

#if !defined(_SC_LEVEL1_DCACHE_SIZE)
#define _SC_LEVEL1_DCACHE_SIZE -1
#define _SC_LEVEL2_CACHE_SIZE -1
#define _SC_LEVEL3_CACHE_SIZE -1
#endif

// sysfs knows which cores share a cache; sysconf may add several up, and not every system has sysfs.
size_t pick(int name, int index, size_t otherwise) {
  if (const size_t size = from_sysfs(index)) return size;
  const long size = name < 0 ? 0 : sysconf(name);
  return size > 0 ? static_cast<size_t>(size) : otherwise;
}

}  // namespace

namespace {

CacheSizes& sizes() {
  static CacheSizes found = {pick(_SC_LEVEL1_DCACHE_SIZE, 0, 32 << 10), pick(_SC_LEVEL2_CACHE_SIZE, 2, 512 << 10),
                             pick(_SC_LEVEL3_CACHE_SIZE, 3, 4 << 20)};
  return found;
}

}  // namespace

const CacheSizes& cache_sizes() { return sizes(); }

void pretend_cache_sizes(const CacheSizes& caches) { sizes() = caches; }

}  // namespace mobilenet_ext
