// One block in training on channels_last tensors, forward and backward: expand, depthwise, project, each with its
// BatchNorm and activation, any missing; dense stages are 1x1, or of few channels, as a network's first.
// mobilenet_ext/training says what is kept and what is made again, and is the same on plain operators for other dtypes.
#pragma once
#include <cstdint>
#include <vector>

#include "kernel_table.h"
#include "train_norm.h"
#include "train_table.h"
#include "workers.h"

namespace mobilenet_ext {

struct TrainStage {
  StageDesc desc;
  StageTensors tensors;
  bool batch;  // BatchNorm takes the statistics of the batch
};

struct TrainBlock {
  std::vector<TrainStage> stages;
  bool residual;
  const float* x;  // [n][h][w][channels]
  int n, h, w;
  int64_t chunk_bytes;  // hidden values that exist at a time, at least an image's
};

// Whether these kernels take a block.
bool trains(const ItemDesc& item);

// y, and with statistics of the batch in any stage what the backward reads: v, the bare depthwise result (null where
// the block has none), p, the bare result of the last convolution (null where that is v), and `stats` double
// [3][channels of the stages with batch statistics]: mean, population variance, unbiased variance.
struct TrainResults {
  float *y, *v, *p;
  double* stats;
};
void train_forward(const IsaTable& isa, const TrainTable& train, const TrainBlock& block, const TrainResults& to,
                   const Threads& threads);

// v, p and stats are the forward's, null where every BatchNorm has running statistics.
struct TrainSaved {
  const float *g, *v, *p;
  const double* stats;
};
// dx: null where it is not wanted; it must not be where the expand stage is not 1x1.
void train_backward(const IsaTable& isa, const TrainTable& train, const TrainBlock& block, const TrainSaved& saved,
                    float* dx, const std::vector<StageGradients>& grads, const Threads& threads);

}  // namespace mobilenet_ext
