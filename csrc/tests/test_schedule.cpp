// The task list finishes with any number of live workers, in order of phases; each worker begins with its share; an
// exception stops everybody.
#include <array>
#include <stdexcept>
#include <thread>

#include "check.h"
#include "cpu/float_mode.h"
#include "cpu/memory.h"
#include "cpu/schedule.h"

using namespace mobilenet_ext;

namespace {

struct Task {
  int number, phase;
  std::array<int, 2> waits;
};

std::vector<Task> tasks() {
  std::vector<Task> list;
  for (int phase = 0; phase < 20; ++phase) {
    for (int i = 0; i < 7; ++i) list.push_back({static_cast<int>(list.size()), phase, {phase - 1, -1}});
  }
  return list;
}

void run_with(int workers) {
  const auto list = tasks();
  const std::vector<int> sizes(20, 7);
  Schedule schedule(sizes, workers);
  std::array<std::atomic<int>, 20> done{};
  std::atomic<int> early{0};
  auto body = [&](int index) {
    schedule.work(list, index, [&](const Task& t) {
      if (t.phase > 0 && done[t.phase - 1].load() != 7) ++early;
      ++done[t.phase];
    });
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < workers; ++i) threads.emplace_back(body, i);
  body(0);
  for (auto& t : threads) t.join();
  for (auto& d : done) CHECK(d.load() == 7);
  CHECK(early.load() == 0);
}

// One live worker of three: its share first in every phase, then the others', so it finishes alone.
void run_alone(int index) {
  const auto list = tasks();
  const std::vector<int> sizes(20, 7);
  Schedule schedule(sizes, 3);
  std::vector<int> order;
  schedule.work(list, index, [&](const Task& t) { order.push_back(t.number); });
  CHECK(order.size() == list.size());
  constexpr std::array<int, 3> kFirst{0, 2, 4};
  for (size_t i = 0; i < order.size(); ++i) {
    const int phase = static_cast<int>(i) / 7, turn = static_cast<int>(i) % 7;
    CHECK(order[i] == phase * 7 + (kFirst[index] + turn) % 7);
  }
}

void run_failing(int workers) {
  const auto list = tasks();
  const std::vector<int> sizes(20, 7);
  Schedule schedule(sizes, workers);
  std::atomic<int> later{0};
  auto body = [&](int index) {
    schedule.work(list, index, [&](const Task& t) {
      if (t.number == 40) throw std::runtime_error("task 40");
      if (t.phase > 6) ++later;
    });
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < workers; ++i) threads.emplace_back(body, i);
  body(0);
  for (auto& t : threads) t.join();
  CHECK_THROWS((schedule.rethrow(), 0), "task 40");
  CHECK(later.load() == 0);
}

}  // namespace

int main() {
  for (int workers : {1, 2, 3, 16}) {
    for (int i = 0; i < 20; ++i) run_with(workers);
    run_failing(workers);
  }
  for (int index : {0, 1, 2}) run_alone(index);
  // Denormals are flushed inside and only inside.
  volatile float tiny = 1e-39f;
  CHECK(tiny * 0.5f != 0.0f);
  {
    FlushDenormals flush;
    CHECK(tiny * 0.5f == 0.0f);
  }
  CHECK(tiny * 0.5f != 0.0f);
  // Scratch comes back from the pool; an arena measures what it later hands out.
  float* first;
  {
    Scratch s(1000);
    first = s.data();
    CHECK(reinterpret_cast<uintptr_t>(first) % kAlignment == 0);
  }
  {
    Scratch s(900);
    CHECK(s.data() == first);
  }
  Arena measure(nullptr);
  CHECK(measure.take<float>(17) == nullptr && measure.used_floats() == 32);
  return test::report();
}
