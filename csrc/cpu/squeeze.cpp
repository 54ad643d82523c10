// Blocks whose depthwise output is needed whole before the project may begin: split over hidden channels, or with
// squeeze-and-excitation (arXiv 1709.01507) between the two.
#include <algorithm>
#include <cstring>
#include <optional>

#include "from_image.h"
#include "project.h"

namespace mobilenet_ext {
namespace {

int padded_channels(const Job& job) { return block_count(job) * job.chain.header.isa->vector; }

int panel_count(const PackedStage& stage) { return static_cast<int>(stage.panels.size()); }

size_t round_up(size_t floats) { return (floats + 15) / 16 * 16; }

}  // namespace

size_t squeeze_floats(const Job& job) {
  if (!job.item.desc.squeezed()) return 0;
  const size_t channels = padded_channels(job);
  return round_up(2 * channels * job.shape.out_h) + round_up(job.item.find(Role::kReduce)->desc.out) +
         round_up(channels);
}

Squeeze squeeze_at(const Job& job, float* memory) {
  Squeeze s;
  if (!job.item.desc.squeezed() || !memory) return s;
  s.sums = reinterpret_cast<double*>(memory);
  s.reduced = memory + round_up(2 * static_cast<size_t>(padded_channels(job)) * job.shape.out_h);
  s.scale = s.reduced + round_up(job.item.find(Role::kReduce)->desc.out);
  return s;
}

namespace {

// Rows of a few channel blocks, so few that their ring stays in a cache. `again`: in the memory of as many blocks
// before, whose ring's pads are still zero.
void run_hidden_blocks(const Job& job, Blocks blocks, Range rows, const Seam& above, const Seam& below, float* shared,
                       const Squeeze& squeeze, bool again, Arena& arena) {
  const IsaTable& isa = *job.chain.header.isa;
  const int vector = isa.vector, out_w = job.shape.out_w;
  const ptrdiff_t block_floats = static_cast<ptrdiff_t>(job.shape.out_h) * out_w * vector;
  std::optional<HiddenRows> hidden;
  if (!filters_image(job, false)) hidden.emplace(job, 0, out_w, blocks, arena);
  const float** pointers = arena.take<const float*>(job.item.find(Role::kDepthwise)->desc.geometry.kh);
  if (arena.measuring()) return;
  if (hidden) {
    hidden->share(above, below);
    if (!again) hidden->clear_pads();
  }
  int next = first_row_needed(job, rows.begin);
  auto row_at = [&](int y) {
    return shared + blocks.begin * block_floats + static_cast<ptrdiff_t>(y) * out_w * vector;
  };
  for (int y = rows.begin; y < rows.end; y += job.plan.rows_per_step) {
    const int count = std::min(rows.end - y, job.plan.rows_per_step);
    auto out = [&](int r) { return DepthwiseOut{row_at(y + r), vector, block_floats, vector}; };
    if (hidden) {
      filter_rows(job, *hidden, y, count, out_w, &next, pointers, out);
    } else {
      for (int r = 0; r < count; ++r) filter_image_row(job, blocks, y + r, 0, out_w, out(r), pointers);
    }
    for (int r = y; squeeze.sums && r < y + count; ++r) {
      BlocksArgs b{};
      b.in = row_at(r);
      b.in_block = block_floats;
      b.sums = squeeze.sums + static_cast<size_t>(r) * padded_channels(job) + blocks.begin * vector;
      b.blocks = blocks.end - blocks.begin;
      b.pixels = out_w;
      isa.sum_blocks(b);
    }
  }
}

}  // namespace

void run_hidden(const Job& job, Range units, Range rows, const Seam& above, const Seam& below, float* shared,
                const Squeeze& squeeze, Arena& arena) {
  const IsaTable& isa = *job.chain.header.isa;
  const int most = job.plan.hidden_panels > 0 ? job.plan.hidden_panels : std::max(1, units.end - units.begin);
  Arena largest = arena;
  int before = 0;
  for (int unit = units.begin; unit < units.end; unit += most) {
    Arena again = arena;
    const Blocks blocks{block_of_unit(job.item, isa, unit),
                        block_of_unit(job.item, isa, std::min(units.end, unit + most))};
    const int count = blocks.end - blocks.begin;
    run_hidden_blocks(job, blocks, rows, above, below, shared, squeeze, count == before, again);
    before = count;
    if (again.used_floats() > largest.used_floats()) largest = again;
  }
  arena = largest;
}

void run_reduce(const Job& job, const Squeeze& squeeze, Range panels, Arena& arena) {
  const PackedStage& stage = *job.item.find(Role::kReduce);
  const int channels = stage.desc.in, rows = job.shape.out_h;
  const size_t row = padded_channels(job);
  double* totals = arena.take<double>(channels);
  float* mean = arena.take<float>(channels);
  if (arena.measuring()) return;
  // Rows in ascending order: the same sum whoever made them.
  std::memset(totals, 0, sizeof(double) * channels);
  for (int y = 0; y < rows; ++y) {
    for (int c = 0; c < channels; ++c) totals[c] += squeeze.sums[y * row + c];
  }
  const double pixels = static_cast<double>(rows) * job.shape.out_w;
  for (int c = 0; c < channels; ++c) mean[c] = static_cast<float>(totals[c] / pixels);
  run_dense_exact(job.chain, stage, mean, squeeze.reduced, panels);
}

void run_excite(const Job& job, const Squeeze& squeeze, Range panels) {
  const PackedStage& stage = *job.item.find(Role::kExcite);
  run_dense_exact(job.chain, stage, squeeze.reduced, squeeze.scale, panels);
  // Padding channels are scaled too, by a number.
  if (panels.end == panel_count(stage))
    std::fill(squeeze.scale + stage.desc.out, squeeze.scale + padded_channels(job), 0.0f);
}

void run_project(const Job& job, const float* shared, const Squeeze& squeeze, Range pixels, Range panels,
                 Arena& arena) {
  const IsaTable& isa = *job.chain.header.isa;
  const bool squeezed = job.item.desc.squeezed();
  const int most = job.plan.chunk > 0 ? std::min(job.plan.chunk, pixels.end - pixels.begin) : pixels.end - pixels.begin;
  Project project(job, most, arena);
  float* scaled = squeezed ? arena.take<float>(static_cast<size_t>(most) * padded_channels(job)) : nullptr;
  if (arena.measuring()) return;
  const int vector = isa.vector;
  const ptrdiff_t block_floats = static_cast<ptrdiff_t>(job.shape.out_h) * job.shape.out_w * vector;
  for (int first = pixels.begin; first < pixels.end; first += most) {
    const int m = std::min(most, pixels.end - first);
    const float* from = shared + static_cast<ptrdiff_t>(first) * vector;
    if (!squeezed) {
      project.run(from, block_floats, first, m, panels);
      continue;
    }
    BlocksArgs b{};
    b.in = from;
    b.in_block = block_floats;
    b.out = scaled;
    b.out_block = static_cast<ptrdiff_t>(m) * vector;
    b.scale = squeeze.scale;
    b.blocks = block_count(job);
    b.pixels = m;
    isa.scale_blocks(b);
    project.run(scaled, b.out_block, first, m, panels);
  }
}

void run_in_phases(const Job& job, Arena& arena) {
  float* hidden = arena.take<float>(static_cast<size_t>(job.shape.out_h) * job.shape.out_w * padded_channels(job));
  const Squeeze squeeze = squeeze_at(job, arena.take<float>(squeeze_floats(job)));
  Arena largest = arena;
  auto with = [&](auto&& part) {
    Arena again = arena;  // the parts follow one another in the same scratch
    part(again);
    if (again.used_floats() > largest.used_floats()) largest = again;
  };
  with([&](Arena& a) {
    const Range units{0, hidden_units(job.item, *job.chain.header.isa)};
    run_hidden(job, units, {0, job.shape.out_h}, {}, {}, hidden, squeeze, a);
  });
  if (job.item.desc.squeezed()) {
    with([&](Arena& a) { run_reduce(job, squeeze, {0, panel_count(*job.item.find(Role::kReduce))}, a); });
    if (!arena.measuring()) run_excite(job, squeeze, {0, panel_count(*job.item.find(Role::kExcite))});
  }
  with([&](Arena& a) {
    run_project(job, hidden, squeeze, {0, job.shape.out_h * job.shape.out_w},
                {0, panel_count(*job.item.find(Role::kProject))}, a);
  });
  arena = largest;
}

}  // namespace mobilenet_ext
