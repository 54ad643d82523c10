#include "tasks.h"

#include <algorithm>
#include <numeric>

#include "pitch.h"

namespace mobilenet_ext {
namespace {

// The small layers of squeeze-and-excitation read each weight once: a multiply-add there costs as much as several.
constexpr double kLayerWeight = 4;

// A 1x1 convolution over dense pixels does not care about rows: one long row splits and tiles better.
void flatten_pointwise(const ItemDesc& item, bool rows_join, ItemShape& s) {
  const StageDesc& stage = item.stages[0];
  const Geometry& g = stage.geometry;
  if (item.linear || item.stages.size() != 1 || !stage.pointwise() || g.sh != 1 || g.sw != 1 || !rows_join) return;
  const int pixels = s.h * s.w;
  s.h = s.out_h = s.expand.h = s.expand.out_h = 1;
  s.w = s.out_w = s.expand.w = s.expand.out_w = pixels;
}

class Builder {
 public:
  Builder(const PackedChain& chain, const Input& in, const Output& out, TaskList& list)
      : chain_(chain), in_(in), out_(out), list_(list) {}

  void build() {
    const int items = static_cast<int>(chain_.items.size());
    int convs = items;
    while (chain_.items[convs - 1].desc.linear) --convs;
    for (int i = 0; i + 1 < convs; ++i) list_.activation = std::max(list_.activation, round(activation_floats(i)));
    for (int i = convs; i < items; ++i)
      list_.features = std::max(list_.features, round(static_cast<size_t>(in_.n) * chain_.items[i].desc.in()));
    const int whole = list_.workers == 1 ? in_.n : in_.n / list_.workers * list_.workers, split = in_.n - whole;
    list_.slots = split;
    int last_image_phase = -1;
    if (whole > 0) {
      last_image_phase = new_phase();
      for (int n = 0; n < whole; ++n) {
        Task t{TaskKind::kImage};
        t.image = n;
        add(t, last_image_phase);
      }
      for (int i = 0; i < convs; ++i) measure(i, list_.alone[i], [](const Job& job, Arena& a) { run_item(job, a); });
    }
    int previous = -1;
    // Enough parts per image that the split images together keep every worker busy.
    const int parts = split ? list_.workers / std::gcd(list_.workers, split) : 1;
    for (int i = 0; i < convs && split; ++i) previous = add_item(i, whole, split, parts, previous);
    for (int i = convs; i < items; ++i) {
      previous = add_linear(i, last_image_phase, previous);
      last_image_phase = -1;
    }
  }

 private:
  static size_t round(size_t floats) { return (floats + 15) / 16 * 16; }

  // Of item i's result of one image, as dense_out() places it.
  size_t activation_floats(int i) const {
    const ItemShape& s = list_.shapes[i];
    return static_cast<size_t>(pixel_pitch(chain_.items[i].desc.out())) * s.out_h * s.out_w;
  }

  int new_phase() {
    list_.phases.push_back(0);
    return static_cast<int>(list_.phases.size()) - 1;
  }

  void add(Task t, int phase, int wait0 = -1, int wait1 = -1) {
    t.phase = phase;
    t.waits = {wait0, wait1};
    ++list_.phases[phase];
    list_.tasks.push_back(t);
  }

  // A job with the views that decide how much scratch it takes.
  Job job(int i, const ItemPlan& plan) const {
    const ItemDesc& desc = chain_.items[i].desc;
    const ItemShape& s = list_.shapes[i];
    const InView in = i == 0 ? InView{nullptr, in_.row, in_.pixel, in_.channel} : dense_view(nullptr, s.w, desc.in());
    OutView out = dense_out(nullptr, s.out_w, desc.out());
    if (i + 1 == static_cast<int>(chain_.items.size()) && !desc.pool) out.channel = out_.channel;
    return make_job(chain_, list_, i, plan, in, out, in);
  }

  template <class F>
  void measure(int i, const ItemPlan& plan, F&& f) {
    Arena arena(nullptr);
    f(job(i, plan), arena);
    list_.worker_scratch = std::max(list_.worker_scratch, round(arena.used_floats()));
  }

