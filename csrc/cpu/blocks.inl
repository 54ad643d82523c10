// Squeeze-and-excitation on channel blocks: sums over pixels, and pixels times their channel's scale. Included by the
// per-ISA files after a simd_*.h.
namespace {

constexpr int kSumChunk = 64;  // pixels of one fp32 sum; a constant, since it decides bits

// Four chains a chunk, added in pairs; chunks add up in double.
void sum_blocks(const BlocksArgs& a) {
  using T = Full::T;
  for (int b = 0; b < a.blocks; ++b) {
    const float* in = a.in + b * a.in_block;
    double* sums = a.sums + b * Full::W;
    for (int i = 0; i < Full::W; ++i) sums[i] = 0;
    for (int begin = 0; begin < a.pixels; begin += kSumChunk) {
      const int end = begin + kSumChunk < a.pixels ? begin + kSumChunk : a.pixels;
      T chain[4] = {Full::zero(), Full::zero(), Full::zero(), Full::zero()};
      int p = begin;
      for (; p + 4 <= end; p += 4) {
        UNROLL for (int j = 0; j < 4; ++j) chain[j] = Full::add(chain[j], Full::load(in + (p + j) * Full::W));
      }
      for (; p < end; ++p) chain[0] = Full::add(chain[0], Full::load(in + p * Full::W));
      float part[Full::W];
      Full::store(part, Full::add(Full::add(chain[0], chain[1]), Full::add(chain[2], chain[3])));
      for (int i = 0; i < Full::W; ++i) sums[i] += part[i];
    }
  }
}

void scale_blocks(const BlocksArgs& a) {
  for (int b = 0; b < a.blocks; ++b) {
    const Full::T scale = Full::load(a.scale + b * Full::W);
    const float* in = a.in + b * a.in_block;
    float* out = a.out + b * a.out_block;
    for (int p = 0; p < a.pixels; ++p) Full::store(out + p * Full::W, Full::mul(Full::load(in + p * Full::W), scale));
  }
}

}  // namespace
