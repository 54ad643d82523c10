#include "tensor_watch.h"

#include <cstring>

namespace mobilenet_ext {
namespace {

constexpr size_t kAhead = 16;  // tensors between asking for a line and reading it

// A copy, so that no type is claimed for the memory of others.
template <class T>
T read(const char* base, int offset) {
  T value;
  std::memcpy(&value, base + offset, sizeof value);
  return value;
}

}  // namespace

TensorWatch::TensorWatch(const std::vector<PyObject*>& tensors, const TensorLayout& layout) : layout_(layout) {
  seen_.reserve(tensors.size());
  for (PyObject* tensor : tensors) {
    Seen s;
    s.object = reinterpret_cast<const char*>(tensor);
    s.impl = read<const char*>(s.object, layout.impl);
    s.storage = read<const char*>(s.impl, layout.storage);
    s.counter = read<const char*>(s.impl, layout.counter);
    s.storage_offset = read<int64_t>(s.impl, layout.storage_offset);
    s.data = read<uintptr_t>(s.storage, layout.data);
    s.version = read<uint32_t>(s.counter, layout.version);
    seen_.push_back(s);
  }
}

std::vector<uint64_t> read_words(uintptr_t address, int count) {
  std::vector<uint64_t> words(count);
  std::memcpy(words.data(), reinterpret_cast<const void*>(address), words.size() * sizeof(uint64_t));
  return words;
}

bool TensorWatch::unchanged() const {
  const TensorLayout& l = layout_;
  for (size_t i = 0; i < seen_.size(); ++i) {
    if (i + kAhead < seen_.size()) {
      // Addresses as they were: where one of them is no longer right, only the prefetch is in vain.
      const Seen& a = seen_[i + kAhead];
      __builtin_prefetch(a.object + l.impl);
      __builtin_prefetch(a.impl + l.storage);
      __builtin_prefetch(a.impl + l.storage_offset);
      __builtin_prefetch(a.storage + l.data);
      __builtin_prefetch(a.counter + l.version);
    }
    // Each pointer is compared before it is followed: what it points to lives as long as its owner has it.
    const Seen& s = seen_[i];
    if (read<const char*>(s.object, l.impl) != s.impl) return false;
    if (read<const char*>(s.impl, l.storage) != s.storage || read<const char*>(s.impl, l.counter) != s.counter ||
        read<int64_t>(s.impl, l.storage_offset) != s.storage_offset) {
      return false;
    }
    if (read<uintptr_t>(s.storage, l.data) != s.data || read<uint32_t>(s.counter, l.version) != s.version) return false;
  }
  return true;
}

}  // namespace mobilenet_ext
