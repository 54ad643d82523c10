// Independent tasks of one call, claimed in order from one counter. Which worker runs a task changes nothing: each
// writes to places of its own, and what is summed over tasks is summed afterwards, in their order.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>

#include "float_mode.h"
#include "memory.h"

namespace mobilenet_ext {

// Calls `worker` up to `workers` times, concurrently or not: at least once.
using Parallel = std::function<void(int workers, const std::function<void()>& worker)>;

struct Threads {
  int count;
  const Parallel& parallel;
};

// Workers for `elements` floats of memory-bound work: 20 us each at least.
inline int workers_for(int64_t elements, int tasks, const Threads& threads) {
  constexpr int64_t kLeast = 1 << 16;
  return static_cast<int>(
      std::max<int64_t>(1, std::min<int64_t>({threads.count, tasks, (elements + kLeast - 1) / kLeast})));
}

// task(number, scratch of the worker); `scratch_floats` for each worker.
template <class Task>
void for_each_task(int tasks, int workers, size_t scratch_floats, const Threads& threads, const Task& task) {
  if (tasks == 0) return;
  constexpr size_t kLine = kAlignment / sizeof(float);
  scratch_floats = (scratch_floats + kLine - 1) / kLine * kLine;
  Scratch scratch(std::max<size_t>(1, workers * scratch_floats));
  std::atomic<int> next{0}, ids{0};
  const std::function<void()> worker = [&]() noexcept {
    float* own = scratch.data() + ids.fetch_add(1, std::memory_order_relaxed) * scratch_floats;
    FlushDenormals flush;
    for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(i, own);
  };
  if (workers == 1) {
    worker();
  } else {
    threads.parallel(workers, worker);
  }
}

}  // namespace mobilenet_ext