  // One item of all split images; returns its last phase.
  int add_item(int i, int first_image, int images, int parts, int previous) {
    const ItemPlan& plan = list_.shared[i];
    const Job j = job(i, plan);
    const int workers = useful_parts(list_.shapes[i].multiply_adds, parts);
    if (plan.split != Split::kHidden && (workers == 1 || plan.column_parts > 1)) {
      return add_rows(i, j, first_image, images, workers, previous, false);
    }
    switch (plan.split) {
      case Split::kRows:
        return add_rows(i, j, first_image, images, workers, previous, chain_.items[i].find(Role::kExpand) != nullptr);
      case Split::kHidden:
        return add_hidden(i, j, first_image, images, workers, previous);
      case Split::kGrid:
        return add_conv(i, j, first_image, images, workers, previous);
      case Split::kPanels:
        return add_pool(i, j, first_image, images, workers, previous);
    }
    return previous;
  }

  int add_rows(int i, const Job& j, int first_image, int images, int workers, int previous, bool seams) {
    if (!chain_.items[i].find(Role::kDepthwise)) {
      return chain_.items[i].desc.pool ? add_pool(i, j, first_image, images, workers, previous)
                                       : add_conv(i, j, first_image, images, workers, previous);
    }
    const bool squeezed = j.item.desc.squeezed();
    if (squeezed && j.plan.hidden_panels > 0) return add_hidden(i, j, first_image, images, workers, previous);
    const int h = j.shape.out_h, w = j.shape.out_w, columns = j.plan.column_parts;
    const int bands = std::max(1, std::min(workers, h));
    auto edge = [&](int b) { return static_cast<int>(static_cast<int64_t>(h) * b / bands); };
    int ready = previous;
    size_t rows = 0;
    std::vector<size_t> first_row(bands + 1, 0);
    if (seams && bands > 1) {
      ready = new_phase();
      for (int image = 0; image < images; ++image) {
        rows = 0;
        for (int b = 1; b < bands; ++b) {
          first_row[b] = rows;
          const Range seam = seam_rows(j, edge(b));
          for (int y = seam.begin; y < seam.end; ++y) {
            Task t{TaskKind::kSeam};
            t.item = i;
            t.image = first_image + image;
            t.slot = image;
            t.seam_above = {y, y + 1};
            t.above = rows++;
            add(t, ready, previous);
          }
        }
      }
      if (list_.phases[ready] == 0) ready = previous;
      list_.seam = std::max(list_.seam, round(rows * seam_row_floats(j)));
      measure(i, j.plan, [](const Job& job, Arena& a) { run_seam_row(job, 0, nullptr, a); });
    }
    const int phase = new_phase();
    if (squeezed) reserve_hidden(j);
    for (int image = 0; image < images; ++image) {
      for (int b = 0; b < bands; ++b) {
        for (int c = 0; c < columns; ++c) {
          Task t{squeezed ? TaskKind::kHidden : TaskKind::kRows};
          t.panels = {0, hidden_units(j.item, *chain_.header.isa)};
          t.item = i;
          t.image = first_image + image;
          t.slot = image;
          t.region = {edge(b), edge(b + 1), static_cast<int>(static_cast<int64_t>(w) * c / columns),
                      static_cast<int>(static_cast<int64_t>(w) * (c + 1) / columns)};
          if (rows && b > 0) t.seam_above = seam_rows(j, edge(b)), t.above = first_row[b];
          if (rows && b + 1 < bands) t.seam_below = seam_rows(j, edge(b + 1)), t.below = first_row[b + 1];
          add(t, phase, ready);
          if (image > 0) continue;
          measure(i, j.plan, [&](const Job& job, Arena& a) {
            if (squeezed) {
              run_hidden(job, t.panels, {0, 0}, {}, {}, nullptr, {}, a);
            } else {
              run_rows(job, t.region, {}, {}, a);
            }
          });
        }
      }
    }
    return squeezed ? add_squeeze(i, j, first_image, images, workers, phase) : phase;
  }

  void reserve_hidden(const Job& j) {
    const IsaTable& isa = *chain_.header.isa;
    const size_t channels = static_cast<size_t>(block_of_unit(j.item, isa, hidden_units(j.item, isa))) * isa.vector;
    list_.hidden = std::max(list_.hidden, round(channels * j.shape.out_h * j.shape.out_w));
    list_.squeeze = std::max(list_.squeeze, squeeze_floats(j));
  }

