// BatchNorm folded into weights and bias, and the result laid out the way one instruction set's kernels read it.
#pragma once
#include <cstdint>
#include <vector>

#include "kernel_table.h"
#include "memory.h"
#include "program.h"

namespace mobilenet_ext {

// A source tensor in fp32: its data and, for weights, sizes and strides of (out, in / groups, kh, kw) in floats.
struct SourceView {
  const float* data = nullptr;
  int64_t strides[4] = {0, 0, 0, 0};
};

struct Panel {
  const PanelKind* kind;
  int first;       // first output channel
  int valid;       // output channels that exist
  size_t weights;  // offset of [K][kind->width] in the blob, in floats
};

// One stage, folded and packed. Dense: panels of [K][width], K = (in, ky, kx), for a stage fed by channel blocks padded
// to whole blocks. Depthwise: [block][ky][kx][vector]. Bias: padded to whole panels or blocks.
struct PackedStage {
  StageDesc desc;
  std::vector<Panel> panels;  // dense only
  size_t weights = 0, bias = 0;
  int k = 0;       // dense: rows of a panel, padding included
  float lo, hi;    // the activation as a clamp, infinite where it is none
  int finish = 0;  // the code of an activation that is no clamp
  float slope = 0;

  // For GemmArgs, GemvArgs and DepthwiseArgs.
  template <class Args>
  void set_activation(Args& a) const {
    a.lo = lo;
    a.hi = hi;
    a.activation = finish;
    a.slope = slope;
  }
};

struct PackedItem {
  ItemDesc desc;
  std::vector<PackedStage> stages;
  const PackedStage* find(Role role) const;
};

// Cuts of the hidden channels, in units of whole expand panels (channel blocks where nothing expands).
int hidden_units(const PackedItem& item, const IsaTable& isa);
int block_of_unit(const PackedItem& item, const IsaTable& isa, int unit);

struct PackedHeader {
  uint64_t magic;  // kPackedMagic
  const IsaTable* isa;
  uint32_t dtype;   // 0: fp32
  uint32_t layout;  // version of the layout described above
};
constexpr uint64_t kPackedMagic = 0x6d6f62696c657431;
constexpr uint32_t kPackedLayout = 1;

// A whole chain, immutable once made. Never leaves the process.
struct PackedChain {
  PackedHeader header;
  ChainDesc desc;
  std::vector<PackedItem> items;
  size_t floats = 0;  // of the blob
  Buffer blob;
  int64_t denormals = 0;  // folded values flushed to zero

  const float* at(size_t offset) const { return blob.data() + offset; }
};

// Where everything will lie, without the values: enough to plan with.
PackedChain lay_out(const ChainDesc& chain, const IsaTable& isa);

// `sources` in program order, one per set bit of each stage's mask (the view of num_batches_tracked is ignored).
PackedChain pack(const ChainDesc& chain, const std::vector<SourceView>& sources, const IsaTable& isa);

// How N output channels are cut into panels; `whole_blocks` keeps to kinds that write whole channel blocks.
std::vector<Panel> choose_panels(const IsaTable& isa, int n, bool whole_blocks);

}  // namespace mobilenet_ext
