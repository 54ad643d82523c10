#include "run.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "float_mode.h"
#include "registry.h"
#include "schedule.h"

namespace mobilenet_ext {
namespace {

std::mutex counter_mutex;
std::map<std::string, int64_t> counts;

bool verbose_from_environment() {
  const char* v = std::getenv("MOBILENET_EXT_VERBOSE");
  return v && *v && std::strcmp(v, "0") != 0;
}
std::atomic<bool> verbose{verbose_from_environment()};

void count(const PackedChain& chain) {
  std::lock_guard<std::mutex> lock(counter_mutex);
  for (const PackedItem& item : chain.items) {
    const std::string kind = item.desc.kind();
    ++counts[kind];
    ++counts[kind + "." + chain.header.isa->name];
  }
}

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

class Runner {
 public:
  Runner(const PackedChain& chain, const TaskList& list, const Input& in, const Output& out, float* scratch,
         std::atomic<int64_t>* times)
      : chain_(chain), list_(list), in_(in), out_(out), scratch_(scratch), times_(times) {
    shared_ = scratch + list.workers * (2 * list.activation + list.worker_scratch);
    features_ = shared_ + list.slots * (2 * list.activation + list.seam + list.hidden);
  }

  void run(const Task& t, int worker) {
    float* activations = scratch_ + worker * (2 * list_.activation + list_.worker_scratch);
    Arena arena(activations + 2 * list_.activation);
    if (t.kind == TaskKind::kImage) return run_image(t.image, activations, arena);
    const int64_t start = times_ ? now_ns() : 0;
    if (t.kind == TaskKind::kLinear) {
      run_linear(t);
    } else {
      run_part(t, arena);
    }
    if (times_) times_[t.item] += now_ns() - start;
  }

 private:
  int items() const { return static_cast<int>(chain_.items.size()); }

  InView input(int n) const { return {in_.data + n * in_.image, in_.row, in_.pixel, in_.channel}; }

  // Where item i of image n writes, given the two activation buffers of whoever runs it.
  OutView output(int i, int n, float* buffers) const {
    const ItemDesc& desc = chain_.items[i].desc;
    if (desc.pool && i + 1 < items()) return {features_ + static_cast<size_t>(n) * desc.out(), 0, 0, 1};
    if (i + 1 == items()) return {out_.data + n * out_.image, 0, out_.pixel, out_.channel};
    return dense_out(buffers + (i & 1) * list_.activation, list_.shapes[i].out_w, desc.out());
  }
  InView input_of(int i, int n, const float* buffers) const {
    if (i == 0) return input(n);
    return dense_view(buffers + ((i - 1) & 1) * list_.activation, list_.shapes[i].w, chain_.items[i].desc.in());
  }

  void run_image(int n, float* buffers, Arena& arena) {
    for (int i = 0; i < items() && !chain_.items[i].desc.linear; ++i) {
      const int64_t start = times_ ? now_ns() : 0;
      Arena again = arena;
      run_item(make_job(chain_, list_, i, list_.alone[i], input_of(i, n, buffers), output(i, n, buffers)), again);
      if (times_) times_[i] += now_ns() - start;
    }
  }

  void run_part(const Task& t, Arena& arena) {
    float* buffers = shared_ + t.slot * (2 * list_.activation + list_.seam + list_.hidden);
    float* seam = buffers + 2 * list_.activation;
    float* hidden = seam + list_.seam;
    const Job job = make_job(chain_, list_, t.item, list_.shared[t.item], input_of(t.item, t.image, buffers),
                             output(t.item, t.image, buffers));
    switch (t.kind) {
      case TaskKind::kRows: {
        const bool any = t.seam_above.end > t.seam_above.begin || t.seam_below.end > t.seam_below.begin;
        const size_t row = any ? seam_row_floats(job) : 0;
        return run_rows(job, t.region, {t.seam_above.begin, t.seam_above.end, seam + t.above * row},
                        {t.seam_below.begin, t.seam_below.end, seam + t.below * row}, arena);
      }
      case TaskKind::kSeam:
        return run_seam_row(job, t.seam_above.begin, seam + t.above * seam_row_floats(job), arena);
      case TaskKind::kHidden:
        return run_hidden(job, {t.panels.begin, t.panels.end}, hidden, arena);
      case TaskKind::kProject:
        return run_project(job, hidden, t.pixels, t.panels, arena);
      case TaskKind::kConv:
        return run_conv(job, t.region, t.panels, arena);
      case TaskKind::kPool:
        return run_pool(job, t.panels, arena);
      case TaskKind::kImage:
      case TaskKind::kLinear:
        return;
    }
  }