  int add_hidden(int i, const Job& j, int first_image, int images, int workers, int previous) {
    const int units = hidden_units(j.item, *chain_.header.isa), parts = std::min(workers, units);
    const int phase = new_phase();
    reserve_hidden(j);
    for (int image = 0; image < images; ++image) {
      for (int p = 0; p < parts; ++p) {
        Task t{TaskKind::kHidden};
        t.item = i;
        t.image = first_image + image;
        t.slot = image;
        t.panels = {units * p / parts, units * (p + 1) / parts};
        t.region = {0, j.shape.out_h, 0, j.shape.out_w};
        add(t, phase, previous);
        if (image > 0) continue;
        measure(i, j.plan,
                [&](const Job& job, Arena& a) { run_hidden(job, t.panels, {0, 0}, {}, {}, nullptr, {}, a); });
      }
    }
    return add_squeeze(i, j, first_image, images, workers, phase);
  }

  // After the depthwise output of whole images: the two layers of squeeze-and-excitation, where there are, and the
  // project.
  int add_squeeze(int i, const Job& j, int first_image, int images, int workers, int previous) {
    if (j.item.desc.squeezed()) {
      previous = add_layer(TaskKind::kReduce, i, j, first_image, images, workers, previous);
      previous = add_layer(TaskKind::kExcite, i, j, first_image, images, workers, previous);
    }
    return add_grid(TaskKind::kProject, i, j, j.shape.out_h * j.shape.out_w, j.item.find(Role::kProject)->panels.size(),
                    first_image, images, workers, previous);
  }

  int add_layer(TaskKind kind, int i, const Job& j, int first_image, int images, int workers, int previous) {
    const PackedStage& stage = *j.item.find(kind == TaskKind::kReduce ? Role::kReduce : Role::kExcite);
    const int n = static_cast<int>(stage.panels.size()), phase = new_phase();
    const double work = static_cast<double>(stage.desc.in) * stage.desc.out * kLayerWeight;
    const int parts = std::min(n, useful_parts(work, workers));
    for (int image = 0; image < images; ++image) {
      for (int p = 0; p < parts; ++p) {
        Task t{kind};
        t.item = i;
        t.image = first_image + image;
        t.slot = image;
        t.panels = {n * p / parts, n * (p + 1) / parts};
        add(t, phase, previous);
      }
    }
    if (kind == TaskKind::kReduce) {
      measure(i, j.plan, [n](const Job& job, Arena& a) { run_reduce(job, {}, {0, n}, a); });
    }
    return phase;
  }

  int add_conv(int i, const Job& j, int first_image, int images, int workers, int previous) {
    const bool one_row = j.shape.out_h == 1;
    return add_grid(TaskKind::kConv, i, j, one_row ? j.shape.out_w : j.shape.out_h,
                    chain_.items[i].stages[0].panels.size(), first_image, images, workers, previous);
  }

  // Pixels (or rows) x panels. Strided outputs are written whole pixels at a time.
  int add_grid(TaskKind kind, int i, const Job& j, int m, size_t panels, int first_image, int images, int workers,
               int previous) {
    const bool whole_pixels = j.out.channel != 1;
    const Grid grid = choose_grid(m, whole_pixels ? 1 : static_cast<int>(panels), workers);
    const int phase = new_phase(), n = static_cast<int>(panels);
    for (int image = 0; image < images; ++image) {
      for (int a = 0; a < grid.m_parts; ++a) {
        for (int b = 0; b < grid.n_parts; ++b) {
          Task t{kind};
          t.item = i;
          t.image = first_image + image;
          t.slot = image;
          t.pixels = {static_cast<int>(static_cast<int64_t>(m) * a / grid.m_parts),
                      static_cast<int>(static_cast<int64_t>(m) * (a + 1) / grid.m_parts)};
          t.panels = {n * b / grid.n_parts, n * (b + 1) / grid.n_parts};
          t.region = j.shape.out_h == 1 ? Region{0, 1, t.pixels.begin, t.pixels.end}
                                        : Region{t.pixels.begin, t.pixels.end, 0, j.shape.out_w};
          add(t, phase, previous);
          if (image > 0) continue;
          measure(i, j.plan, [&](const Job& job, Arena& arena) {
            if (kind == TaskKind::kConv) {
              run_conv(job, t.region, t.panels, arena);
            } else {
              run_project(job, nullptr, {}, t.pixels, t.panels, arena);
            }
          });
        }
      }
    }
    return phase;
  }

