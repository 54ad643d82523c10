// The ring of hidden rows between expand and depthwise: [slot][channel block][left pad + pixels + right pad][vector].
// Columns outside the image are zero (the depthwise stage pads *after* activation); rows outside it are never asked
// for.
#pragma once
#include <optional>

#include "operand.h"
#include "plan.h"

namespace mobilenet_ext {

// One image of one item.
struct Job {
  const PackedChain& chain;
  const PackedItem& item;
  const ItemShape& shape;
  const ItemPlan& plan;
  InView in;
  OutView out;
  InView residual;  // where the shortcut starts: `in`, or the input of the item before
};

// Rows [begin, end) of the hidden tensor that were made ahead and are shared by two bands.
struct Seam {
  int begin = 0, end = 0;
  float* rows = nullptr;
};

struct Blocks {
  int begin, end;  // channel blocks of the hidden tensor
};

class HiddenRows {
 public:
  // For output columns [x0, x1) of the depthwise stage and the given channel blocks.
  HiddenRows(const Job& job, int x0, int x1, Blocks blocks, Arena& arena);

  size_t row_floats() const { return row_floats_; }
  ptrdiff_t block_floats() const { return static_cast<ptrdiff_t>(row_w_) * vector_; }
  void share(const Seam& above, const Seam& below) { seams_[0] = above, seams_[1] = below; }
  Blocks blocks() const { return blocks_; }
  void clear_pads();                            // once per use of the arena's memory
  void make(int begin, int end, Blocks which);  // hidden rows [begin, end) into the ring, those in a seam excepted;
                                                // single blocks only without an expand stage
  void make_into(int y, float* row);            // one hidden row, pads included, to a buffer of row_floats()
  const float* row(int y) const;                // first tap of the first output column, block blocks().begin

 private:
  void clear_pads(float* row) const;
  void produce(int y, int count, Blocks which, float* base, const int32_t* offsets);
  void gather(int y, Blocks which, float* first);

  const Job& job_;
  const PackedStage* expand_;
  int vector_, row_w_, origin_, c0_, c1_, slots_, group_;
  Blocks blocks_;
  size_t row_floats_;
  float* ring_;
  int32_t* offsets_ = nullptr;
  Seam seams_[2];
  std::optional<Operand> operand_;
};

}  // namespace mobilenet_ext
