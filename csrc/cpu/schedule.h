// A list of tasks in phases. Every worker walks the phases in order; in each it claims what is left of its own share,
// then of the others'. A task waits only for earlier phases, and a worker leaves a phase only when all of it is
// claimed, so the earliest unfinished task never waits for an unclaimed one: any number of live workers from one up
// finishes, nested and serial calls included. Tasks of one phase are independent.
//
// Shares rather than first come, first served: the half of an image that a worker has written is mostly what it reads
// in the next phase, and it lies in that core's cache.
#pragma once
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <vector>

namespace mobilenet_ext {

class Schedule {
 public:
  // The list's first `phase_sizes[0]` tasks are phase 0, the next `phase_sizes[1]` phase 1, and so on.
  Schedule(const std::vector<int>& phase_sizes, int workers);

  // The body of worker number `index` of `workers`. `run(task)` runs one; `task.waits` are the phases it waits for, or
  // -1. Never throws: the first exception stops every worker and is kept for rethrow().
  template <class Tasks, class Run>
  void work(const Tasks& tasks, int index, Run&& run) noexcept {
    for (size_t phase = 0, first = 0; phase < sizes_.size(); first += sizes_[phase++]) {
      const int size = sizes_[phase];
      const int own = static_cast<int>(static_cast<int64_t>(size) * index / workers_);
      for (int turn = 0; turn < size; ++turn) {
        const size_t i = first + (own + turn) % size;
        if (!claim(i)) continue;
        const auto& task = tasks[i];
        for (int before : task.waits) {
          if (before >= 0 && !wait(before)) return;
        }
        if (failed_.load(std::memory_order_acquire)) return;
        try {
          run(task);
        } catch (...) {
          std::lock_guard<std::mutex> lock(mutex_);
          if (!error_) error_ = std::current_exception();
          failed_.store(true, std::memory_order_release);
          return;
        }
        left_[phase].fetch_sub(1, std::memory_order_acq_rel);
      }
    }
  }

  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  bool claim(size_t task) {
    return !claimed_[task].load(std::memory_order_relaxed) && !claimed_[task].exchange(true, std::memory_order_relaxed);
  }
  bool wait(int phase);  // false when a task failed

  const std::vector<int>& sizes_;
  int workers_;
  std::atomic<bool> failed_{false};
  std::unique_ptr<std::atomic<int>[]> left_;
  std::unique_ptr<std::atomic<bool>[]> claimed_;
  std::mutex mutex_;
  std::exception_ptr error_;
};

}  // namespace mobilenet_ext
