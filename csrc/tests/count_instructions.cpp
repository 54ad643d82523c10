// One block, run some times on one thread, for check_instructions.py to count under valgrind:
// count_instructions ISA BLOCK TIMES prints its multiply-adds. Without arguments: the instruction sets and blocks.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "cpu/detect.h"
#include "cpu/registry.h"
#include "cpu/run.h"
#include "reference.h"

using namespace mobilenet_ext;

namespace {

struct Block {
  const char* name;
  int in, hidden, out, k, stride, size;
  bool residual;
};

// MobileNetV2's blocks of every size class, one of MobileNetV1, one of EfficientNet-Lite with k 5.
const Block kBlocks[] = {
    {"v2_56x56_24", 24, 144, 24, 3, 1, 56, true},    {"v2_56x56_s2", 24, 144, 32, 3, 2, 56, false},
    {"v2_28x28_32", 32, 192, 32, 3, 1, 28, true},    {"v2_14x14_96", 96, 576, 96, 3, 1, 14, true},
    {"v2_7x7_160", 160, 960, 160, 3, 1, 7, true},    {"v1_28x28_256", 256, 256, 256, 3, 1, 28, false},
    {"lite0_28x28_40", 40, 240, 40, 5, 1, 28, true},
};

ChainDesc chain_of(const Block& b) {
  ItemDesc item;
  if (b.hidden != b.in) item.stages.push_back(test::stage(Role::kExpand, b.in, b.hidden, {}));
  item.stages.push_back(test::stage(Role::kDepthwise, b.hidden, b.hidden, test::square(b.k, b.stride)));
  item.stages.push_back(test::stage(Role::kProject, b.hidden, b.out, {}, Activation::kNone));
  item.residual = b.residual;
  ChainDesc chain;
  chain.items = {item};
  return chain;
}

int run(const IsaTable& isa, const Block& b, int times) {
  pretend_cache_sizes({32 << 10, 512 << 10, 32 << 20});
  const ChainDesc chain = chain_of(b);
  std::mt19937 rng(1);
  std::vector<test::StageTensors> tensors;
  std::vector<SourceView> sources;
  for (const StageDesc& s : chain.items[0].stages) tensors.push_back(test::random_tensors(s, rng));
  for (size_t i = 0; i < tensors.size(); ++i) {
    for (const SourceView& v : test::views(chain.items[0].stages[i], tensors[i])) sources.push_back(v);
  }
  const PackedChain packed = pack(chain, sources, isa);
  const ItemShape shape = shapes(chain, b.size, b.size)[0];
  std::vector<float> x(static_cast<size_t>(b.size) * b.size * b.in, 0.5f),
      y(static_cast<size_t>(shape.out_h) * shape.out_w * chain.items[0].out());
  Input in{};
  in.data = x.data();
  in.n = 1;
  in.c = b.in;
  in.h = in.w = b.size;
  in.channel = 1;
  in.pixel = b.in;
  in.row = in.pixel * b.size;
  in.image = in.row * b.size;
  const Output out{y.data(), static_cast<ptrdiff_t>(y.size()), 1, b.out};
  TaskCache cache;
  for (int i = 0; i < times; ++i) run_chain(packed, cache, in, out, 1, [](int, const Worker& worker) { worker(0); });
  std::printf("%.0f\n", shape.multiply_adds);
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 1) {
    for (const Isa& isa : isas()) {
      for (const Block& b : kBlocks) std::printf("%s %s %d\n", isa.table->name, b.name, isa.table->vector);
    }
    return 0;
  }
  if (count != 4) return 2;
  for (const Isa& isa : isas()) {
    for (const Block& b : kBlocks) {
      if (std::string(arguments[1]) == isa.table->name && std::string(arguments[2]) == b.name)
        return run(*isa.table, b, std::atoi(arguments[3]));
    }
  }
  return 2;
}
