#include "depthwise_direct.h"

namespace mobilenet_ext {
namespace {

// One band of output rows; each channel group in turn.
class Forward {
 public:
  Forward(const IsaTable& isa, const TrainTable& train, const DepthwiseShape& s, const float* x,
          const Prologue& prologue, const float* weight, const float* bias, float* y)
      : isa_(isa),
        train_(train),
        s_(s),
        x_(x),
        prologue_(prologue),
        y_(y),
        direct_(!prologue.scale && forward_is_direct(s)),
        stream_(direct_ && !bias && streams(s, y, elements(s))),
        rows_(input_rows(s, train)),
        groups_(direct_ ? direct_groups(s, train, s.kh * s.w + s.ow) : groups_of(s, train, rows_.floats(1))),
        turn_(turn_rows(s, 1, 1)),
        packed_(pack_weight(weight, s.channels, s.kh * s.kw, all_taps(s.kh * s.kw), train.vector)),
        bias_(static_cast<size_t>(blocks_of(train, s.channels)) * train.vector, 0.0f),
        has_bias_(bias != nullptr) {
    if (bias) std::copy_n(bias, s.channels, bias_.data());
  }

  size_t scratch_floats() const {
    const size_t rings = direct_ ? groups_.size() * DirectRows::ring_floats(s_.w, s_.channels, s_.kh)
                                 : rows_.floats(blocks_of(train_, s_.channels));
    return rings + PairSum::scratch_floats(s_.channels);
  }

  // `center` and `sums` [2][channels] receive what MergedMoments takes; null: not wanted.
  void run(const Band& band, float* scratch, float* center, double* sums) const {
    const float* image = x_ + static_cast<ptrdiff_t>(band.n) * s_.h * s_.w * s_.channels;
    std::vector<InputReader> readers;
    std::vector<DirectRows> direct;
    std::vector<PairSum> pairs;
    for (const Group& group : groups_) {
      if (direct_) {
        direct.emplace_back(image, s_.h, s_.w, s_.channels, group, s_.kh, scratch);
        scratch += DirectRows::ring_floats(s_.w, s_.channels, s_.kh);
        continue;
      }
      Rows rows = rows_;
      rows.use(scratch, group.blocks);
      scratch += rows.floats(group.blocks);
      readers.emplace_back(train_, s_, image, prologue_, group, rows);
    }
    for (const Group& group : groups_) {
      if (sums) pairs.emplace_back(sums + group.first, s_.channels, scratch, group.channels);
      scratch += PairSum::scratch_floats(group.channels);
    }
    std::vector<const float*> pointers(s_.kh);
    for (int from = band.begin; from < band.end; from += turn_) {
      for (size_t i = 0; i < groups_.size(); ++i) {
        for (int oy = from; oy < std::min(band.end, from + turn_); ++oy) {
          float* out = y_ + (static_cast<ptrdiff_t>(band.n) * s_.oh + oy) * s_.ow * s_.channels + groups_[i].first;
          if (direct_) {
            make_direct(oy, groups_[i], direct[i], out, pointers.data());
          } else {
            make_row(oy, groups_[i], readers[i], out, pointers.data());
          }
          if (!sums) continue;
          float* around = center + groups_[i].first;
          if (oy == band.begin) center_of(out, s_.ow, s_.channels, groups_[i].channels, around);
          PassArgs a{};
          a.x = out;
          a.pitch = s_.channels;
          a.pixels = s_.ow;
          a.channels = groups_[i].channels;
          a.center = around;
          pairs[i].add(train_.moments, a);
        }
      }
    }
    for (PairSum& pair : pairs) pair.flush();
  }

