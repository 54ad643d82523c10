// The patches of an image under a dense convolution: what its weights multiply, as a matrix.
#pragma once
#include <vector>

#include "workers.h"

namespace mobilenet_ext {

struct PatchShape {
  int h, w, channels;
  int kh, kw, sh, sw, dh, dw;
  int top, left;
  int oh, ow;
};

// `to` [images][oh][ow][kh][kw][channels] from channels_last images; zero outside them.
void make_patches(const PatchShape& shape, const float* images, int count, float* to, const Threads& threads);

// A weight [out][channels][taps] as [out][taps][channels].
std::vector<float> by_patch_columns(const float* weight, int out, int channels, int taps);

}  // namespace mobilenet_ext
