#include "watch.h"

#include <algorithm>
#include <cstdint>

namespace mobilenet_ext {
namespace {

constexpr size_t kAhead = 12;  // objects between asking for a line and reading it
constexpr uintptr_t kLine = 64;

// A version that no dict has: CPython counts from 1.
constexpr uint64_t kNever = 0;

#if PY_VERSION_HEX < 0x030c0000 && !defined(PYPY_VERSION)
constexpr bool kHasVersions = true;
uint64_t version_of(PyObject* dict) { return reinterpret_cast<PyDictObject*>(dict)->ma_version_tag; }
#else
constexpr bool kHasVersions = false;
uint64_t version_of(PyObject*) { return kNever; }
#endif

void ask(const void* p, int lines) {
  for (int i = 0; i < lines; ++i) __builtin_prefetch(static_cast<const char*>(p) + i * kLine);
}

// The fields of a dict that may be pointers: to its table and to its values. A prefetch of something else has no
// effect.
void ask_for_tables(PyObject* dict) {
  const auto* words = reinterpret_cast<const uintptr_t*>(dict);
  constexpr size_t kFirst = sizeof(PyObject) / sizeof(uintptr_t), kFields = 4;
  for (size_t i = kFirst; i < kFirst + kFields; ++i) {
    if (words[i] % sizeof(uintptr_t) == 0 && words[i] > kLine) ask(reinterpret_cast<const void*>(words[i]), 8);
  }
}

}  // namespace

Watch::Watch(std::vector<Entry> entries, std::vector<Size> sizes, std::vector<Class> classes)
    : entries_(std::move(entries)), sizes_(std::move(sizes)), classes_(std::move(classes)) {
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (i == 0 || entries_[i].dict != entries_[i - 1].dict) firsts_.push_back(i);
  }
  if (!kHasVersions) return;
  for (size_t first : firsts_) versions_.push_back({entries_[first].dict, kNever});
  for (const Size& s : sizes_) versions_.push_back({s.dict, kNever});
  // In the order of memory, each once.
  std::sort(versions_.begin(), versions_.end(), [](const Version& a, const Version& b) { return a.dict < b.dict; });
  const auto same = [](const Version& a, const Version& b) { return a.dict == b.dict; };
  versions_.erase(std::unique(versions_.begin(), versions_.end(), same), versions_.end());
}

bool Watch::versions_hold() const {
  for (size_t i = 0; i < versions_.size(); ++i) {
    if (i + kAhead < versions_.size()) ask(versions_[i + kAhead].dict, 1);
    if (version_of(versions_[i].dict) != versions_[i].seen) return false;
  }
  return !versions_.empty();
}

void Watch::take_versions() const {
  for (Version& v : versions_) v.seen = version_of(v.dict);
}

bool Watch::entries_hold() const {
  for (size_t i = 0; i < sizes_.size(); ++i) {
    if (i + kAhead < sizes_.size()) ask(sizes_[i + kAhead].dict, 1);
    if (PyDict_GET_SIZE(sizes_[i].dict) != sizes_[i].size) return false;
  }
  // Values are compared, not read.
  for (size_t d = 0; d < firsts_.size(); ++d) {
    if (d + 2 * kAhead < firsts_.size()) ask(entries_[firsts_[d + 2 * kAhead]].dict, 1);
    if (d + kAhead < firsts_.size()) ask_for_tables(entries_[firsts_[d + kAhead]].dict);
    const size_t end = d + 1 < firsts_.size() ? firsts_[d + 1] : entries_.size();
    for (size_t i = firsts_[d]; i < end; ++i) {
      const Entry& e = entries_[i];
      if (PyDict_GetItemWithError(e.dict, e.key) != e.value) {
        PyErr_Clear();
        return false;
      }
    }
  }
  return true;
}

bool Watch::holds() const {
  for (size_t i = 0; i < classes_.size(); ++i) {
    if (i + kAhead < classes_.size()) ask(classes_[i + kAhead].object, 1);
    if (Py_TYPE(classes_[i].object) != classes_[i].type) return false;
  }
  if (versions_hold()) return true;
  // Taken first: whatever changes meanwhile is then seen by the next call.
  take_versions();
  if (entries_hold()) return true;
  for (Version& v : versions_) v.seen = kNever;
  return false;
}

}  // namespace mobilenet_ext
