// Rows between tensor layout and channel blocks. Included by the per-ISA files after a simd_*.h.
namespace {

// Pixel by pixel: the tensor is read in the order of its addresses, and the strided side is the buffer in the cache.
void gather_pixels(const RowArgs& r) {
  const int whole = r.channels / Full::W, rest = r.channels % Full::W;
  for (int x = 0; x < r.width; ++x) {
    const float* in = r.in + x * r.pixel;
    float* out = r.out + x * Full::W;
    for (int b = 0; b < whole; ++b) {
      Full::store(out, Full::load(in));
      in += Full::W;
      out += r.block;
    }
    if (rest) Full::store(out, Full::load_partial(in, rest));
  }
}

// Planes: each channel's pixels in order, for the same reason.
void gather_planes(const RowArgs& r) {
  const int blocks = (r.channels + Full::W - 1) / Full::W;
  for (int b = 0; b < blocks; ++b) {
    const int valid = r.channels - b * Full::W < Full::W ? r.channels - b * Full::W : Full::W;
    const float* in = r.in + b * Full::W * r.channel;
    float* out = r.out + b * r.block;
    for (int c = 0; c < Full::W; ++c) {
      for (int x = 0; x < r.width; ++x) out[x * Full::W + c] = c < valid ? in[c * r.channel + x * r.pixel] : 0.0f;
    }
  }
}

void gather_row(const RowArgs& r) { r.channel == 1 ? gather_pixels(r) : gather_planes(r); }

void scatter_row(const RowArgs& r) {
  const int blocks = (r.channels + Full::W - 1) / Full::W;
  for (int b = 0; b < blocks; ++b) {
    const int valid = r.channels - b * Full::W < Full::W ? r.channels - b * Full::W : Full::W;
    const float* in = r.in + b * r.block;
    float* out = r.out + b * Full::W * r.channel;
    for (int c = 0; c < valid; ++c) {
      for (int x = 0; x < r.width; ++x) out[c * r.channel + x * r.pixel] = in[x * Full::W + c];
    }
  }
}

}  // namespace