 private:
  void make_direct(int oy, const Group& group, DirectRows& rows, float* out, const float** pointers) const {
    const int vector = train_.vector, taps = s_.kh * s_.kw, first = oy * s_.sh - s_.top;
    int begin = 0, end = 0;
    kernel_rows(s_, oy, &begin, &end);
    for (int ky = begin; ky < end; ++ky) {
      pointers[ky - begin] = rows.row(first + ky * s_.dh) - s_.left * rows.pixel();
    }
    PixelRowArgs d{};
    d.rows = pointers;
    d.count = end - begin;
    d.stride = s_.sw;
    d.width = s_.ow;
    d.channels = group.channels;
    d.left = s_.left;
    d.right = columns_at_right(s_);
    d.pixel = rows.pixel();
    d.out_pixel = s_.channels;
    d.weights = packed_.data() + (static_cast<size_t>(group.block) * taps + begin * s_.kw) * vector;
    d.weight_block = static_cast<ptrdiff_t>(taps) * vector;
    if (has_bias_) d.bias = bias_.data() + static_cast<size_t>(group.block) * vector;
    d.out = out;
    d.out_block = vector;
    d.lo = -kInfinity;
    d.hi = kInfinity;
    d.ahead = rows.ahead(first + s_.sh + (s_.kh - 1) * s_.dh);
    d.ahead_other = -static_cast<ptrdiff_t>(s_.w) * s_.channels;
    d.stream = stream_;
    if (!stream_ && oy + 1 < s_.oh) d.out_ahead = out + static_cast<ptrdiff_t>(s_.ow) * s_.channels;
    isa_.depthwise_pixels(d);
  }

  void make_row(int oy, const Group& group, InputReader& reader, float* out, const float** pointers) const {
    const int vector = train_.vector;
    DepthwiseArgs d{};
    reader.need(oy, &d.ky_begin, &d.ky_end, pointers);
    d.kh = s_.kh;
    d.kw = s_.kw;
    d.stride = s_.sw;
    d.dilation = s_.dw;
    d.in_block = reader.block();
    d.weights = packed_.data() + static_cast<size_t>(group.block) * s_.kh * s_.kw * vector;
    d.bias = bias_.data() + static_cast<size_t>(group.block) * vector;
    d.out = out;
    d.out_pixel = s_.channels;
    d.out_block = vector;
    d.width = s_.ow;
    d.blocks = group.blocks;
    d.last_valid = group.channels - (group.blocks - 1) * vector;
    d.lo = -kInfinity;
    d.hi = kInfinity;
    d.rows = pointers;
    isa_.depthwise_row(d);
  }

  const IsaTable& isa_;
  const TrainTable& train_;
  const DepthwiseShape& s_;
  const float* x_;
  const Prologue& prologue_;
  float* y_;
  bool direct_, stream_;
  Rows rows_;
  std::vector<Group> groups_;
  int turn_;
  std::vector<float> packed_, bias_;
  bool has_bias_;
};

}  // namespace

void depthwise_forward(const IsaTable& isa, const TrainTable& train, const DepthwiseShape& s, const float* x,
                       const Prologue& prologue, const float* weight, const float* bias, float* y, double* mean,
                       double* var, const Threads& threads) {
  const Forward forward(isa, train, s, x, prologue, weight, bias, y);
  const std::vector<Band> bands = bands_of(s);
  const int tasks = static_cast<int>(bands.size());
  std::vector<double> sums(mean ? static_cast<size_t>(tasks) * 2 * s.channels : 0);
  std::vector<float> centers(mean ? static_cast<size_t>(tasks) * s.channels : 0);
  auto sums_of = [&](int i) { return mean ? sums.data() + static_cast<size_t>(i) * 2 * s.channels : nullptr; };
  auto center_of_task = [&](int i) { return mean ? centers.data() + static_cast<size_t>(i) * s.channels : nullptr; };
  for_each_task(tasks, workers_for(elements(s), tasks, threads), forward.scratch_floats(), threads,
                [&](int i, float* scratch) { forward.run(bands[i], scratch, center_of_task(i), sums_of(i)); });
  if (!mean) return;
  MergedMoments merged(mean, var, s.channels);
  for (int i = 0; i < tasks; ++i) {
    merged.add(static_cast<int64_t>(bands[i].end - bands[i].begin) * s.ow, center_of_task(i), sums_of(i));
  }
  merged.finish();
}

}  // namespace mobilenet_ext
