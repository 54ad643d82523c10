// What the Python module _C takes from the operator library. No torch, no Python.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#define MOBILENET_EXT_API __attribute__((visibility("default")))

namespace mobilenet_ext {
namespace api {

struct IsaInfo {
  std::string name, description, needs;
  bool supported, active;
};
struct KernelInfo {
  std::string op, dtype, isa, tile;
};
struct PlanInfo {
  std::string kernel, kind, split;
  int rows_per_step, column_parts, out_h, out_w;
  int64_t scratch_bytes;
  double multiply_adds;
};
struct SlotInfo {
  std::string isa;
  int64_t packed_bytes, denormals_flushed;
};

MOBILENET_EXT_API std::vector<IsaInfo> isas();
MOBILENET_EXT_API bool isa_is_capped();
MOBILENET_EXT_API void set_isa_cap(const std::string& name);
MOBILENET_EXT_API std::vector<KernelInfo> kernels();
MOBILENET_EXT_API std::map<std::string, bool> cpu_features();
MOBILENET_EXT_API std::map<std::string, int64_t> cache_sizes();
MOBILENET_EXT_API std::map<std::string, int64_t> counters();
MOBILENET_EXT_API void reset_counters();
MOBILENET_EXT_API void set_verbose(bool on);
// How the items of a program run on n images of h x w pixels; raises std::invalid_argument for a bad program.
MOBILENET_EXT_API std::vector<PlanInfo> plan(const std::vector<int64_t>& program, const std::vector<double>& constants,
                                             int h, int w, int threads);
MOBILENET_EXT_API double peak_flops(double seconds);

// The cache of packed weights (csrc/ops/freshness.h).
MOBILENET_EXT_API int64_t new_slot();
MOBILENET_EXT_API void free_slot(int64_t slot);
MOBILENET_EXT_API int64_t slot_count();
MOBILENET_EXT_API int64_t pack_count();
MOBILENET_EXT_API void bump_epoch();
MOBILENET_EXT_API std::optional<SlotInfo> slot_info(int64_t slot);

}  // namespace api
}  // namespace mobilenet_ext
