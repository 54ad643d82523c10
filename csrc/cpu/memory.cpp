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
  if (alignment == kHugePage) advise_huge_pages(data_, rounded);
}

void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(MADV_HUGEPAGE)
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
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
    // The smallest that is large enough, so that large ones stay for who needs them; failing that, the largest of the
    // others makes room for what runs now.
    auto best = free_list.end(), largest = free_list.begin();
    for (auto it = free_list.begin(); it != free_list.end(); ++it) {
      if (it->size() >= floats && (best == free_list.end() || it->size() < best->size())) best = it;
      if (it->size() > largest->size()) largest = it;
    }
    if (best != free_list.end()) {
      buffer_ = std::move(*best);
      free_list.erase(best);
      return;
    }
    if (!free_list.empty()) free_list.erase(largest);
  }
  buffer_ = Buffer(floats);
}

Scratch::~Scratch() {
  std::lock_guard<std::mutex> lock(pool_mutex);
  if (pool().size() < kPooledBuffers) pool().push_back(std::move(buffer_));
}

}  // namespace mobilenet_ext
