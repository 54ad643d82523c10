#include "block.h"

#include <algorithm>
#include <cstring>

namespace mobilenet_ext {
namespace {

int block_count(const Job& job) {
  const int vector = job.chain.header.isa->vector;
  return (job.item.find(Role::kDepthwise)->desc.out + vector - 1) / vector;
}

bool output_is_nhwc(const Job& job) { return job.out.channel == 1; }

// [m][channels] rows at `from` to output pixels [first, first + m), whose channels are strided.
void store_transposed(const Job& job, const float* from, int first, int m, int channels) {
  float* to = job.out.data + first * job.out.pixel;
  for (int c = 0; c < channels; ++c) {
    for (int i = 0; i < m; ++i)
      to[c * job.out.channel + i * job.out.pixel] = from[static_cast<size_t>(i) * channels + c];
  }
}

// The block's input at output pixels [first, first + m) as [m][channels], in place where it lies that way.
const float* residual_pixels(const Job& job, int first, int m, float* buffer, ptrdiff_t* pixel) {
  const int w = job.shape.w, channels = job.item.desc.in();
  if (job.in.channel == 1 && (job.in.row == w * job.in.pixel || first / w == (first + m - 1) / w)) {
    *pixel = job.in.pixel;
    return job.in.data + first / w * job.in.row + first % w * job.in.pixel;
  }
  for (int i = 0; i < m; ++i) {
    const float* x = job.in.data + (first + i) / w * job.in.row + (first + i) % w * job.in.pixel;
    for (int c = 0; c < channels; ++c) buffer[static_cast<size_t>(i) * channels + c] = x[c * job.in.channel];
  }
  *pixel = channels;
  return buffer;
}

// Blocks without a project add their input here; nothing that matters for speed has this form.
void add_residual(const Job& job, int first, int m) {
  const int w = job.shape.w;
  for (int i = first; i < first + m; ++i) {
    const float* x = job.in.data + i / w * job.in.row + i % w * job.in.pixel;
    float* y = job.out.data + i * job.out.pixel;
    for (int c = 0; c < job.item.desc.out(); ++c) y[c * job.out.channel] += x[c * job.in.channel];
  }
}

// The second GEMM: hidden pixels [block][pixel][vector] to output pixels.
class Project {
 public:
  Project(const Job& job, int most_pixels, Arena& arena) : job_(job), stage_(*job.item.find(Role::kProject)) {
    segments_ = arena.take<ptrdiff_t>(block_count(job));
    const size_t floats = static_cast<size_t>(most_pixels) * stage_.desc.out;
    if (job.item.desc.residual) residual_ = arena.take<float>(floats);
    if (!output_is_nhwc(job)) rows_ = arena.take<float>(floats);
  }

  void run(const float* hidden, ptrdiff_t block_floats, int first, int m, Range panels) {
    const int vector = job_.chain.header.isa->vector, blocks = block_count(job_), out = stage_.desc.out;
    for (int b = 0; b < blocks; ++b) segments_[b] = b * block_floats;
    GemmArgs g{};
    g.a = hidden;
    g.a_pixel = vector;
    g.segments = segments_;
    g.segment_count = blocks;
    g.segment_length = vector;
    g.m = m;
    g.lo = stage_.lo;
    g.hi = stage_.hi;
    const float* residual =
        job_.item.desc.residual ? residual_pixels(job_, first, m, residual_, &g.residual_pixel) : nullptr;
    float* c = output_is_nhwc(job_) ? job_.out.data + first * job_.out.pixel : rows_;
    g.c_pixel = output_is_nhwc(job_) ? job_.out.pixel : out;
    for (int p = panels.begin; p < panels.end; ++p) {
      const Panel& panel = stage_.panels[p];
      g.b = job_.chain.at(panel.weights);
      g.bias = job_.chain.at(stage_.bias) + panel.first;
      g.c = c + panel.first;
      g.c_vector = panel.kind->vector;
      g.residual = residual ? residual + panel.first : nullptr;
      g.n_valid = panel.valid;
      panel.kind->gemm(g);
    }
    if (rows_) store_transposed(job_, rows_, first, m, out);
  }

