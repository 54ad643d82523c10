#include "depthwise_direct.h"
#include "depthwise_taps.h"

namespace mobilenet_ext {
namespace {

// Backward of one band, each channel group in turn: the gradient's rows are read once, in order; each completes some
// rows of dx and adds its share to the weight gradient.
class Backward {
 public:
  Backward(const IsaTable& isa, const TrainTable& train, const DepthwiseShape& s, const float* g,
           const GradientPrologue& gradient, const float* x, const Prologue& prologue, const float* x_center,
           const float* weight, float* dx, bool weight_grad)
      : isa_(isa),
        train_(train),
        s_(s),
        g_(g),
        gradient_(gradient),
        x_(x),
        prologue_(prologue),
        x_center_(x_center),
        dx_(dx),
        weight_grad_(weight_grad),
        row_taps_(tap_classes(s.kh, s.sh, s.dh)),
        column_taps_(tap_classes(s.kw, s.sw, s.dw)),
        columns_(column_classes(s, column_taps_)),
        input_(input_rows(s, train)),
        output_(gradient_rows(s, columns_, train)),
        blocks_(blocks_of(train, s.channels)),
        groups_(groups_of(s, train, input_.floats(1) + output_.floats(1))),
        turn_(turn_rows(s, 2, gradient.y ? 2 : 1)),
        zeros_(static_cast<size_t>(blocks_) * train.vector, 0.0f) {
    if (!dx) return;
    for (const Taps& rows : row_taps_) {
      for (const ColumnClass& c : columns_) {
        Taps order;
        for (int ky : rows) {
          for (int kx : *c.taps) order.push_back(ky * s.kw + kx);
        }
        packed_.push_back(pack_weight(weight, s.channels, s.kh * s.kw, order, train.vector));
      }
    }
  }

  // Floats of the weight gradient as the kernels lay it out: [block][ky][kx][vector].
  size_t tap_floats() const { return static_cast<size_t>(blocks_) * s_.kh * s_.kw * train_.vector; }
  size_t scratch_floats() const {
    return input_.floats(blocks_) + output_.floats(blocks_) + tap_floats() + PairSum::scratch_floats(s_.channels);
  }

  // `taps` receives the weight gradient, `sums` [2][channels] those of the masked dx; null: not wanted.
  void run(const Band& band, float* scratch, double* taps, double* sums) const {
    std::vector<Lane> lanes;
    for (const Group& group : groups_) {
      Rows output = output_, input = input_;
      output.use(scratch, group.blocks);
      scratch += output.floats(group.blocks);
      input.use(scratch, group.blocks);
      scratch += input.floats(group.blocks);
      const size_t at = static_cast<size_t>(group.block) * s_.kh * s_.kw * train_.vector;
      const size_t count = static_cast<size_t>(group.blocks) * s_.kh * s_.kw * train_.vector;
      const float* image = x_ + static_cast<ptrdiff_t>(band.n) * s_.h * s_.w * s_.channels;
      lanes.push_back({group,
                       output,
                       InputReader(train_, s_, image, prologue_, group, input),
                       scratch,
                       taps ? taps + at : nullptr,
                       count,
                       {}});
      scratch += count;
      if (!taps) continue;
      std::fill_n(lanes.back().tap_sums, count, 0.0f);
      std::fill_n(lanes.back().taps, count, 0.0);
    }
    for (Lane& lane : lanes) {
      if (sums) lane.pair.emplace_back(sums + lane.group.first, s_.channels, scratch, lane.group.channels);
      scratch += PairSum::scratch_floats(lane.group.channels);
    }
    std::vector<const float*> pointers(s_.kh);
    int iy = band.begin == 0 ? 0 : std::clamp(band.begin * s_.sh - s_.top, 0, s_.h);
    const int iy_end = band.end == s_.oh ? s_.h : std::clamp(band.end * s_.sh - s_.top, 0, s_.h);
    // Rows above the band that its first rows of dx need too.
    const int halo = dx_ ? ceil_div(iy + s_.top - (s_.kh - 1) * s_.dh, s_.sh) : band.begin;
    int pending = 0;
    for (int from = std::clamp(halo, 0, band.begin); from < band.end; from += turn_) {
      const int to = std::min(band.end, from + turn_);
      int next = iy;
      pending += (to - std::max(from, band.begin)) * s_.ow;
      const bool flush = pending >= kFloatPixels || to == band.end;
      for (Lane& lane : lanes) {
        next = iy;
        for (int oy = from; oy < to; ++oy) {
          read_gradient(band.n, oy, lane);
          if (weight_grad_ && oy >= band.begin) add_weight_gradient(oy, lane, pointers.data());
          if (!dx_) continue;
          for (; next < iy_end && ((next + s_.top) / s_.sh <= oy || oy + 1 == band.end); ++next) {
            make_row(band.n, next, lane, pointers.data());
          }
        }
        if (weight_grad_ && flush) lane.flush();
      }
      iy = next;
      if (flush) pending = 0;
    }
    for (Lane& lane : lanes) {
      for (PairSum& pair : lane.pair) pair.flush();
    }
  }

