#include "schedule.h"

#include <numeric>
#include <thread>

namespace mobilenet_ext {
namespace {

// Spins of about 20 us before the core is offered to others: phases are shorter than that when every worker has a core.
constexpr int kSpins = 2000;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

}  // namespace

Schedule::Schedule(const std::vector<int>& phase_sizes, int workers)
    : sizes_(phase_sizes),
      workers_(workers),
      left_(new std::atomic<int>[phase_sizes.size()]),
      claimed_(new std::atomic<bool>[std::accumulate(phase_sizes.begin(), phase_sizes.end(), size_t{0})]()) {
  for (size_t i = 0; i < phase_sizes.size(); ++i) left_[i].store(phase_sizes[i], std::memory_order_relaxed);
}

bool Schedule::wait(int phase) {
  for (int spins = 0; left_[phase].load(std::memory_order_acquire) > 0; ++spins) {
    if (failed_.load(std::memory_order_acquire)) return false;
    if (spins < kSpins) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
  return true;
}

}  // namespace mobilenet_ext
