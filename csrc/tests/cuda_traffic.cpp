// The bytes that every layer of MobileNetV2 moves, counted while its kernels run in the emulation, as JSON lines; fails
// where a depthwise kernel moves more than 1.15 of the least, or the fused blocks more than 5 MB per image in fp16.
#include <cstdio>
#include <map>
#include <memory>

#include "check.h"
#include "cuda/device.h"

namespace {

using namespace mobilenet_ext::cuda;  // NOLINT

constexpr size_t kShared = 227 * 1024;  // of one block on an H100
constexpr int kMultiprocessors = 132;
constexpr int kBatch = 1;

struct Layer {
  int size, cin, hidden, cout, stride, count;
};
// The inverted residuals with an expand stage (arXiv 1801.04381, table 2), equal ones once.
const Layer kLayers[] = {{112, 16, 96, 24, 2, 1},  {56, 24, 144, 24, 1, 1}, {56, 24, 144, 32, 2, 1},
                         {28, 32, 192, 32, 1, 2},  {28, 32, 192, 64, 2, 1}, {14, 64, 384, 64, 1, 3},
                         {14, 64, 384, 96, 1, 1},  {14, 96, 576, 96, 1, 2}, {14, 96, 576, 160, 2, 1},
                         {7, 160, 960, 160, 1, 2}, {7, 160, 960, 320, 1, 1}};

struct Arena {
  std::vector<std::unique_ptr<std::vector<Half>>> halves;
  std::vector<std::unique_ptr<std::vector<float>>> floats;
  Half* half(const char* name, size_t n) {
    halves.emplace_back(new std::vector<Half>(n + 16));
    return place(name, halves.back()->data(), n);
  }
  float* real(const char* name, size_t n) {
    floats.emplace_back(new std::vector<float>(n + 8));
    return place(name, floats.back()->data(), n);
  }
  template <class T>
  T* place(const char* name, T* data, size_t n) {
    while (reinterpret_cast<uintptr_t>(data) % 32) ++data;
    emulation::add_buffer(name, data, n * sizeof(T));
    return data;
  }
};

std::map<std::string, emulation::Traffic> counted() {
  std::map<std::string, emulation::Traffic> by_name;
  for (const emulation::Traffic& t : emulation::traffic()) by_name[t.name] = t;
  return by_name;
}

int64_t per_block(const std::map<std::string, emulation::Traffic>& t, std::initializer_list<const char*> names) {
  int64_t sum = 0;
  for (const char* name : names)
    if (t.count(name)) sum += t.at(name).per_block;
  return sum;
}

// Bytes of a depthwise kernel with its tensors, and the least: every element once. Returns the ratio.
double depthwise_line(const char* kernel, int size, int c, int stride) {
  emulation::clear_buffers();
  Arena a;
  const int out = (size - 1) / stride + 1;
  const Depthwise d{kBatch, size, size, c, out, out, 3, stride, 1, 1};
  const size_t in_count = static_cast<size_t>(size) * size * c, out_count = static_cast<size_t>(out) * out * c;
  Half *x = a.half("x", in_count), *y = a.half("y", out_count), *w = a.half("weight", 9 * static_cast<size_t>(c));
  float *scale = a.real("vectors", c), *shift = a.real("vectors", c), *dw = a.real("dw", 9 * static_cast<size_t>(c));
  float* partial = a.real("partial", static_cast<size_t>(weight_partials(d, Dtype::kHalf)));
  const std::string name = kernel;
  if (name == "depthwise") depthwise_forward({d, x, w, scale, shift, y, 2}, Dtype::kHalf, nullptr);
  if (name == "depthwise_backward_data") depthwise_backward_data({d, y, w, x}, Dtype::kHalf, nullptr);
  if (name == "depthwise_backward_weight") depthwise_backward_weight({d, x, y, partial, dw}, Dtype::kHalf, nullptr);
  const auto t = counted();
  const int64_t moved = per_block(t, {"x", "x (w)", "y", "y (w)", "partial", "partial (w)", "dw (w)"});
  int64_t requested = 0;
  for (const auto& [_, traffic] : t) requested += traffic.requested;
  const int64_t sums = name == "depthwise_backward_weight" ? 4 * 9 * static_cast<int64_t>(c) : 0;  // its result
  const int64_t least = static_cast<int64_t>(2 * (in_count + out_count)) + sums;
  std::printf(
      "{\"kernel\": \"%s\", \"layer\": \"%d @ %dx%d s%d\", \"moved\": %lld, \"least\": %lld, \"requested\": %lld}\n",
      kernel, c, size, size, stride, static_cast<long long>(moved), static_cast<long long>(least),
      static_cast<long long>(requested));
  return static_cast<double>(moved) / static_cast<double>(least);
}

// Bytes of a whole block: tensors, partial sums and, read once per launch, weights. Returns those of the tensors.
int64_t block_line(const Layer& l, int ctas) {
  emulation::clear_buffers();
  Arena a;
  const int out = (l.size - 1) / l.stride + 1;
  const size_t in_count = static_cast<size_t>(l.size) * l.size * l.cin;
  const size_t out_count = static_cast<size_t>(out) * out * l.cout, h = static_cast<size_t>(l.hidden);
  const bool residual = l.stride == 1 && l.cin == l.cout;
  Block b{kBatch,
          l.size,
          l.size,
          l.cin,
          l.hidden,
          l.cout,
          out,
          out,
          l.stride,
          1,
          1,
          a.half("x", in_count),
          a.half("weights", h * l.cin),
          a.half("weights", 9 * h),
          a.half("weights", h * l.cout),
          a.real("weights", h),
          a.real("weights", h),
          a.real("weights", h),
          a.real("weights", h),
          a.real("weights", l.cout),
          a.real("weights", l.cout),
          a.half("y", out_count),
          nullptr,
          2,
          2,
          0,
          residual,
          false};
  const BlockPlan plan = plan_block(b, Dtype::kHalf, kShared, ctas);
  b.partial = a.real("partial", plan.splits > 1 ? plan.splits * out_count : 1);
  inverted_residual(b, plan, Dtype::kHalf, nullptr);
  const auto t = counted();
  const int64_t moved = per_block(t, {"x", "y (w)", "partial", "partial (w)"});
  const int programs = ((out - 1) / plan.tile_h + 1) * ((out - 1) / plan.tile_w + 1) * plan.splits;
  const int64_t weights = t.at("weights").distinct, weights_l2 = t.at("weights").per_block;
  std::printf(
      "{\"kernel\": \"inverted_residual\", \"layer\": \"%d->%d->%d @ %dx%d s%d\", \"ctas\": %d, \"count\": %d, "
      "\"tile\": \"%dx%d\", \"splits\": %d, \"programs\": %d, \"shared\": %zu, \"tiles_per_warp\": %d, \"moved\": "
      "%lld, "
      "\"least\": %lld, \"weights\": %lld, \"weights_l2\": %lld}\n",
      l.cin, l.hidden, l.cout, l.size, l.size, l.stride, ctas, l.count, plan.tile_h, plan.tile_w, plan.splits, programs,
      plan.shared, plan.tiles_per_warp, static_cast<long long>(moved),
      static_cast<long long>(2 * (in_count + out_count)), static_cast<long long>(weights),
      static_cast<long long>(weights_l2));
  return moved;
}

}  // namespace

int main() {
  for (const Layer& l : kLayers) {
    for (const char* kernel : {"depthwise", "depthwise_backward_data", "depthwise_backward_weight"}) {
      const double ratio = depthwise_line(kernel, l.size, l.hidden, l.stride);
      CHECK_MESSAGE(ratio <= 1.15, std::string(kernel) + " moves " + std::to_string(ratio) + " of the least");
    }
  }
  // A batch that fills the device whatever the tile, and one image on the multiprocessors of an H100.
  for (const int ctas : {1, kMultiprocessors}) {
    int64_t sum = 0;
    for (const Layer& l : kLayers) sum += l.count * block_line(l, ctas);
    std::printf("{\"kernel\": \"all blocks\", \"ctas\": %d, \"moved\": %lld}\n", ctas, static_cast<long long>(sum));
    CHECK_MESSAGE(sum <= 5000000, "the fused blocks move " + std::to_string(sum) + " bytes per image with " +
                                      std::to_string(ctas) + " CTAs at once");
  }
  std::fprintf(stderr, "%d checks, %d failures\n", test::checks, test::failures);
  return test::failures ? 1 : 0;
}
