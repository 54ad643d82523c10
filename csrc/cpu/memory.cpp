#include "memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace mobilenet_ext {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kPooledBuffers = 16;

std::mutex pool_mutex;
std::vector<Buffer>& pool() {
  // Never destroyed: a thread may still return a buffer while the process exits.
  static auto* buffers = new std::vector<Buffer>();
  return *buffers;
}

}  // namespace

Buffer::Buffer(size_t floats) : size_(floats) {
  const size_t bytes = floats * sizeof(float);
  const size_t alignment = bytes >= kHugePage / 4 ? kHugePage : kAlignment;
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  data_ = static_cast<float*>(std::aligned_alloc(alignment, rounded ? rounded : alignment));
  if (!data_) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (alignment == kHugePage) madvise(data_, rounded, MADV_HUGEPAGE);  // advice only: failure changes nothing
#endif
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Buffer::~Buffer() { std::free(data_); }

Scratch::Scratch(size_t floats) {
  {
    std::lock_guard<std::mutex> lock(pool_mutex);
    auto& free_list = pool();
    for (size_t i = free_list.size(); i-- > 0;) {
      if (free_list[i].size() >= floats) {
        buffer_ = std::move(free_list[i]);
        free_list.erase(free_list.begin() + static_cast<ptrdiff_t>(i));
        return;
      }
    }
    // The one it replaces is too small for what runs now.
    if (!free_list.empty()) free_list.erase(free_list.begin());
  }
  buffer_ = Buffer(floats);
}

Scratch::~Scratch() {
  std::lock_guard<std::mutex> lock(pool_mutex);
  if (pool().size() < kPooledBuffers) pool().push_back(std::move(buffer_));
}

}  // namespace mobilenet_ext