 private:
  const Job& job_;
  const PackedStage& stage_;
  ptrdiff_t* segments_;
  float *residual_ = nullptr, *rows_ = nullptr;
};

// Where a depthwise row goes: pixel and channel block strides, and how many channels of the last block exist there.
struct DepthwiseOut {
  float* data;
  ptrdiff_t pixel, block;
  int last_valid;
};

// One output row of some channel blocks of the depthwise stage from the ring; `out` starts at block
// hidden.blocks().begin.
void depthwise_row(const Job& job, const HiddenRows& hidden, Blocks blocks, int y, int width, const DepthwiseOut& out,
                   const float** rows) {
  const IsaTable& isa = *job.chain.header.isa;
  const PackedStage& stage = *job.item.find(Role::kDepthwise);
  const Geometry& k = stage.desc.geometry;
  const int top = y * k.sh - job.shape.depthwise.top, skipped = blocks.begin - hidden.blocks().begin;
  DepthwiseArgs d{};
  d.ky_begin = k.kh;
  for (int ky = 0; ky < k.kh; ++ky) {
    const int iy = top + ky * k.dh;
    if (iy < 0 || iy >= job.shape.depthwise.h) continue;
    rows[ky] = hidden.row(iy) + skipped * hidden.block_floats();
    d.ky_begin = std::min(d.ky_begin, ky);
    d.ky_end = ky + 1;
  }
  d.rows = rows;
  d.kh = k.kh;
  d.kw = k.kw;
  d.stride = k.sw;
  d.dilation = k.dw;
  d.in_block = hidden.block_floats();
  d.weights = job.chain.at(stage.weights) + static_cast<size_t>(blocks.begin) * k.kh * k.kw * isa.vector;
  d.bias = job.chain.at(stage.bias) + blocks.begin * isa.vector;
  d.out = out.data + skipped * out.block;
  d.out_pixel = out.pixel;
  d.out_block = out.block;
  d.width = width;
  d.blocks = blocks.end - blocks.begin;
  d.last_valid = blocks.end == hidden.blocks().end ? out.last_valid : isa.vector;
  d.lo = stage.lo;
  d.hi = stage.hi;
  isa.depthwise_row(d);
}

// Hidden rows that output row y is the first to need, given those made so far.
int last_row_needed(const Job& job, int y) {
  const Geometry& k = job.item.find(Role::kDepthwise)->desc.geometry;
  return std::min(job.shape.depthwise.h - 1, y * k.sh - job.shape.depthwise.top + (k.kh - 1) * k.dh);
}
int first_row_needed(const Job& job, int y) {
  return std::max(0, y * job.item.find(Role::kDepthwise)->desc.geometry.sh - job.shape.depthwise.top);
}

// Output rows [y, y + count): the hidden rows they still lack, then the depthwise stage; out(r) says where row r goes.
// Expanded rows are made for all channels at once, which keeps the loops long (panel by panel was 3 % slower at stride
// 2); rows that are only copied are used block by block, while they are in the first cache.
template <class Out>
void filter_rows(const Job& job, HiddenRows& hidden, int y, int count, int width, int* next, const float** rows,
                 Out&& out) {
  const int last = last_row_needed(job, y + count - 1);
  const int begin = std::max(*next, first_row_needed(job, y)), end = std::max(begin, last + 1);
  const Blocks all = hidden.blocks();
  const int size = job.item.find(Role::kExpand) ? all.end - all.begin : 1;
  for (int block = all.begin; block < all.end; block += size) {
    const Blocks some{block, block + size};
    hidden.make(begin, end, some);
    for (int r = 0; r < count; ++r) depthwise_row(job, hidden, some, y + r, width, out(r), rows);
  }
  *next = end;
}

}  // namespace

void run_rows(const Job& job, const Region& region, const Seam& above, const Seam& below, Arena& arena) {
  const IsaTable& isa = *job.chain.header.isa;
  const Blocks blocks{0, block_count(job)};
  const int step = job.plan.rows_per_step, width = region.x1 - region.x0, out_w = job.shape.out_w;
  const int kh = job.item.find(Role::kDepthwise)->desc.geometry.kh,
            channels = job.item.find(Role::kDepthwise)->desc.out;
  HiddenRows hidden(job, region.x0, region.x1, blocks, arena);
  const float** rows = arena.take<const float*>(kh);
  std::optional<Project> project;
  if (job.item.find(Role::kProject)) project.emplace(job, step * width, arena);
  const bool direct = !project && output_is_nhwc(job);
  const ptrdiff_t block_floats = static_cast<ptrdiff_t>(step) * width * isa.vector;
  float* filtered = direct ? nullptr : arena.take<float>(blocks.end * static_cast<size_t>(block_floats));
  if (arena.measuring()) return;

  hidden.share(above, below);
  hidden.clear_pads();
  int next = first_row_needed(job, region.y0);
  for (int y = region.y0; y < region.y1; y += step) {
    const int count = std::min(step, region.y1 - y);
    filter_rows(job, hidden, y, count, width, &next, rows, [&](int r) {
      const int first = (y + r) * out_w + region.x0;
      return direct ? DepthwiseOut{job.out.data + first * job.out.pixel, job.out.pixel, isa.vector,
                                   channels - (blocks.end - 1) * isa.vector}
                    : DepthwiseOut{filtered + static_cast<ptrdiff_t>(r) * width * isa.vector, isa.vector, block_floats,
                                   isa.vector};
    });
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
      if (!direct) {
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

namespace {

// All rows of a few channel blocks, so few that their ring stays in the first cache.
void run_hidden_blocks(const Job& job, Blocks blocks, float* shared, Arena& arena) {
  const int vector = job.chain.header.isa->vector, out_w = job.shape.out_w;
  const ptrdiff_t block_floats = static_cast<ptrdiff_t>(job.shape.out_h) * out_w * vector;
  HiddenRows hidden(job, 0, out_w, blocks, arena);
  const float** rows = arena.take<const float*>(job.item.find(Role::kDepthwise)->desc.geometry.kh);
  if (arena.measuring()) return;
  hidden.clear_pads();
  int next = 0;
  for (int y = 0; y < job.shape.out_h; y += job.plan.rows_per_step) {
    const int count = std::min(job.shape.out_h - y, job.plan.rows_per_step);
    filter_rows(job, hidden, y, count, out_w, &next, rows, [&](int r) {
      float* out = shared + blocks.begin * block_floats + static_cast<ptrdiff_t>(y + r) * out_w * vector;
      return DepthwiseOut{out, vector, block_floats, vector};
    });
  }
}

}  // namespace

void run_hidden(const Job& job, Range units, float* shared, Arena& arena) {
  const IsaTable& isa = *job.chain.header.isa;
  const int most = job.plan.hidden_panels > 0 ? job.plan.hidden_panels : std::max(1, units.end - units.begin);
  Arena largest = arena;
  for (int unit = units.begin; unit < units.end; unit += most) {
    Arena again = arena;
    const int end = std::min(units.end, unit + most);
    run_hidden_blocks(job, {block_of_unit(job.item, isa, unit), block_of_unit(job.item, isa, end)}, shared, again);
    if (again.used_floats() > largest.used_floats()) largest = again;
  }
  arena = largest;
}

void run_project(const Job& job, const float* shared, Range pixels, Range panels, Arena& arena) {
  Project project(job, pixels.end - pixels.begin, arena);
  if (arena.measuring()) return;
  const int vector = job.chain.header.isa->vector;
  const ptrdiff_t block_floats = static_cast<ptrdiff_t>(job.shape.out_h) * job.shape.out_w * vector;
  project.run(shared + static_cast<ptrdiff_t>(pixels.begin) * vector, block_floats, pixels.begin,
              pixels.end - pixels.begin, panels);
}

void run_conv(const Job& job, const Region& region, Range panels, Arena& arena) {
  const PackedStage& stage = job.item.stages[0];
  const bool nhwc = output_is_nhwc(job), pointwise = stage.desc.pointwise();
  const int chunk = pointwise ? std::min(job.plan.chunk, region.x1 - region.x0) : region.x1 - region.x0;
  const int out_w = job.shape.out_w, out = stage.desc.out;
  Operand operand(stage.desc, job.shape.expand, job.in, region.x0, pointwise ? region.x0 + chunk : region.x1, 1, arena);
  float* rows = nhwc ? nullptr : arena.take<float>(static_cast<size_t>(chunk) * out);
  if (arena.measuring()) return;
  for (int y = region.y0; y < region.y1; ++y) {
    for (int x = region.x0; x < region.x1; x += chunk) {
      const int m = std::min(chunk, region.x1 - x), first = y * out_w + x;
      GemmArgs g{};
      operand.load(y, 1, x, x + m, g);
      g.m = m;
      g.lo = stage.lo;
      g.hi = stage.hi;
      float* c = nhwc ? job.out.data + first * job.out.pixel : rows;
      g.c_pixel = nhwc ? job.out.pixel : out;
      for (int p = panels.begin; p < panels.end; ++p) {
        const Panel& panel = stage.panels[p];
        g.b = job.chain.at(panel.weights);
        g.bias = job.chain.at(stage.bias) + panel.first;
        g.c = c + panel.first;
        g.c_vector = panel.kind->vector;
        g.n_valid = panel.valid;
        panel.kind->gemm(g);
      }
      if (!nhwc) store_transposed(job, rows, first, m, out);
      if (job.item.desc.residual) add_residual(job, first, m);
    }
  }
}

void run_pool(const Job& job, Range panels, Arena& arena) {
  const PackedStage& stage = job.item.stages[0];
  const int w = job.shape.expand.out_w, h = job.shape.expand.out_h, chunk = std::min(job.plan.chunk, w);
  int width = 0;
  for (const Panel& panel : stage.panels) width = std::max(width, panel.kind->width);
  Operand operand(stage.desc, job.shape.expand, job.in, 0, chunk, 1, arena);
  float* sums = arena.take<float>(width);
  double* totals = arena.take<double>(stage.panels.size() * static_cast<size_t>(width));
  if (arena.measuring()) return;
  std::memset(totals, 0, sizeof(double) * stage.panels.size() * width);
  // One fp32 chain per chunk of pixels, chunks in double: a long sum in fp32 would lose digits.
  for (int y = 0; y < h; ++y) {
    for (int x = 0; x < w; x += chunk) {
      GemmArgs g{};
      g.m = std::min(chunk, w - x);
      operand.load(y, 1, x, x + g.m, g);
      g.lo = stage.lo;
      g.hi = stage.hi;
      g.pool = sums;
      for (int p = panels.begin; p < panels.end; ++p) {
        const Panel& panel = stage.panels[p];
        g.b = job.chain.at(panel.weights);
        g.bias = job.chain.at(stage.bias) + panel.first;
        g.n_valid = panel.valid;
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
  if (job.item.desc.pool) return run_pool(job, {0, static_cast<int>(job.item.stages[0].panels.size())}, arena);
  if (!job.item.find(Role::kDepthwise)) {
    return run_conv(job, {0, h, 0, w}, {0, static_cast<int>(job.item.stages[0].panels.size())}, arena);
  }
  if (job.plan.split == Split::kHidden) {
    const IsaTable& isa = *job.chain.header.isa;
    float* hidden = arena.take<float>(static_cast<size_t>(block_count(job)) * isa.vector * h * w);
    Arena project = arena;
    run_hidden(job, {0, hidden_units(job.item, isa)}, hidden, arena);
    run_project(job, hidden, {0, h * w}, {0, static_cast<int>(job.item.find(Role::kProject)->panels.size())}, project);
    if (project.used_floats() > arena.used_floats()) arena = project;
    return;
  }
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
