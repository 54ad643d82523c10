// Plans are pure functions: of the block, the size, the caches and the number of threads.
#include "check.h"
#include "cpu/registry.h"
#include "cpu/tasks.h"
#include "reference.h"

using namespace test;

namespace {

PackedChain block(int in, int hidden, int out, int stride) {
  ChainDesc chain;
  ItemDesc item;
  item.stages = {stage(Role::kExpand, in, hidden, {}), stage(Role::kDepthwise, hidden, hidden, square(3, stride)),
                 stage(Role::kProject, hidden, out, {})};
  chain.items.push_back(item);
  return lay_out(chain, active_isa());
}

}  // namespace

int main() {
  const CacheSizes big{32 << 10, 1 << 20, 32 << 20}, small{32 << 10, 256 << 10, 4 << 20};
  const PackedChain narrow = block(64, 384, 64, 1);
  const ItemShape at14 = shapes(narrow.desc, 14, 14)[0], wide = shapes(narrow.desc, 14, 2000)[0];
  CHECK(plan_item(narrow.items[0], at14, active_isa(), big, 1).column_parts == 1);
  // Rows that fill tiles are taken one at a time, shorter ones together.
  for (const Isa& isa : isas()) {
    const PackedChain packed = lay_out(narrow.desc, *isa.table);
    const auto rows = [&](int size) {
      return plan_item(packed.items[0], shapes(narrow.desc, size, size)[0], *isa.table, big, 1).rows_per_step;
    };
    CHECK(rows(56) == 1 && rows(2) == 2);
    if (isa.table->kinds[0].max_rows == 14) CHECK(rows(14) == 1 && rows(7) == 1 && rows(5) == 2);
    if (isa.table->kinds[0].width == 16 && isa.table->vector == 8) CHECK(rows(14) == 2 && rows(7) == 4);
  }
  const ItemPlan parts = plan_item(narrow.items[0], wide, active_isa(), big, 1),
                 more = plan_item(narrow.items[0], wide, active_isa(), small, 1);
  CHECK(parts.column_parts > 1 && more.column_parts > parts.column_parts && parts.rows_per_step == 1);
  // Few rows per worker: split hidden channels instead.
  CHECK(plan_item(narrow.items[0], at14, active_isa(), big, 2).split == Split::kRows);
  CHECK(plan_item(narrow.items[0], at14, active_isa(), big, 4).split == Split::kHidden);

  // Rows that fill tiles as well, where only the project has a matrix.
  for (const Isa& isa : isas()) {
    ChainDesc chain = block(256, 256, 256, 1).desc;
    std::vector<StageDesc>& stages = chain.items[0].stages;
    const auto rows = [&] {
      const PackedChain packed = lay_out(chain, *isa.table);
      return plan_item(packed.items[0], shapes(chain, 56, 56)[0], *isa.table, big, 1).rows_per_step;
    };
    CHECK(rows() == 1);
    stages.erase(stages.begin());
    CHECK(rows() > 1);
    stages.pop_back();
    CHECK(rows() == 1);
  }

  // One worker too, where the cache holds the depthwise output but not rows enough for whole tiles, or not the weights.
  const PackedChain deep = block(160, 960, 160, 1);
  const ItemShape at7 = shapes(deep.desc, 7, 7)[0];
  for (const Isa& isa : isas()) {
    const PackedChain packed = lay_out(deep.desc, *isa.table);
    const auto split = [&](size_t l2) {
      return plan_item(packed.items[0], at7, *isa.table, {32 << 10, l2, 32 << 20}, 1).split;
    };
    // Too many channels for the ring of a 5x5 kernel: channels in groups, not columns, while the output can be kept.
    ChainDesc wide5 = deep.desc;
    wide5.items[0].stages[1].geometry = square(5);
    const PackedChain packed5 = lay_out(wide5, *isa.table);
    const auto plan5 = [&](int size) {
      return plan_item(packed5.items[0], shapes(wide5, size, size)[0], *isa.table, {32 << 10, 512 << 10, 32 << 20}, 1);
    };
    CHECK(plan5(14).split == Split::kHidden && plan5(14).column_parts == 1 && plan5(14).chunk > 0);
    CHECK(plan5(56).split == Split::kRows && plan5(56).column_parts > 1);
    if (isa.table->kinds[0].max_rows == 14 || (isa.table->kinds[0].width == 16 && isa.table->vector == 8)) {
      CHECK(split(512 << 10) == Split::kHidden && split(64 << 10) == Split::kRows && split(4 << 20) == Split::kRows);
    }
  }

  CHECK(useful_workers(1e9, 16) == 16 && useful_workers(1e5, 16) == 1 && useful_workers(3.4e6, 16) == 3);
  CHECK(useful_parts(1e9, 16) == 16 && useful_parts(1e5, 16) == 1 && useful_parts(3.4e5, 16) == 3);
  const Grid even = choose_grid(49, 5, 2), one = choose_grid(1, 40, 2);
  CHECK(even.m_parts == 2 && even.n_parts == 1 && one.m_parts == 1 && one.n_parts == 2);

  // Panels cover the channels exactly once, and whole blocks where the depthwise stage reads them.
  for (const Isa& isa : isas()) {
    for (int n = 1; n < 200; ++n) {
      int covered = 0;
      for (const Panel& p : choose_panels(*isa.table, n, false)) {
        CHECK(p.first == covered && p.valid <= p.kind->width && p.valid > 0);
        covered += p.valid;
      }
      CHECK(covered == n);
      int blocks = 0;
      for (const Panel& p : choose_panels(*isa.table, n, true)) {
        CHECK(p.first % isa.table->vector == 0 && p.kind->width % isa.table->vector == 0 &&
              p.kind->vector == isa.table->vector);
        blocks += p.kind->width;
      }
      CHECK(blocks == (n + isa.table->vector - 1) / isa.table->vector * isa.table->vector);
    }
  }
  CHECK_THROWS((set_isa_cap("avx1024"), 0), "no instruction set of this build");
  set_isa_cap("scalar");
  CHECK(std::string(active_isa().name) == "scalar");
  set_isa_cap("");
  CHECK(isas()[0].supported ? active_isa().name == isas()[0].table->name : true);
  return report();
}