 private:
  // One channel group of a band.
  struct Lane {
    Group group;
    Rows output;
    InputReader reader;
    float* tap_sums;
    double* taps;
    size_t tap_count;
    std::vector<PairSum> pair;  // one or none

    void flush() {
      for (size_t i = 0; i < tap_count; ++i) {
        taps[i] += tap_sums[i];
        tap_sums[i] = 0.0f;
      }
    }
  };

  void read_gradient(int n, int oy, const Lane& lane) const {
    const int first = lane.group.first;
    const ptrdiff_t at = (static_cast<ptrdiff_t>(n) * s_.oh + oy) * s_.ow * s_.channels + first;
    GatherArgs a = gather_args(gradient_.act, s_.ow, s_, lane.group);
    a.out = lane.output.row(oy);
    a.block = lane.output.block();
    if (!gradient_.y) {
      a.x = g_ + at;
      return train_.gather(a);
    }
    a.g = g_ + at;
    a.x = gradient_.y + at;
    a.a = gradient_.a + first;
    if (gradient_.b) {
      a.b = gradient_.b + first;
      a.c = gradient_.c + first;
    }
    if (gradient_.center) a.center = gradient_.center + first;
    train_.gather_gradient(a);
  }

  void add_weight_gradient(int oy, Lane& lane, const float** pointers) const {
    WeightGradientArgs d{};
    lane.reader.need(oy, &d.ky_begin, &d.ky_end, pointers);
    d.rows = pointers;
    d.kh = s_.kh;
    d.kw = s_.kw;
    d.stride = s_.sw;
    d.dilation = s_.dw;
    d.in_block = lane.reader.block();
    d.g = lane.output.row(oy);
    d.g_block = lane.output.block();
    d.sums = lane.tap_sums;
    d.width = s_.ow;
    d.blocks = lane.group.blocks;
    train_.weight_gradient_row(d);
  }

  void make_row(int n, int iy, Lane& lane, const float** pointers) const {
    const int vector = train_.vector, row_class = (iy + s_.top) % s_.sh;
    const Group& group = lane.group;
    const Taps& taps = row_taps_[row_class];
    auto reach = [&](int t) { return iy + s_.top - taps[t] * s_.dh; };  // output row times stride
    int begin = 0, end = static_cast<int>(taps.size());
    while (begin < end && reach(begin) < 0) ++begin;
    while (end > begin && reach(end - 1) / s_.sh >= s_.oh) --end;
    const ptrdiff_t at = (static_cast<ptrdiff_t>(n) * s_.h + iy) * s_.w * s_.channels + group.first;
    for (size_t i = 0; i < columns_.size(); ++i) {
      const ColumnClass& c = columns_[i];
      DepthwiseArgs d{};
      for (int t = begin; t < end; ++t) {
        pointers[t] = lane.output.row(reach(t) / s_.sh) + static_cast<ptrdiff_t>(c.offset) * vector;
      }
      d.ky_begin = begin;
      d.ky_end = end;
      d.kh = static_cast<int>(taps.size());
      d.kw = static_cast<int>(c.taps->size());
      d.stride = 1;
      d.dilation = c.step;
      d.in_block = lane.output.block();
      d.weights =
          packed_[row_class * columns_.size() + i].data() + static_cast<size_t>(group.block) * d.kh * d.kw * vector;
      d.bias = zeros_.data();
      d.out = dx_ + at + static_cast<ptrdiff_t>(c.first) * s_.channels;
      d.out_pixel = static_cast<ptrdiff_t>(s_.sw) * s_.channels;
      d.out_block = vector;
      d.width = c.count;
      d.blocks = group.blocks;
      d.last_valid = group.channels - (group.blocks - 1) * vector;
      d.lo = -kInfinity;
      d.hi = kInfinity;
      d.rows = pointers;
      isa_.depthwise_row(d);
    }
    if (!prologue_.scale) return;
    PassArgs a{};
    a.g = a.y = dx_ + at;
    a.x = x_ + at;
    a.pitch = s_.channels;
    a.pixels = s_.w;
    a.channels = group.channels;
    a.scale = prologue_.scale + group.first;
    a.shift = prologue_.shift + group.first;
    a.lo = prologue_.lo;
    a.hi = prologue_.hi;
    if (x_center_) a.center = x_center_ + group.first;
    for (PairSum& pair : lane.pair) pair.add(train_.reduce, a);
  }

