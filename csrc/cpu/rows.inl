// Rows between tensor layout and channel blocks. Included by the per-ISA files after a simd_*.h.
namespace {

void gather_row(const RowArgs& r) {
  const int blocks = (r.channels + Full::W - 1) / Full::W;
  for (int b = 0; b < blocks; ++b) {
    const int valid = r.channels - b * Full::W < Full::W ? r.channels - b * Full::W : Full::W;
    const float* in = r.in + b * Full::W * r.channel;
    float* out = r.out + b * r.block;
    if (r.channel == 1 && valid == Full::W) {
      for (int x = 0; x < r.width; ++x) Full::store(out + x * Full::W, Full::load(in + x * r.pixel));
    } else if (r.channel == 1) {
      for (int x = 0; x < r.width; ++x) Full::store(out + x * Full::W, Full::load_partial(in + x * r.pixel, valid));
    } else {
      // Planar input: read each channel's pixels in order, the strided side is the small buffer in cache.
      for (int c = 0; c < Full::W; ++c) {
        for (int x = 0; x < r.width; ++x) out[x * Full::W + c] = c < valid ? in[c * r.channel + x * r.pixel] : 0.0f;
      }
    }
  }
}

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
