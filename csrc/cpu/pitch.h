// How far apart pixels lie that are the rows of a matrix product.
#pragma once
#include <cstddef>

namespace mobilenet_ext {

// Whether rows so many floats apart share one set of the first cache, where those of a tile displace each other: a way
// of that cache is as large as a page on most processors.
constexpr bool tile_rows_collide(ptrdiff_t pitch) { return pitch != 0 && pitch % 1024 == 0; }

// The distance of pixels that we place ourselves.
constexpr ptrdiff_t pixel_pitch(int channels) { return tile_rows_collide(channels) ? channels + 16 : channels; }

}  // namespace mobilenet_ext
