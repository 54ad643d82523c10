// A numbered task list. Workers claim numbers in order; a task waits only for phases whose tasks all have smaller
// numbers, so any number of live workers from one up finishes, nested and serial calls included. Tasks of one phase are
// independent.
#pragma once
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <vector>

namespace mobilenet_ext {

class Schedule {
 public:
  // `phase_sizes[p]` tasks belong to phase p.
  explicit Schedule(const std::vector<int>& phase_sizes) : left_(new std::atomic<int>[phase_sizes.size()]) {
    for (size_t i = 0; i < phase_sizes.size(); ++i) left_[i].store(phase_sizes[i], std::memory_order_relaxed);
  }

  // The body of every worker. `task(i)` runs number i; `waits(i)` and `phase(i)` tell its place. Never throws: the
  // first exception stops every worker and is kept for rethrow().
  template <class Tasks, class Run>
  void work(const Tasks& tasks, Run&& run) noexcept {
    const int count = static_cast<int>(tasks.size());
    for (;;) {
      const int i = next_.fetch_add(1, std::memory_order_relaxed);
      if (i >= count) return;
      for (int phase : tasks[i].waits) {
        if (phase >= 0 && !wait(phase)) return;
      }
      if (failed_.load(std::memory_order_acquire)) return;
      try {
        run(tasks[i]);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!error_) error_ = std::current_exception();
        failed_.store(true, std::memory_order_release);
        return;
      }
      left_[tasks[i].phase].fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  bool wait(int phase);  // false when a task failed

  std::atomic<int> next_{0};
  std::atomic<bool> failed_{false};
  std::unique_ptr<std::atomic<int>[]> left_;
  std::mutex mutex_;
  std::exception_ptr error_;
};

}  // namespace mobilenet_ext
