// What depthwise_pixels.inl and depthwise_pixels_back.inl share: how a row of channels_last memory is cut into tiles of
// columns, and the rows asked for meanwhile. Included by the per-ISA files after a simd_*.h.
#pragma once
#include "prefetch.inl"

namespace {

// A row is walked in tiles of so many columns, the last one of what remains.
constexpr int kPixelColumns = 4;

// A row that is read or written later, asked for a little with each tile. Where all channels of a pixel are visited its
// lines are asked for in the order of memory, which the processor's own prefetching extends; a part of the channels is
// walked as the tiles are.
class RowAhead {
 public:
  // Null: nothing is asked for. `channels` of `pixel` floats are visited, `columns` pixels a row.
  ALWAYS_INLINE RowAhead(const float* row, ptrdiff_t pixel, int channels, int columns)
      : at_(row),
        line_(channels == pixel ? Full::W : pixel),
        back_(channels == pixel ? 0 : Full::W - columns * pixel) {}

  template <int COLUMNS, bool WRITE = false>
  ALWAYS_INLINE void ask() {
    if (!at_) return;
    UNROLL for (int i = 0; i < COLUMNS; ++i) {
      WRITE ? prefetch_l1_to_write(at_) : prefetch_l1(at_);
      at_ += line_;
    }
  }
  // Between two vectors of channels.
  ALWAYS_INLINE void next_vector() {
    if (at_) at_ += back_;
  }

 private:
  const float* at_;
  ptrdiff_t line_, back_;
};

}  // namespace
