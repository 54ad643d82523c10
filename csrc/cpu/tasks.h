// The task list of one chain on one input: made once per shape, kept, and run many times.
#pragma once
#include <array>
#include <memory>
#include <mutex>
#include <vector>

#include "block.h"
#include "plan.h"

namespace mobilenet_ext {

// The input of a chain: sizes and strides in elements.
struct Input {
  const float* data;
  int n, c, h, w;
  ptrdiff_t image, channel, row, pixel;
};
// The output: dense, either NHWC (channel == 1), NCHW (pixel == 1) or flat.
struct Output {
  float* data;
  ptrdiff_t image, channel, pixel;
};

enum class TaskKind { kImage, kRows, kSeam, kHidden, kReduce, kExcite, kProject, kConv, kPool, kLinear };

struct Task {
  TaskKind kind;
  int item = 0, image = 0;
  int slot = 0;     // split images: which of the shared activation buffers
  Region region{};  // rows, conv
  Range pixels{};   // project, linear (images)
  Range panels{};   // reduce, excite, project, conv, pool, linear; hidden: units, and the region's rows
  Range seam_above{}, seam_below{};  // rows: hidden rows made ahead; seam: the row
  size_t above = 0, below = 0;       // their place among the shared seam rows, in rows
  int phase = 0;
  std::array<int, 2> waits{-1, -1};
};

struct TaskList {
  std::vector<ItemShape> shapes;
  std::vector<ItemPlan> alone, shared;  // an item run by one worker, by all of them
  std::vector<Task> tasks;
  std::vector<int> phases;
  int workers = 1;
  // Scratch in floats: per worker its activations and task scratch; then what split images share.
  size_t activation = 0, worker_scratch = 0;
  int slots = 0;  // images that are split
  size_t seam = 0, hidden = 0, squeeze = 0;
  size_t features = 0;  // of the widest linear layer's input, all images; two such buffers
  size_t slot_floats() const { return 2 * activation + seam + hidden + squeeze; }
  size_t scratch_floats() const {
    return workers * (2 * activation + worker_scratch) + slots * slot_floats() + 2 * features;
  }
};

// What the list depends on besides the chain.
struct TaskKey {
  int n, h, w, threads;
  ptrdiff_t channel, row, pixel, out_channel;
  bool operator==(const TaskKey& o) const {
    return n == o.n && h == o.h && w == o.w && threads == o.threads && channel == o.channel && row == o.row &&
           pixel == o.pixel && out_channel == o.out_channel;
  }
};

TaskList make_tasks(const PackedChain& chain, const Input& in, const Output& out, int threads);

// The lists of one packed chain, most recently used first.
class TaskCache {
 public:
  std::shared_ptr<const TaskList> get(const PackedChain& chain, const Input& in, const Output& out, int threads);

 private:
  static constexpr size_t kKept = 8;
  std::mutex mutex_;
  std::vector<std::pair<TaskKey, std::shared_ptr<const TaskList>>> lists_;
};

// The job of an item on one image, given where its activations lie (null while measuring).
Job make_job(const PackedChain& chain, const TaskList& list, int item, const ItemPlan& plan, const InView& in,
             const OutView& out, const InView& residual);
// What lies between two items: NHWC, pixels pixel_pitch() apart.
InView dense_view(const float* data, int w, int channels);
OutView dense_out(float* data, int w, int channels);

}  // namespace mobilenet_ext
