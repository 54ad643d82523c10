// Which taps connect which rows and columns in the backward of a depthwise convolution.
#pragma once
#include <algorithm>
#include <vector>

#include "depthwise_rows.h"

namespace mobilenet_ext {

// Backward-data connects input position i with output position o where i + padding = o * stride + k * dilation. So the
// inputs of one residue class modulo the stride see a fixed list of taps: here k descending, so o ascending.
using Taps = std::vector<int>;

inline std::vector<Taps> tap_classes(int kernel, int stride, int dilation) {
  std::vector<Taps> classes(stride);
  for (int k = kernel - 1; k >= 0; --k) classes[k * dilation % stride].push_back(k);
  return classes;
}

// The input columns of one class: a depthwise row of stride 1 over the gradient.
struct ColumnClass {
  int first, count;  // input columns, a stride apart
  int offset, step;  // output column of the first tap for the first input column; distance of two taps
  const Taps* taps;

  // Columns outside the gradient that the first and the last column see.
  int left() const { return std::max(0, -offset); }
  int right(const DepthwiseShape& s) const {
    return std::max(0, offset + step * static_cast<int>(taps->size() - 1) + count - s.ow);
  }
};

inline std::vector<ColumnClass> column_classes(const DepthwiseShape& s, const std::vector<Taps>& classes) {
  std::vector<ColumnClass> columns;
  for (int first = 0; first < std::min(s.sw, s.w); ++first) {
    const Taps& taps = classes[(first + s.left) % s.sw];
    ColumnClass c{first, (s.w - first + s.sw - 1) / s.sw, 0, 1, &taps};
    // Exact divisions: the class holds the taps for which they are.
    if (!taps.empty()) c.offset = (first + s.left - taps[0] * s.dw) / s.sw;
    if (taps.size() > 1) c.step = (taps[0] - taps[1]) * s.dw / s.sw;
    columns.push_back(c);
  }
  return columns;
}

inline Rows gradient_rows(const DepthwiseShape& s, const std::vector<ColumnClass>& columns, const TrainTable& isa) {
  int left = 0, right = 0;
  for (const ColumnClass& c : columns) {
    if (c.taps->empty()) continue;
    left = std::max(left, c.left());
    right = std::max(right, c.right(s));
  }
  return Rows((s.kh - 1) * s.dh / s.sh + 2, s.ow, left, right, isa.vector);
}

}  // namespace mobilenet_ext