  void run_linear(const Task& t) {
    const PackedStage& stage = chain_.items[t.item].stages[0];
    const IsaTable& isa = *chain_.header.isa;
    const int in = stage.desc.in;
    int p = t.panels.begin;
    if (in_.n == 1) {
      // One image: all panels of the main kind in one call, several chains at a time.
      int end = p;
      while (end < t.panels.end && stage.panels[end].kind == &isa.kinds[0]) ++end;
      if (end > p) {
        GemvArgs v{};
        v.a = features_;
        v.b = chain_.at(stage.panels[p].weights);
        v.b_panel = end > p + 1 ? static_cast<ptrdiff_t>(stage.panels[p + 1].weights - stage.panels[p].weights) : 0;
        v.bias = chain_.at(stage.bias) + stage.panels[p].first;
        v.c = out_.data + stage.panels[p].first;
        v.k = in;
        v.panels = end - p;
        v.n_valid = stage.panels[end - 1].valid;
        v.lo = stage.lo;
        v.hi = stage.hi;
        isa.gemv(v);
        p = end;
      }
    }
    const ptrdiff_t segment = 0;
    for (; p < t.panels.end; ++p) {
      const Panel& panel = stage.panels[p];
      GemmArgs g{};
      g.a = features_;
      g.a_pixel = in;
      g.segments = &segment;
      g.segment_count = 1;
      g.segment_length = in;
      g.b = chain_.at(panel.weights);
      g.bias = chain_.at(stage.bias) + panel.first;
      g.c = out_.data + panel.first;
      g.c_pixel = out_.image;
      g.c_vector = panel.kind->vector;
      g.m = in_.n;
      g.n_valid = panel.valid;
      g.lo = stage.lo;
      g.hi = stage.hi;
      panel.kind->gemm(g);
    }
  }

  const PackedChain& chain_;
  const TaskList& list_;
  const Input& in_;
  const Output& out_;
  float* scratch_;
  float *shared_, *features_;
  std::atomic<int64_t>* times_;
};

void print(const PackedChain& chain, const TaskList& list, const Input& in, const std::atomic<int64_t>* times) {
  for (size_t i = 0; i < chain.items.size(); ++i) {
    const ItemDesc& desc = chain.items[i].desc;
    const ItemShape& s = list.shapes[i];
    std::fprintf(stderr, "mobilenet_ext,%s,%s,%s,fp32,n%d c%d %dx%d -> c%d %dx%d,split %s,rows %d,workers %d,%.1f us\n",
                 desc.kind(), kernel_name(desc).c_str(), chain.header.isa->name, in.n, desc.in(), s.h, s.w, desc.out(),
                 s.out_h, s.out_w, split_name(list.shared[i].split), list.shared[i].rows_per_step, list.workers,
                 times[i].load() / 1e3);
  }
}

}  // namespace

void run_chain(const PackedChain& chain, TaskCache& cache, const Input& in, const Output& out, int threads,
               const Parallel& parallel) {
  const std::shared_ptr<const TaskList> list = cache.get(chain, in, out, threads);
  count(chain);
  if (list->tasks.empty()) return;
  Scratch scratch(list->scratch_floats());
  const bool loud = verbose.load(std::memory_order_relaxed);
  std::unique_ptr<std::atomic<int64_t>[]> times(loud ? new std::atomic<int64_t>[chain.items.size()]() : nullptr);
  Runner runner(chain, *list, in, out, scratch.data(), times.get());
  Schedule schedule(list->phases);
  std::atomic<int> workers{0};
  const std::function<void()> worker = [&] {
    const int id = workers.fetch_add(1, std::memory_order_relaxed);
    FlushDenormals flush;
    schedule.work(list->tasks, [&](const Task& t) { runner.run(t, id); });
  };
  if (list->workers == 1) {
    worker();
  } else {
    parallel(list->workers, worker);
  }
  schedule.rethrow();
  if (loud) print(chain, *list, in, times.get());
}

std::map<std::string, int64_t> counters() {
  std::lock_guard<std::mutex> lock(counter_mutex);
  return counts;
}

void reset_counters() {
  std::lock_guard<std::mutex> lock(counter_mutex);
  counts.clear();
}

void count_run(const char* kind, const char* isa) {
  std::lock_guard<std::mutex> lock(counter_mutex);
  ++counts[kind];
  ++counts[std::string(kind) + "." + isa];
}

void set_verbose(bool on) { verbose.store(on); }

}  // namespace mobilenet_ext
