#include "patches.h"

#include <cstring>

namespace mobilenet_ext {

void make_patches(const PatchShape& s, const float* images, int count, float* to, const Threads& threads) {
  const ptrdiff_t columns = static_cast<ptrdiff_t>(s.kh) * s.kw * s.channels, row_floats = columns * s.ow;
  const size_t bytes = sizeof(float) * s.channels;
  const int tasks = count * s.oh;
  for_each_task(tasks, workers_for(tasks * row_floats, tasks, threads), 0, threads, [&](int task, float*) {
    const float* image = images + static_cast<ptrdiff_t>(task / s.oh) * s.h * s.w * s.channels;
    float* out = to + task * row_floats;
    for (int ox = 0; ox < s.ow; ++ox) {
      const int first = ox * s.sw - s.left;
      const bool inside = s.dw == 1 && first >= 0 && first + s.kw <= s.w;
      for (int ky = 0; ky < s.kh; ++ky, out += s.kw * s.channels) {
        const int iy = task % s.oh * s.sh - s.top + ky * s.dh;
        if (iy < 0 || iy >= s.h) {
          std::memset(out, 0, s.kw * bytes);
          continue;
        }
        const float* row = image + static_cast<ptrdiff_t>(iy) * s.w * s.channels;
        if (inside) {
          std::memcpy(out, row + static_cast<ptrdiff_t>(first) * s.channels, s.kw * bytes);
          continue;
        }
        for (int kx = 0; kx < s.kw; ++kx) {
          const int ix = first + kx * s.dw;
          float* tap = out + kx * s.channels;
          if (ix < 0 || ix >= s.w) {
            std::memset(tap, 0, bytes);
          } else {
            std::memcpy(tap, row + static_cast<ptrdiff_t>(ix) * s.channels, bytes);
          }
        }
      }
    }
  });
}

std::vector<float> by_patch_columns(const float* weight, int out, int channels, int taps) {
  std::vector<float> columns(static_cast<size_t>(out) * channels * taps);
  float* to = columns.data();
  for (int o = 0; o < out; ++o) {
    for (int t = 0; t < taps; ++t) {
      for (int i = 0; i < channels; ++i) *to++ = weight[(static_cast<size_t>(o) * channels + i) * taps + t];
    }
  }
  return columns;
}

}  // namespace mobilenet_ext
