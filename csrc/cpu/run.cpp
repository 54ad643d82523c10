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
    features_ = shared_ + list.slots * list.slot_floats();
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

  InView residual_of(int i, int n, const float* buffers) const {
    if (!chain_.items[i].desc.residual_back) return input_of(i, n, buffers);
    // Perhaps the very memory that item i writes: every element is read before it is written.
    if (i == 1) return input(n);
    return dense_view(buffers + (i & 1) * list_.activation, list_.shapes[i].out_w, chain_.items[i].desc.out());
  }

  void run_image(int n, float* buffers, Arena& arena) {
    for (int i = 0; i < items() && !chain_.items[i].desc.linear; ++i) {
      const int64_t start = times_ ? now_ns() : 0;
      Arena again = arena;
      run_item(make_job(chain_, list_, i, list_.alone[i], input_of(i, n, buffers), output(i, n, buffers),
                        residual_of(i, n, buffers)),
               again);
      if (times_) times_[i] += now_ns() - start;
    }
  }

  void run_part(const Task& t, Arena& arena) {
    float* buffers = shared_ + t.slot * list_.slot_floats();
    float* seam = buffers + 2 * list_.activation;
    float* hidden = seam + list_.seam;
    const Job job = make_job(chain_, list_, t.item, list_.shared[t.item], input_of(t.item, t.image, buffers),
                             output(t.item, t.image, buffers), residual_of(t.item, t.image, buffers));
    const Squeeze squeeze = squeeze_at(job, hidden + list_.hidden);
    const size_t row =
        t.seam_above.end > t.seam_above.begin || t.seam_below.end > t.seam_below.begin ? seam_row_floats(job) : 0;
    const Seam above{t.seam_above.begin, t.seam_above.end, seam + t.above * row},
        below{t.seam_below.begin, t.seam_below.end, seam + t.below * row};
    switch (t.kind) {
      case TaskKind::kRows:
        return run_rows(job, t.region, above, below, arena);
      case TaskKind::kSeam:
        return run_seam_row(job, t.seam_above.begin, above.rows, arena);
      case TaskKind::kHidden:
        return run_hidden(job, t.panels, {t.region.y0, t.region.y1}, above, below, hidden, squeeze, arena);
      case TaskKind::kReduce:
        return run_reduce(job, squeeze, t.panels, arena);
      case TaskKind::kExcite:
        return run_excite(job, squeeze, t.panels);
      case TaskKind::kProject:
        return run_project(job, hidden, squeeze, t.pixels, t.panels, arena);
      case TaskKind::kConv:
        return run_conv(job, t.region, t.panels, arena);
      case TaskKind::kPool:
        return run_pool(job, t.panels, arena);
      case TaskKind::kImage:
      case TaskKind::kLinear:
        return;
    }
  }

  // Linear layers read and write two buffers in turn, the last one the output.
  void run_linear(const Task& t) {
    const PackedStage& stage = chain_.items[t.item].stages[0];
    int first = t.item;
    while (chain_.items[first - 1].desc.linear) --first;
    auto features = [&](int layer) { return features_ + (layer & 1) * list_.features; };
    const int layer = t.item - first;
    const bool last = t.item + 1 == items();
    run_dense(chain_, stage, features(layer), in_.n, stage.desc.in, last ? out_.data : features(layer + 1),
              last ? out_.image : stage.desc.out, t.panels);
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
  Schedule schedule(list->phases, list->workers);
  const Worker worker = [&](int id) {
    FlushDenormals flush;
    schedule.work(list->tasks, id, [&](const Task& t) { runner.run(t, id); });
  };
  if (list->workers == 1) {
    worker(0);
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
