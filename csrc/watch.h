// The checks that a fused module makes on every call, in one loop: dicts hold the very objects they held, have as many
// entries, and objects have the class they had. After a network has run its weights fill the caches, so each of these
// reads waits for memory; a loop of independent reads waits for many of them at once, an interpreter for one by one.
// Up to CPython 3.11 every change of a dict gives it a new version (PEP 509), so that dicts whose versions are those of
// the last whole check need no look into their tables, which lie on hundreds of pages.
#pragma once
#include <Python.h>

#include <cstdint>
#include <vector>

namespace mobilenet_ext {

// Owns nothing: whoever makes one keeps the objects alive for as long.
class Watch {
 public:
  struct Entry {
    PyObject *dict, *key, *value;
  };
  struct Size {
    PyObject* dict;
    Py_ssize_t size;
  };
  struct Class {
    PyObject* object;
    PyTypeObject* type;
  };

  Watch(std::vector<Entry> entries, std::vector<Size> sizes, std::vector<Class> classes);

  bool holds() const;

 private:
  std::vector<Entry> entries_;
  struct Version {
    PyObject* dict;
    uint64_t seen;  // when it was last looked into
  };
  bool entries_hold() const;
  bool versions_hold() const;
  void take_versions() const;

  std::vector<size_t> firsts_;             // entries whose dict is another than that of the entry before
  mutable std::vector<Version> versions_;  // of every dict; a cache, under the interpreter's lock
  std::vector<Size> sizes_;
  std::vector<Class> classes_;
};

}  // namespace mobilenet_ext
