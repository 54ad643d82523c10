#include "project.h"

namespace mobilenet_ext {
const float* residual_pixels(const Job& job, int first, int m, float* buffer, ptrdiff_t* pixel) {
  const InView& in = job.residual;
  const int w = job.shape.out_w, channels = job.item.desc.out();
  if (in.channel == 1 && (in.row == w * in.pixel || first / w == (first + m - 1) / w)) {
    *pixel = in.pixel;
    return in.data + first / w * in.row + first % w * in.pixel;
  }
  for (int i = 0; i < m; ++i) {
    const float* x = in.data + (first + i) / w * in.row + (first + i) % w * in.pixel;
    for (int c = 0; c < channels; ++c) buffer[static_cast<size_t>(i) * channels + c] = x[c * in.channel];
  }
  *pixel = channels;
  return buffer;
}

void store_transposed(const Job& job, const float* from, int first, int m, int channels) {
  float* to = job.out.data + first * job.out.pixel;
  for (int c = 0; c < channels; ++c) {
    for (int i = 0; i < m; ++i)
      to[c * job.out.channel + i * job.out.pixel] = from[static_cast<size_t>(i) * channels + c];
  }
}

Project::Project(const Job& job, int most_pixels, Arena& arena) : job_(job), stage_(*job.item.find(Role::kProject)) {
  segments_ = arena.take<ptrdiff_t>(block_count(job));
  const size_t floats = static_cast<size_t>(most_pixels) * stage_.desc.out;
  if (job.item.desc.residual) residual_ = arena.take<float>(floats);
  if (!output_is_nhwc(job)) rows_ = arena.take<float>(floats);
}

void Project::run(const float* hidden, ptrdiff_t block_floats, int first, int m, Range panels) {
  const int vector = job_.chain.header.isa->vector, blocks = block_count(job_), out = stage_.desc.out;
  for (int b = 0; b < blocks; ++b) segments_[b] = b * block_floats;
  GemmArgs g{};
  g.a = hidden;
  g.a_pixel = vector;
  g.segments = segments_;
  g.segment_count = blocks;
  g.segment_length = vector;
  g.m = m;
  stage_.set_activation(g);
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

}  // namespace mobilenet_ext
