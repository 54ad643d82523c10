#include "block.h"

#include <algorithm>
#include <cstring>

#include "from_image.h"
#include "project.h"

namespace mobilenet_ext {
namespace {

constexpr int kMeanChannels = 64;
constexpr int kMeanPixels = 64;  // of one fp32 sum; a constant, since it decides bits

// Blocks without a project add their input here; nothing that matters for speed has this form.
void add_residual(const Job& job, int first, int m) {
  const InView& in = job.residual;
  const int w = job.shape.out_w;
  for (int i = first; i < first + m; ++i) {
    const float* x = in.data + i / w * in.row + i % w * in.pixel;
    float* y = job.out.data + i * job.out.pixel;
    for (int c = 0; c < job.item.desc.out(); ++c) y[c * job.out.channel] += x[c * in.channel];
  }
}

}  // namespace

void run_rows(const Job& job, const Region& region, const Seam& above, const Seam& below, Arena& arena) {
  const IsaTable& isa = *job.chain.header.isa;
  const Blocks blocks{0, block_count(job)};
  const int step = job.plan.rows_per_step, width = region.x1 - region.x0, out_w = job.shape.out_w;
  const int kh = job.item.find(Role::kDepthwise)->desc.geometry.kh,
            channels = job.item.find(Role::kDepthwise)->desc.out;
  const bool has_project = job.item.find(Role::kProject) != nullptr, to_output = !has_project && output_is_nhwc(job),
             from_image = filters_image(job, to_output);
  std::optional<HiddenRows> hidden;
  if (!from_image) hidden.emplace(job, region.x0, region.x1, blocks, arena);
  const float** rows = arena.take<const float*>(kh);
  std::optional<Project> project;
  if (has_project) project.emplace(job, step * width, arena);
  const ptrdiff_t block_floats = static_cast<ptrdiff_t>(step) * width * isa.vector;
  float* filtered = to_output ? nullptr : arena.take<float>(blocks.end * static_cast<size_t>(block_floats));
  if (arena.measuring()) return;

  int next = first_row_needed(job, region.y0);
  if (hidden) {
    hidden->share(above, below);
    hidden->clear_pads();
  }
  // As even as possible: a short last step would have short tiles.
  const int64_t height = region.y1 - region.y0, steps = (height + step - 1) / step;
  for (int64_t i = 0; i < steps; ++i) {
    const int y = region.y0 + static_cast<int>(height * i / steps),
              count = region.y0 + static_cast<int>(height * (i + 1) / steps) - y;
    auto out = [&](int r) {
      const int first = (y + r) * out_w + region.x0;
      return to_output ? DepthwiseOut{job.out.data + first * job.out.pixel, job.out.pixel, isa.vector,
                                      channels - (blocks.end - 1) * isa.vector}
                       : DepthwiseOut{filtered + static_cast<ptrdiff_t>(r) * width * isa.vector, isa.vector,
                                      block_floats, isa.vector};
    };
    if (hidden) {
      filter_rows(job, *hidden, y, count, width, &next, rows, out);
    } else {
      for (int r = 0; r < count; ++r) filter_image_row(job, blocks, y + r, region.x0, region.x1, out(r), rows);
    }
    if (project) {
      const Range all{0, static_cast<int>(job.item.find(Role::kProject)->panels.size())};
      if (width == out_w) {
        project->run(filtered, block_floats, y * out_w, count * width, all);
      } else {
        for (int r = 0; r < count; ++r) {
          project->run(filtered + static_cast<ptrdiff_t>(r) * width * isa.vector, block_floats,
                       (y + r) * out_w + region.x0, width, all);
        }
      }
      continue;
    }
    for (int r = 0; r < count; ++r) {
      const int first = (y + r) * out_w + region.x0;
      if (!to_output) {
        RowArgs s{};
        s.in = filtered + static_cast<ptrdiff_t>(r) * width * isa.vector;
        s.out = job.out.data + first * job.out.pixel;
        s.pixel = job.out.pixel;
        s.channel = job.out.channel;
        s.block = block_floats;
        s.width = width;
        s.channels = channels;
        isa.scatter_row(s);
      }
      if (job.item.desc.residual) add_residual(job, first, width);
    }
  }
}

Range seam_rows(const Job& job, int y) {
  const int begin = first_row_needed(job, y), end = last_row_needed(job, y - 1) + 1;
  return {begin, std::max(begin, end)};
}

size_t seam_row_floats(const Job& job) {
  Arena measure(nullptr);
  return HiddenRows(job, 0, job.shape.out_w, {0, block_count(job)}, measure).row_floats();
}

void run_seam_row(const Job& job, int y, float* row, Arena& arena) {
  HiddenRows hidden(job, 0, job.shape.out_w, {0, block_count(job)}, arena);
  if (arena.measuring()) return;
  hidden.make_into(y, row);
}

void run_conv(const Job& job, const Region& region, Range panels, Arena& arena) {
  const PackedStage& stage = job.item.stages[0];
  const bool nhwc = output_is_nhwc(job), pointwise = stage.desc.pointwise();
  const int chunk = pointwise ? std::min(job.plan.chunk, region.x1 - region.x0) : region.x1 - region.x0;
  const int out_w = job.shape.out_w, out = stage.desc.out;
  Operand operand(stage.desc, job.shape.expand, job.in, region.x0, pointwise ? region.x0 + chunk : region.x1, 1, arena);
  float* rows = nhwc ? nullptr : arena.take<float>(static_cast<size_t>(chunk) * out);
  float* shortcut = job.item.desc.residual ? arena.take<float>(static_cast<size_t>(chunk) * out) : nullptr;
  if (arena.measuring()) return;
  for (int y = region.y0; y < region.y1; ++y) {
    for (int x = region.x0; x < region.x1; x += chunk) {
      const int m = std::min(chunk, region.x1 - x), first = y * out_w + x;
      GemmArgs g{};
      operand.load(y, 1, x, x + m, g);
      g.m = m;
      stage.set_activation(g);
      const float* residual = shortcut ? residual_pixels(job, first, m, shortcut, &g.residual_pixel) : nullptr;
      float* c = nhwc ? job.out.data + first * job.out.pixel : rows;
      g.c_pixel = nhwc ? job.out.pixel : out;
      for (int p = panels.begin; p < panels.end; ++p) {
        const Panel& panel = stage.panels[p];
        g.b = job.chain.at(panel.weights);
        g.bias = job.chain.at(stage.bias) + panel.first;
        g.c = c + panel.first;
        g.c_vector = panel.kind->vector;
        g.n_valid = panel.valid;
        g.residual = residual ? residual + panel.first : nullptr;
        panel.kind->gemm(g);
      }
      if (!nhwc) store_transposed(job, rows, first, m, out);
    }
  }
}

int pool_parts(const PackedItem& item) {
  return item.desc.mean ? (item.desc.in() + kMeanChannels - 1) / kMeanChannels
                        : static_cast<int>(item.stages[0].panels.size());
}

void run_mean(const Job& job, Range parts, Arena& arena) {
  double* totals = arena.take<double>(kMeanChannels);
  float* sums = arena.take<float>(kMeanChannels);
  if (arena.measuring()) return;
  const int h = job.shape.expand.h, w = job.shape.expand.w;
  for (int part = parts.begin; part < parts.end; ++part) {
    const int first = part * kMeanChannels, channels = std::min(kMeanChannels, job.item.desc.in() - first);
    std::fill_n(totals, channels, 0.0);
    std::fill_n(sums, channels, 0.0f);
    // As in run_pool: chunks of pixels in fp32, counted over the whole image, their sums in double.
    int64_t pixel = 0;
    const int64_t pixels = static_cast<int64_t>(h) * w;
    for (int y = 0; y < h; ++y) {
      for (int x = 0; x < w; ++x) {
        const float* in = job.in.data + y * job.in.row + x * job.in.pixel + first * job.in.channel;
        if (job.in.channel == 1) {
          for (int c = 0; c < channels; ++c) sums[c] += in[c];
        } else {
          for (int c = 0; c < channels; ++c) sums[c] += in[c * job.in.channel];
        }
        if (++pixel % kMeanPixels != 0 && pixel != pixels) continue;
        for (int c = 0; c < channels; ++c) totals[c] += static_cast<double>(sums[c]);
        std::fill_n(sums, channels, 0.0f);
      }
    }
    for (int c = 0; c < channels; ++c)
      job.out.data[first + c] = static_cast<float>(totals[c] / static_cast<double>(pixels));
  }
}

void run_pool(const Job& job, Range panels, Arena& arena) {
  if (job.item.desc.mean) return run_mean(job, panels, arena);
  const PackedStage& stage = job.item.stages[0];
  const int w = job.shape.expand.out_w, h = job.shape.expand.out_h, chunk = std::min(job.plan.chunk, w);
  int width = 0;
  for (const Panel& panel : stage.panels) width = std::max(width, panel.kind->width);
  Operand operand(stage.desc, job.shape.expand, job.in, 0, chunk, 1, arena);
  float* sums = arena.take<float>(width);
  float* activated = stage.finish ? arena.take<float>(static_cast<size_t>(chunk) * width) : nullptr;
  double* totals = arena.take<double>(stage.panels.size() * static_cast<size_t>(width));
  if (arena.measuring()) return;
  std::memset(totals, 0, sizeof(double) * stage.panels.size() * width);
  // One fp32 chain per chunk of pixels, chunks in double: a long sum in fp32 would lose digits.
  for (int y = 0; y < h; ++y) {
    for (int x = 0; x < w; x += chunk) {
      GemmArgs g{};
      g.m = std::min(chunk, w - x);
      operand.load(y, 1, x, x + g.m, g);
      stage.set_activation(g);
      g.pool = sums;
      g.c = activated;
      g.c_pixel = width;
      for (int p = panels.begin; p < panels.end; ++p) {
        const Panel& panel = stage.panels[p];
        g.b = job.chain.at(panel.weights);
        g.bias = job.chain.at(stage.bias) + panel.first;
        g.c_vector = panel.kind->vector;
        g.n_valid = panel.kind->width;
        std::memset(sums, 0, sizeof(float) * width);
        panel.kind->gemm(g);
        double* total = totals + static_cast<size_t>(p) * width;
        for (int n = 0; n < panel.valid; ++n) total[n] += static_cast<double>(sums[n]);
      }
    }
  }
  const double pixels = static_cast<double>(h) * w;
  for (int p = panels.begin; p < panels.end; ++p) {
    const Panel& panel = stage.panels[p];
    const double* total = totals + static_cast<size_t>(p) * width;
    for (int n = 0; n < panel.valid; ++n) job.out.data[panel.first + n] = static_cast<float>(total[n] / pixels);
  }
}

void run_item(const Job& job, Arena& arena) {
  const int h = job.shape.out_h, w = job.shape.out_w;
  if (job.item.desc.pool) return run_pool(job, {0, pool_parts(job.item)}, arena);
  if (!job.item.find(Role::kDepthwise)) {
    return run_conv(job, {0, h, 0, w}, {0, static_cast<int>(job.item.stages[0].panels.size())}, arena);
  }
  if (job.item.desc.squeezed() || job.plan.split == Split::kHidden) return run_in_phases(job, arena);
  const int parts = job.plan.column_parts;
  Arena largest = arena;
  for (int i = 0; i < parts; ++i) {
    Arena again = arena;  // the parts follow one another in the same scratch
    const int x0 = static_cast<int>(static_cast<int64_t>(w) * i / parts),
              x1 = static_cast<int>(static_cast<int64_t>(w) * (i + 1) / parts);
    run_rows(job, {0, h, x0, x1}, {}, {}, again);
    if (again.used_floats() > largest.used_floats()) largest = again;
  }
  arena = largest;
}

}  // namespace mobilenet_ext