  int add_pool(int i, const Job& j, int first_image, int images, int workers, int previous) {
    const int n = pool_parts(chain_.items[i]), parts = std::min(workers, n), phase = new_phase();
    for (int image = 0; image < images; ++image) {
      for (int p = 0; p < parts; ++p) {
        Task t{TaskKind::kPool};
        t.item = i;
        t.image = first_image + image;
        t.slot = image;
        t.panels = {n * p / parts, n * (p + 1) / parts};
        add(t, phase, previous);
      }
    }
    measure(i, j.plan, [n](const Job& job, Arena& a) { run_pool(job, {0, n}, a); });
    return phase;
  }

  // All images at once: the weights are read once for the whole batch.
  int add_linear(int i, int wait0, int wait1) {
    const PackedStage& stage = chain_.items[i].stages[0];
    const int n = static_cast<int>(stage.panels.size());
    const int parts = std::min(n, useful_parts(list_.shapes[i].multiply_adds * in_.n, list_.workers));
    const int phase = new_phase();
    for (int p = 0; p < parts; ++p) {
      Task t{TaskKind::kLinear};
      t.item = i;
      t.panels = {n * p / parts, n * (p + 1) / parts};
      add(t, phase, wait0, wait1);
    }
    return phase;
  }

  const PackedChain& chain_;
  const Input& in_;
  const Output& out_;
  TaskList& list_;
};

}  // namespace

InView dense_view(const float* data, int w, int channels) {
  return {data, w * pixel_pitch(channels), pixel_pitch(channels), 1};
}
OutView dense_out(float* data, int w, int channels) {
  return {data, w * pixel_pitch(channels), pixel_pitch(channels), 1};
}

Job make_job(const PackedChain& chain, const TaskList& list, int item, const ItemPlan& plan, const InView& in,
             const OutView& out, const InView& residual) {
  return Job{chain, chain.items[item], list.shapes[item], plan, in, out, residual};
}

TaskList make_tasks(const PackedChain& chain, const Input& in, const Output& out, int threads) {
  TaskList list;
  list.shapes = shapes(chain.desc, in.h, in.w);
  double work = 0;
  for (const ItemShape& s : list.shapes) work += s.multiply_adds;
  list.workers = useful_workers(work * in.n, threads);
  const IsaTable& isa = *chain.header.isa;
  for (size_t i = 0; i < chain.items.size(); ++i) {
    // What is read besides the item's own input must be one row too.
    const bool reads_input = i == 0 || (i == 1 && chain.items[i].desc.residual_back),
               rows_join = !reads_input || in.row == in.w * in.pixel;
    flatten_pointwise(chain.items[i].desc, rows_join, list.shapes[i]);
    list.alone.push_back(plan_item(chain.items[i], list.shapes[i], isa, cache_sizes(), 1));
    list.shared.push_back(plan_item(chain.items[i], list.shapes[i], isa, cache_sizes(), list.workers));
  }
  Builder(chain, in, out, list).build();
  return list;
}

std::shared_ptr<const TaskList> TaskCache::get(const PackedChain& chain, const Input& in, const Output& out,
                                               int threads) {
  const TaskKey key{in.n, in.h, in.w, threads, in.channel, in.row, in.pixel, out.channel};
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < lists_.size(); ++i) {
      if (lists_[i].first == key) {
        std::rotate(lists_.begin(), lists_.begin() + static_cast<ptrdiff_t>(i),
                    lists_.begin() + static_cast<ptrdiff_t>(i) + 1);
        return lists_[0].second;
      }
    }
  }
  auto list = std::make_shared<const TaskList>(make_tasks(chain, in, out, threads));
  std::lock_guard<std::mutex> lock(mutex_);
  lists_.insert(lists_.begin(), {key, list});
  if (lists_.size() > kKept) lists_.pop_back();
  return list;
}

}  // namespace mobilenet_ext
