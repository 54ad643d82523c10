// Whether tensors still have the storages and versions that they had, read where PyTorch keeps them.
//
// PyTorch's own getters cost a microsecond for each tensor whose fields have left the caches, one tensor after the
// other, and a network has hundreds. This loop asks for many at once. Where the fields lie is not part of any
// interface: mobilenet_ext/layout.py finds it out for the torch that runs, checks it against the getters, and does
// without this class where it cannot.
#pragma once
#include <Python.h>

#include <cstdint>
#include <vector>

namespace mobilenet_ext {

// Offsets in bytes.
struct TensorLayout {
  int impl;                              // in the Python object: the tensor's implementation
  int storage, counter, storage_offset;  // there: the storage, the version counter, the offset in elements
  int data;                              // in the storage: the address
  int version;                           // in the version counter: 32 bits
};

// Owns nothing: whoever makes one keeps the tensors alive for as long.
class TensorWatch {
 public:
  TensorWatch(const std::vector<PyObject*>& tensors, const TensorLayout& layout);

  // Address of the data (of the storage's first element) and version as read at construction, for a check against
  // PyTorch's getters.
  uintptr_t storage_data(size_t i) const { return seen_[i].data; }
  uint32_t version(size_t i) const { return seen_[i].version; }

  bool unchanged() const;

 private:
  struct Seen {
    const char* object;
    const char *impl, *storage, *counter;
    uintptr_t data;
    int64_t storage_offset;
    uint32_t version;
  };
  std::vector<Seen> seen_;
  TensorLayout layout_;
};

// `count` words of this process at `address`, which must be readable.
std::vector<uint64_t> read_words(uintptr_t address, int count);

}  // namespace mobilenet_ext
