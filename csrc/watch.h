// The checks that a fused module makes on every call, in one loop: dicts hold the very objects they held, have as many
// entries, and objects have the class they had. After a network has run its weights fill the caches, so each of these
// reads waits for memory; a loop of independent reads waits for many of them at once, an interpreter for one by one.
#pragma once
#include <Python.h>

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

  Watch(std::vector<Entry> entries, std::vector<Size> sizes, std::vector<Class> classes)
      : entries_(std::move(entries)), sizes_(std::move(sizes)), classes_(std::move(classes)) {}

  bool holds() const;

 private:
  std::vector<Entry> entries_;
  std::vector<Size> sizes_;
  std::vector<Class> classes_;
};

}  // namespace mobilenet_ext
