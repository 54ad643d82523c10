// The interface between the common code of training and its per-ISA kernels: plain structs and function pointers.
// Included by files that are compiled with ISA flags, so: no std headers, no inline functions.
//
// z = x * scale + shift is a value before its activation, clamp(z, lo, hi) the one after it, and the gradient passes
// where lo < z < hi (infinite bounds: no activation). All vectors that hold one value per channel are [channels].
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace mobilenet_ext {

// `channels` channels of `pixels` consecutive pixels of a channels_last tensor, which lie `pitch` floats apart.
struct PassArgs {
  const float* g;  // gradient with respect to the activated value
  const float* x;  // the convolution's result
  const float* r;  // null, or what is added to the result
  float* y;
  ptrdiff_t pitch;
  int pixels, channels;
  const float *scale, *shift;
  float lo, hi;
  const float *a, *b, *c;  // gradient of x = a * g' + b * (x - center) + c; b and c may be null together
  const float* center;     // null counts as zeros
  float *sum, *sum_x;      // added to
};

// `channels` channels of one row of a channels_last image into blocks [block][pixel][vector]; channels past the last
// are zero.
struct GatherArgs {
  const float* g;
  const float* x;
  float* out;
  ptrdiff_t pitch;  // distance of two pixels, in floats
  ptrdiff_t block;  // distance of two blocks in `out`, in floats
  int pixels, channels;
  const float *scale, *shift;  // null together: x as it is
  float lo, hi;
  const float *a, *b, *c, *center;
};

// Weight gradient of one output row over `blocks` channel blocks: sums[block][ky][kx] += sum of g[x] * rows[ky][...].
struct WeightGradientArgs {
  const float* const* rows;  // kh pointers to [block][pixel][vector] at the first tap of output column 0
  int ky_begin, ky_end;      // rows inside the image
  int kh, kw;
  int stride, dilation;  // horizontal
  ptrdiff_t in_block;
  const float* g;  // [block][pixel][vector] at output column 0
  ptrdiff_t g_block;
  float* sums;  // [block][kh][kw][vector]
  int width;    // output columns
  int blocks;
};

// One input row of both gradients of a 3x3 depthwise convolution straight from channels_last memory, one column of
// padding at the left; stride 1 and as many columns of `g`, or stride 2 and half as many, rounded up.
struct PixelBackArgs {
  const float* const*
      rows;   // of `g`, at column 0: one or more that the row has a part in, a kernel row of its own each
  int count;  // 1 to 3, with stride 2 up to 2
  int stride, width, g_width, channels;  // `width` of the input
  ptrdiff_t pixel, x_pixel;              // distance of two columns of `rows`, of x and dx, in floats
  const float* x;
  float* dx;               // = the sum over taps of weight * g
  const float* weights;    // [block][ky][3][vector] at the kernel row of the first of `rows`; the next is `stride` less
  float* sums;             // as `weights`: += g * x
  ptrdiff_t weight_block;  // distance of two blocks
  const float *g_ahead, *x_ahead, *dx_ahead;  // null, or rows that are read, or written, next
  bool stream;                                // as PixelRowArgs
};

// out[row][column] (+)= sum over pixels of wide[pixel][row] * narrow[pixel][column], one chain from zero.
struct WeightProductArgs {
  const float* wide;
  ptrdiff_t wide_pixel;
  ptrdiff_t ahead;      // from a pixel to the one that is read next after these, in floats
  const float* narrow;  // [pixel][vectors * vector]
  int pixels, rows;
  int vectors;  // 1, 2 or 3
  int valid;    // columns that exist
  float* out;
  ptrdiff_t out_row;
  bool add;
};

struct TrainTable {
  const char* name;
  int vector;
  void (*apply)(const PassArgs&);              // y = clamp(z, lo, hi) (+ r)
  void (*moments)(const PassArgs&);            // d = x - center: sum += d, sum_x += d * d
  void (*reduce)(const PassArgs&);             // g' = g where it passes: sum += g', sum_x += g' * (x - center), y = g'
  void (*gradient)(const PassArgs&);           // y = a * g' + b * (x - center) + c
  void (*gather)(const GatherArgs&);           // out = clamp(z, lo, hi)
  void (*gather_gradient)(const GatherArgs&);  // out = a * g' + b * (x - center) + c
  void (*weight_gradient_row)(const WeightGradientArgs&);
  void (*depthwise_pixels_back)(const PixelBackArgs&);
  void (*weight_product)(const WeightProductArgs&);
};

}  // namespace mobilenet_ext
