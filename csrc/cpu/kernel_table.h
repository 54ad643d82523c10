// The interface between the common code and the per-ISA kernels: plain structs and function pointers.
// Included by files that are compiled with ISA flags, so: no std headers, no inline functions.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace mobilenet_ext {

// C[m][n] = clamp(sum over k of A[m][k] * B[k][n] + bias[n], lo, hi) (+ residual[m][n]) for one panel of columns.
// The sum is one chain of FMAs per element from zero, k ascending, whatever the tile; the bias comes last. A folded
// bias is often far larger than the sums that it shifts, and a chain that starts from it rounds every step to its size.
struct GemmArgs {
  // A: pixel m, k = (segment s, offset j) at a[m * a_pixel + segments[s] + j]; strides in floats.
  const float* a;
  ptrdiff_t a_pixel;
  const ptrdiff_t* segments;
  int segment_count;
  int segment_length;
  const float* b;     // packed panel [segment_count * segment_length][panel width]
  const float* bias;  // [panel width]
  // C: pixel m at c + (c_offsets ? c_offsets[m] : m * c_pixel), vector v of the panel at + v * c_vector.
  float* c;
  const int32_t* c_offsets;
  ptrdiff_t c_pixel;
  ptrdiff_t c_vector;
  const float* residual;  // null, or pixel m at residual + m * residual_pixel, columns contiguous
  ptrdiff_t residual_pixel;
  float* pool;  // null, or [panel width] sums over pixels (ascending); then c is not written
  int m;        // pixels
  int n_valid;  // columns of the panel that exist in C; below the panel's width only for the last panel
  float lo, hi;
  // Nonzero: an activation that is no clamp (activation.inl), applied before residual and pool. With pool, c is then
  // scratch of [m][width].
  int activation;
  float slope;
};

// One or several rows of a panel kind: width columns as `width / vector` vectors, at most `max_rows` pixels a tile.
struct PanelKind {
  int width;
  int vector;
  int max_rows;
  void (*gemm)(const GemmArgs&);
  const char* name;
};

// One pixel against `panels` consecutive packed panels of the main kind, several at a time to hide FMA latency.
struct GemvArgs {
  const float* a;     // [k], contiguous
  const float* b;     // panels x [k][width]
  ptrdiff_t b_panel;  // distance of two panels, in floats
  const float* bias;
  float* c;
  int k;
  int panels;
  int n_valid;  // columns of the last panel that exist
  float lo, hi;
  int activation;
  float slope;
};

// One output row of a depthwise convolution over `blocks` channel blocks of `vector` channels.
struct DepthwiseArgs {
  const float* const*
      rows;  // kh pointers to input rows at the first tap of output column 0; only [ky_begin, ky_end) are read
  int ky_begin, ky_end;
  int kh, kw;
  int stride, dilation;  // horizontal
  ptrdiff_t in_block;    // input pixels are `vector` floats apart
  const float* weights;  // [block][kh][kw][vector]
  const float* bias;     // [block][vector]
  float* out;
  ptrdiff_t out_pixel, out_block;
  int width;  // output columns
  int blocks;
  int last_valid;  // channels of the last block that are stored (the rest is padding)
  float lo, hi;
  int activation;
  float slope;
};

// One row of a depthwise convolution straight from channels_last memory: `channels` channels of `width` output columns.
// A kernel of three columns and up to three rows, stride 1 or 2.
struct PixelRowArgs {
  const float* const* rows;  // those kernel rows that are inside the image, at the first tap of output column 0
  int count;                 // of rows, 1 to 3
  int stride, width, channels;
  int left, right;         // 0 or 1: the first tap of column 0, the last one of the last column is outside the image
  ptrdiff_t pixel;         // distance of two input columns, in floats
  const float* weights;    // [block][..][3][vector], at the first of `rows`
  ptrdiff_t weight_block;  // distance of two blocks
  const float* bias;       // null, or [channels]
  float* out;
  ptrdiff_t out_pixel, out_block;  // distances of two columns and of two vectors of channels
  const float* ahead;      // null, or the last of the rows that the next output row is the first to read, at column 0
  ptrdiff_t ahead_other;   // with stride 2, from there to the row before it
  const float* out_ahead;  // without a bias: null, or where the next output row will be, pixels out_pixel apart
  bool stream;             // without a bias: past the caches, whole aligned vectors that nobody reads soon
  float lo, hi;            // with a bias
  int activation;
  float slope;
};

// A row between tensor layout (pixel and channel strides) and blocks [block][pixel][vector].
struct RowArgs {
  const float* in;
  float* out;
  ptrdiff_t pixel, channel;  // strides of the tensor side, in floats
  ptrdiff_t block;           // distance of two channel blocks on the blocked side, in floats
  int width, channels;
};

// Channel blocks [block][pixel][vector] of squeeze-and-excitation.
struct BlocksArgs {
  const float* in;
  float* out;          // scale: [block][pixel][vector], may not overlap
  const float* scale;  // scale: [block][vector]
  double* sums;        // sum: [block][vector], overwritten
  ptrdiff_t in_block, out_block;
  int blocks, pixels;
};

struct IsaTable {
  const char* name;
  int vector;  // floats per vector = channels per block
  const PanelKind* kinds;
  int kind_count;   // kinds[0] is the main kind
  int alternative;  // index of a kind preferred when its width divides N and the main width does not, or -1
  void (*gemv)(const GemvArgs&);
  void (*depthwise_row)(const DepthwiseArgs&);
  void (*depthwise_pixels)(const PixelRowArgs&);
  void (*gather_row)(const RowArgs&);   // tensor -> blocks, padding channels zeroed
  void (*scatter_row)(const RowArgs&);  // blocks -> tensor
  void (*scale_blocks)(const BlocksArgs&);
  void (*sum_blocks)(const BlocksArgs&);  // over pixels, in an order that depends on their number only
};

}  // namespace mobilenet_ext
