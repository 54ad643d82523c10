#include "registry.h"

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <stdexcept>

#include "detect.h"

#if defined(__x86_64__)
extern const mobilenet_ext::IsaTable mobilenet_ext_isa_avx512, mobilenet_ext_isa_avx2;
extern const mobilenet_ext::TrainTable mobilenet_ext_train_avx512, mobilenet_ext_train_avx2;
#elif defined(__aarch64__)
extern const mobilenet_ext::IsaTable mobilenet_ext_isa_neon;
extern const mobilenet_ext::TrainTable mobilenet_ext_train_neon;
#endif
extern const mobilenet_ext::IsaTable mobilenet_ext_isa_scalar;
extern const mobilenet_ext::TrainTable mobilenet_ext_train_scalar;

namespace mobilenet_ext {
namespace {

std::atomic<const IsaTable*> active{nullptr};
std::atomic<bool> capped{false};
std::once_flag from_environment;

std::string valid_names() {
  std::string names;
  for (const Isa& isa : isas()) {
    if (isa.supported) names += (names.empty() ? "" : ", ") + std::string(isa.table->name);
  }
  return names;
}

void apply_cap(const std::string& name, const char* source) {
  bool below = name.empty();
  for (const Isa& isa : isas()) {
    if (name == isa.table->name) {
      if (!isa.supported) {
        throw std::invalid_argument(std::string(source) + " is '" + name +
                                    "', which this CPU does not support (it needs " + isa.needs +
                                    "); allowed here: " + valid_names());
      }
      below = true;
    }
    if (below && isa.supported) {
      capped.store(!name.empty(), std::memory_order_release);
      active.store(isa.table, std::memory_order_release);
      return;
    }
  }
  throw std::invalid_argument(std::string(source) + " is '" + name +
                              "', which is no instruction set of this build; allowed here: " + valid_names());
}

}  // namespace

const std::vector<Isa>& isas() {
  static const std::vector<Isa> list = [] {
    const CpuFeatures f = detect_cpu();
    (void)f;
    std::vector<Isa> l;
#if defined(__x86_64__)
    l.push_back({&mobilenet_ext_isa_avx512, &mobilenet_ext_train_avx512, "AVX-512, 16 lanes, 32 registers",
                 "AVX-512 F, BW, DQ and VL, enabled by the operating system", f.avx512});
    l.push_back({&mobilenet_ext_isa_avx2, &mobilenet_ext_train_avx2, "AVX2 with FMA, 8 lanes, 16 registers",
                 "AVX2 and FMA, enabled by the operating system", f.avx2});
#elif defined(__aarch64__)
    l.push_back(
        {&mobilenet_ext_isa_neon, &mobilenet_ext_train_neon, "Advanced SIMD, 4 lanes, 32 registers", "AArch64", true});
#endif
    l.push_back(
        {&mobilenet_ext_isa_scalar, &mobilenet_ext_train_scalar, "plain C++, one lane, for tests", "nothing", true});
    return l;
  }();
  return list;
}

const IsaTable& active_isa() {
  const IsaTable* table = active.load(std::memory_order_acquire);
  if (table) return *table;
  std::call_once(from_environment, [] {
    const char* name = std::getenv("MOBILENET_EXT_ISA");
    apply_cap(name ? name : "", "MOBILENET_EXT_ISA");
  });
  return *active.load(std::memory_order_acquire);
}

const TrainTable& train_table(const IsaTable& isa) {
  for (const Isa& each : isas()) {
    if (each.table == &isa) return *each.train;
  }
  throw std::logic_error("no training kernels for " + std::string(isa.name));
}

bool isa_is_capped() {
  active_isa();
  return capped.load(std::memory_order_acquire);
}

void set_isa_cap(const std::string& name) { apply_cap(name, "the instruction set"); }

}  // namespace mobilenet_ext
