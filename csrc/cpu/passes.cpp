#include "passes.h"

#include "sums.h"

namespace mobilenet_ext {
namespace {

// Pixels of a task, from the shape alone, so that sums do not depend on threads: about half a megabyte.
int64_t task_pixels(const Pass& pass) {
  const int64_t fitting = (1 << 17) / std::max(1, pass.channels);
  return std::max<int64_t>(128, (fitting + 127) / 128 * 128);
}

struct Part {
  int64_t from;
  int pixels;
};

int task_count(const Pass& pass) { return static_cast<int>((pass.pixels + task_pixels(pass) - 1) / task_pixels(pass)); }

Part part_of(const Pass& pass, int task) {
  const int64_t size = task_pixels(pass), from = task * size;
  return {from, static_cast<int>(std::min(size, pass.pixels - from))};
}

const float* at(const float* p, ptrdiff_t offset) { return p ? p + offset : nullptr; }

PassArgs args_of(const Pass& p, const Part& part) {
  const ptrdiff_t offset = part.from * p.channels;
  PassArgs a{};
  a.g = at(p.g, offset);
  a.x = at(p.x, offset);
  a.r = at(p.r, offset);
  a.y = p.y ? p.y + offset : nullptr;
  a.pixels = part.pixels;
  a.channels = p.channels;
  a.pitch = p.channels;
  a.scale = p.scale;
  a.shift = p.shift;
  a.lo = p.lo;
  a.hi = p.hi;
  a.a = p.a;
  a.b = p.b;
  a.c = p.c;
  a.center = p.center;
  return a;
}

void run_rows(void (*kernel)(const PassArgs&), const Pass& pass, const Threads& threads) {
  const int tasks = task_count(pass);
  const int workers = workers_for(pass.pixels * pass.channels, tasks, threads);
  for_each_task(tasks, workers, 0, threads, [&](int i, float*) { kernel(args_of(pass, part_of(pass, i))); });
}

}  // namespace

void run_apply(const TrainTable& isa, const Pass& pass, const Threads& threads) { run_rows(isa.apply, pass, threads); }

void run_gradient(const TrainTable& isa, const Pass& pass, const Threads& threads) {
  run_rows(isa.gradient, pass, threads);
}

void run_moments(const TrainTable& isa, const Pass& pass, double* mean, double* var, const Threads& threads) {
  const int tasks = task_count(pass), channels = pass.channels;
  std::vector<double> sums(static_cast<size_t>(tasks) * 2 * channels);
  std::vector<float> centers(static_cast<size_t>(tasks) * channels);
  const int workers = workers_for(pass.pixels * channels, tasks, threads);
  for_each_task(tasks, workers, PairSum::scratch_floats(channels), threads, [&](int i, float* scratch) {
    PassArgs args = args_of(pass, part_of(pass, i));
    float* center = centers.data() + static_cast<size_t>(i) * channels;
    center_of(args.x, args.pixels, channels, channels, center);
    args.center = center;
    PairSum sum(sums.data() + static_cast<size_t>(i) * 2 * channels, channels, scratch, channels);
    sum.add(isa.moments, args);
    sum.flush();
  });
  MergedMoments merged(mean, var, channels);
  for (int i = 0; i < tasks; ++i) {
    merged.add(part_of(pass, i).pixels, centers.data() + static_cast<size_t>(i) * channels,
               sums.data() + static_cast<size_t>(i) * 2 * channels);
  }
  merged.finish();
}

void run_reduce(const TrainTable& isa, const Pass& pass, double* sums, const Threads& threads) {
  const int tasks = task_count(pass), channels = pass.channels;
  std::vector<double> partial(static_cast<size_t>(tasks) * 2 * channels);
  const int workers = workers_for(pass.pixels * channels, tasks, threads);
  for_each_task(tasks, workers, PairSum::scratch_floats(channels), threads, [&](int i, float* scratch) {
    PairSum sum(partial.data() + static_cast<size_t>(i) * 2 * channels, channels, scratch, channels);
    sum.add(isa.reduce, args_of(pass, part_of(pass, i)));
    sum.flush();
  });
  std::fill_n(sums, 2 * channels, 0.0);
  for (int i = 0; i < tasks; ++i) {
    for (int c = 0; c < 2 * channels; ++c) sums[c] += partial[static_cast<size_t>(i) * 2 * channels + c];
  }
}

}  // namespace mobilenet_ext
