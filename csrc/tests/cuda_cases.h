// What the tests of the emulated CUDA kernels share: buffers, bounds, and runs with the threads in every order.
#pragma once
#include <cmath>
#include <cstring>
#include <random>

#include "check.h"
#include "cuda/device.h"

namespace test {

using namespace mobilenet_ext::cuda;  // NOLINT

inline std::mt19937 rng(7);

template <class T>
inline constexpr Dtype kDtype = sizeof(T) == 4 ? Dtype::kFloat : Dtype::kHalf;
template <>
inline constexpr Dtype kDtype<BFloat16> = Dtype::kBFloat16;
template <class T>
inline constexpr double kEps = 1.2e-7;
template <>
inline constexpr double kEps<Half> = 9.8e-4;
template <>
inline constexpr double kEps<BFloat16> = 7.9e-3;

// Half of the distance between the smallest numbers.
template <class T>
inline constexpr double kSmallest = sizeof(T) == 4 ? 1e-30 : 3e-8;

// A registered buffer between guards, at a 32-byte boundary; NaN where nothing was given.
template <class T>
struct Buffer {
  std::vector<T> data;
  Buffer(const std::string& name, size_t count, double scale, double shift = 0) : data(count) {
    std::uniform_real_distribution<double> draw(-1, 1);
    for (T& v : data) v = from_float<T>(static_cast<float>(scale ? draw(rng) * scale + shift : NAN));
    emulation::add_buffer(name, data.data(), count * sizeof(T));
  }
  double operator[](size_t i) const { return to_float(data[i]); }
};

inline double act(double v, int activation) {
  if (activation >= 1 && v < 0) v = 0;
  if (activation == 2 && v > 6) v = 6;
  return v;
}

// Runs `launch` with the threads forwards, backwards and shuffled: `result` has to have the same bits every time.
template <class T, class F>
void in_every_order(Buffer<T>& result, const std::string& what, F launch) {
  static unsigned seed = 0;
  std::vector<T> first;
  for (const emulation::Order order :
       {emulation::Order::kForwards, emulation::Order::kBackwards, emulation::Order::kShuffled}) {
    emulation::set_order(order, ++seed);
    for (T& v : result.data) v = from_float<T>(NAN);
    CHECK(launch() == 0);
    if (first.empty()) first = result.data;
    CHECK_MESSAGE(std::memcmp(first.data(), result.data.data(), first.size() * sizeof(T)) == 0,
                  what + " depends on the order of threads");
  }
}

// Every depthwise kernel, and every kernel of whole blocks, in every dtype.
void depthwise_cases();
void block_cases();

}  // namespace test
