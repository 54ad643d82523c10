// What depthwise_pixels.inl and weight_gradient_pixels.inl share: how a row of channels_last memory is cut into
// columns; and what asks for memory ahead of its use.
#pragma once
namespace {

constexpr int kPixelColumns = 4;

// Asks for a line that is read, or written, a little later: the walk has too many streams for the processor to see
// them coming.
ALWAYS_INLINE void expect_load(const float* p) { __builtin_prefetch(p, 0, 2); }
ALWAYS_INLINE void expect_store(const float* p) { __builtin_prefetch(p, 1, 2); }

// The functions of a case, by number of columns and by what is outside at the left and the right.
template <class Args>
struct PixelTiles {
  void (*of[kPixelColumns + 1][2][2])(const Args&, int);
};

// Columns split as evenly as possible.
template <class Args>
void pixel_split(const Args& d, const PixelTiles<Args>& tiles) {
  const int count = (d.width + kPixelColumns - 1) / kPixelColumns;
  for (int i = 0, column = 0; i < count; ++i) {
    const int columns = d.width / count + (i < d.width % count);
    tiles.of[columns][i == 0 && d.left][i == count - 1 && d.right](d, column);
    column += columns;
  }
}

}  // namespace
