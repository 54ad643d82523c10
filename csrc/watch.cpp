#include "watch.h"

#include <cstdint>

namespace mobilenet_ext {
namespace {

constexpr size_t kAhead = 12;  // entries between asking for a line and reading it
constexpr uintptr_t kLine = 64;

void ask(const void* p, int lines) {
  for (int i = 0; i < lines; ++i) __builtin_prefetch(static_cast<const char*>(p) + i * kLine);
}

// The fields of a small object that may be pointers: for a tensor its implementation, which the version and address
// checks read next. A prefetch of something else has no effect.
void ask_for_fields(PyObject* object) {
  const auto* words = reinterpret_cast<const uintptr_t*>(object);
  constexpr size_t kFirst = sizeof(PyObject) / sizeof(uintptr_t), kFields = 3;
  const size_t count = static_cast<size_t>(Py_TYPE(object)->tp_basicsize) / sizeof(uintptr_t);
  for (size_t i = kFirst; i < kFirst + kFields && i < count; ++i) {
    if (words[i] % sizeof(uintptr_t) == 0) ask(reinterpret_cast<const void*>(words[i]), 4);
  }
}

}  // namespace

bool Watch::holds() const {
  for (size_t i = 0; i < classes_.size(); ++i) {
    if (i + kAhead < classes_.size()) ask(classes_[i + kAhead].object, 1);
    if (Py_TYPE(classes_[i].object) != classes_[i].type) return false;
  }
  for (size_t i = 0; i < sizes_.size(); ++i) {
    if (i + kAhead < sizes_.size()) ask(sizes_[i + kAhead].dict, 1);
    if (PyDict_GET_SIZE(sizes_[i].dict) != sizes_[i].size) return false;
  }
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (i + 2 * kAhead < entries_.size()) {
      ask(entries_[i + 2 * kAhead].dict, 1);
      ask(entries_[i + 2 * kAhead].value, 1);
    }
    if (i + kAhead < entries_.size()) {
      // A dict's fields lead to its table.
      ask_for_fields(entries_[i + kAhead].dict);
      ask_for_fields(entries_[i + kAhead].value);
    }
    const Entry& e = entries_[i];
    if (PyDict_GetItemWithError(e.dict, e.key) != e.value) {
      PyErr_Clear();
      return false;
    }
  }
  return true;
}

}  // namespace mobilenet_ext