  const IsaTable& isa_;
  const TrainTable& train_;
  const DepthwiseShape& s_;
  const float* g_;
  const GradientPrologue& gradient_;
  const float* x_;
  const Prologue& prologue_;
  const float* x_center_;
  float* dx_;
  bool weight_grad_;
  std::vector<Taps> row_taps_, column_taps_;
  std::vector<ColumnClass> columns_;
  Rows input_, output_;
  int blocks_;
  std::vector<Group> groups_;
  int turn_;
  std::vector<float> zeros_;
  std::vector<std::vector<float>> packed_;
};

// Either class over all bands, and the sums of the bands in their order.
template <class Backward>
void run_bands(const Backward& backward, const DepthwiseShape& s, int vector, float* weight_grad, double* sums,
               const Threads& threads) {
  const std::vector<Band> bands = bands_of(s);
  const int tasks = static_cast<int>(bands.size()), taps = s.kh * s.kw;
  const size_t tap_floats = weight_grad ? backward.tap_floats() : 0, sum_doubles = sums ? 2 * s.channels : 0;
  // Megabytes with many channels: from the pool, since fresh memory costs a page fault every 4 kB.
  const Scratch scratch_sums(
      std::max<size_t>(1, tasks * (tap_floats + sum_doubles) * (sizeof(double) / sizeof(float))));
  double* tap_sums = reinterpret_cast<double*>(scratch_sums.data());
  double* channel_sums = tap_sums + tasks * tap_floats;
  for_each_task(tasks, workers_for(2 * elements(s), tasks, threads), backward.scratch_floats(), threads,
                [&](int i, float* scratch) {
                  backward.run(bands[i], scratch, weight_grad ? tap_sums + i * tap_floats : nullptr,
                               sums ? channel_sums + i * sum_doubles : nullptr);
                });
  for (int i = 1; i < tasks; ++i) {
    for (size_t t = 0; t < tap_floats; ++t) tap_sums[t] += tap_sums[i * tap_floats + t];
  }
  for (int first = 0; weight_grad && first < s.channels; first += vector) {
    const double* block = tap_sums + static_cast<size_t>(first) * taps;
    for (int lane = 0; lane < std::min(vector, s.channels - first); ++lane) {
      float* to = weight_grad + static_cast<ptrdiff_t>(first + lane) * taps;
      for (int t = 0; t < taps; ++t) to[t] = tasks ? static_cast<float>(block[t * vector + lane]) : 0.0f;
    }
  }
  if (!sums) return;
  std::fill_n(sums, sum_doubles, 0.0);
  for (int i = 0; i < tasks; ++i) {
    for (size_t c = 0; c < sum_doubles; ++c) sums[c] += channel_sums[i * sum_doubles + c];
  }
}

}  // namespace

void depthwise_backward(const IsaTable& isa, const TrainTable& train, const DepthwiseShape& s, const float* g,
                        const GradientPrologue& gradient, const float* x, const Prologue& prologue,
                        const float* x_center, const float* weight, float* dx, float* weight_grad, double* sums,
                        const Threads& threads) {
  if (!gradient.y && !prologue.scale && !sums && backward_is_direct(s)) {
    run_bands(DirectBackward(train, s, g, x, weight, dx), s, train.vector, weight_grad, nullptr, threads);
  } else {
    run_bands(Backward(isa, train, s, g, gradient, x, prologue, x_center, weight, dx, weight_grad != nullptr), s,
              train.vector, weight_grad, sums, threads);
  }
}

}  // namespace mobilenet_ext
