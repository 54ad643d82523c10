// The ways an image is split between workers, each seen to happen: the same bits at every number of them and every
// place of a batch.
#include "chain_cases.h"

using namespace test;

namespace {

// Enough arithmetic that bands, seams and hidden splits really happen.
void check_splits() {
  struct Wanted {
    ItemDesc item;
    int h, threads;
    TaskKind kind;
  };
  for (const Wanted& w : {Wanted{inverted(32, 192, 32, square(3), true), 28, 2, TaskKind::kSeam},
                          Wanted{inverted(32, 192, 48, square(3, 2), false), 56, 3, TaskKind::kSeam},
                          Wanted{inverted(24, 144, 24, square(5), true), 40, 2, TaskKind::kSeam},
                          Wanted{inverted(96, 576, 96, square(3), true), 7, 2, TaskKind::kHidden},
                          Wanted{inverted(96, 576, 160, square(3, 2), false), 14, 3, TaskKind::kHidden},
                          Wanted{squeezed(24, 72, 40, 24, square(5), false), 56, 2, TaskKind::kSeam},
                          Wanted{squeezed(32, 192, 48, 48, square(5, 2), false), 56, 3, TaskKind::kReduce},
                          Wanted{squeezed(96, 576, 160, 144, square(5), false), 7, 2, TaskKind::kExcite}}) {
    Case c{"split", {}, 1, w.h, w.h, Layout::kNhwc};
    c.chain.items = {w.item};
    const Data d = make_data(c, 7);
    const PackedChain packed = pack(c.chain, d.sources, active_isa());
    const TaskList list = make_tasks(packed, d.input, {nullptr, 0, 1, 1}, w.threads);
    bool found = false;
    for (const Task& t : list.tasks) found = found || t.kind == w.kind;
    CHECK(found);
    const Result alone = run(c, d, active_isa(), 1, serial);
    compare(c, d, alone, active_isa().name);
    for (int threads : {2, 3, 5, 16}) {
      const Result r = run(c, d, active_isa(), threads, threaded);
      CHECK_MESSAGE(std::memcmp(alone.v.data(), r.v.data(), r.v.size() * sizeof(float)) == 0,
                    "split over " + std::to_string(threads));
    }
    // The same image at every place of a batch that leaves a remainder.
    Case batch = c;
    batch.n = 5;
    Data repeated = make_data(batch, 7);
    for (int n = 0; n < 5; ++n)
      std::copy_n(d.storage.data(), d.input.image, repeated.storage.data() + n * repeated.input.image);
    const Result r = run(batch, repeated, active_isa(), 3, threaded);
    for (int n = 0; n < 5; ++n)
      CHECK(std::memcmp(alone.v.data(), r.v.data() + n * alone.v.size(), alone.v.size() * sizeof(float)) == 0);
  }
}

// Items that alone would not be worth a second thread are divided once it runs.
void check_small_items() {
  Case c{"small items", {}, 1, 12, 12, Layout::kNhwc};
  c.chain.items.assign(6, inverted(16, 96, 16, square(3), true));
  const Data d = make_data(c, 7);
  const PackedChain packed = pack(c.chain, d.sources, active_isa());
  const TaskList list = make_tasks(packed, d.input, {nullptr, 0, 1, 1}, 2);
  CHECK(list.workers == 2);
  for (int item = 0; item < 6; ++item) {
    CHECK(useful_workers(list.shapes[item].multiply_adds, 2) == 1);
    const auto of_item = std::count_if(list.tasks.begin(), list.tasks.end(), [&](const Task& t) {
      return t.item == item && (t.kind == TaskKind::kRows || t.kind == TaskKind::kHidden);
    });
    CHECK(of_item == 2);
  }
  const Result alone = run(c, d, active_isa(), 1, serial), two = run(c, d, active_isa(), 2, threaded);
  CHECK(std::memcmp(alone.v.data(), two.v.data(), two.v.size() * sizeof(float)) == 0);
}

}  // namespace

int main() {
  check_splits();
  check_small_items();
  return report();
}
