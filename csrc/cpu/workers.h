// Independent tasks of one call. Each worker begins with a share of its own, the same one in every call of as many
// tasks: what one pass over a tensor wrote lies near the core that reads it in the next, which counts most where cores
// do not share their last cache. Who has finished helps with the other shares. Which worker runs a task changes nothing
// else: each writes to places of its own, and what is summed over tasks is summed afterwards, in their order.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

#include "float_mode.h"
#include "memory.h"

namespace mobilenet_ext {

// Calls `worker` up to `workers` times, concurrently or not: at least once, with different indices below `workers`. An
// index tends to be run by the same thread in every call.
using Worker = std::function<void(int index)>;
using Parallel = std::function<void(int workers, const Worker& worker)>;

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
  struct alignas(kAlignment) Share {
    std::atomic<int> next;
    int end;
  };
  const std::unique_ptr<Share[]> shares(new Share[workers]);
  for (int i = 0; i < workers; ++i) {
    shares[i].next.store(static_cast<int>(static_cast<int64_t>(tasks) * i / workers), std::memory_order_relaxed);
    shares[i].end = static_cast<int>(static_cast<int64_t>(tasks) * (i + 1) / workers);
  }
  const Worker worker = [&](int index) noexcept {
    float* own = scratch.data() + index * scratch_floats;
    FlushDenormals flush;
    for (int turn = 0; turn < workers; ++turn) {
      Share& share = shares[(index + turn) % workers];
      for (int i; (i = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;) task(i, own);
    }
  };
  if (workers == 1) {
    worker(0);
  } else {
    threads.parallel(workers, worker);
  }
}

}  // namespace mobilenet_ext
