#include "schedule.h"

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
