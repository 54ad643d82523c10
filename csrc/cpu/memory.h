// Aligned buffers, the pool that reuses scratch between calls, and the arena that carves one call's scratch.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace mobilenet_ext {

constexpr size_t kAlignment = 64;

// Owns `floats` uninitialised floats, 64-byte aligned; from 2 MB on, on huge pages where the system offers them.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t floats);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();
  float* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  float* data_ = nullptr;
  size_t size_ = 0;
};

// Advises the system to put memory that is about to be written on huge pages, as far as it fills some: one page fault
// for 2 MB instead of 512. Failure changes nothing.
void advise_huge_pages(void* data, size_t bytes);

// Borrow scratch of at least `floats` floats for the lifetime of the object. Thread-safe; contents are arbitrary.
class Scratch {
 public:
  explicit Scratch(size_t floats);
  ~Scratch();
  float* data() const { return buffer_.data(); }

 private:
  Buffer buffer_;
};

// Hands out aligned pieces of a buffer. With a null base it only measures: the same code computes size and layout.
class Arena {
 public:
  explicit Arena(float* base) : base_(base) {}
  template <class T>
  T* take(size_t count) {
    const size_t at = used_;
    used_ += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return base_ ? reinterpret_cast<T*>(reinterpret_cast<char*>(base_) + at) : nullptr;
  }
  bool measuring() const { return base_ == nullptr; }
  size_t used_floats() const { return used_ / sizeof(float); }

 private:
  float* base_;
  size_t used_ = 0;
};

}  // namespace mobilenet_ext
