// The cache of packed weights. A slot (an integer that a small Python object owns) names one packed chain; an entry is
// trusted only while every source tensor it was made from is provably unchanged.
//
// Compared on every call: the program, the instruction set, each weight's address and version counter, and every small
// or one-dimensional source by value (BN statistics change without a version). After the epoch has moved - an optimizer
// step, train()/eval(), a load, a backward - weights are compared by content as well, since fused optimizers and
// `.data` edits leave no trace. Entries hold aliases of their sources, so an address cannot be reused while it is
// remembered.
#pragma once
#include <atomic>
#include <memory>
#include <vector>

#include "cpu/run.h"
#include "tensors.h"

namespace mobilenet_ext {

struct Entry {
  PackedChain packed;
  mutable TaskCache tasks;
  std::vector<int64_t> program;
  std::vector<double> constants;

  struct Source {
    Tensor alias;
    const void* address = nullptr;
    bool by_value = false;  // compared with `copy`
    bool versioned = false;
    int64_t version = 0;
    uint64_t hash[2] = {0, 0};  // of a weight's content
    std::vector<char> copy;
  };
  std::vector<Source> sources;
  mutable std::atomic<uint64_t> epoch{0};  // the last epoch in which the contents were seen to agree
};

// The slot's entry, made anew when it does not match. Without a slot (exported programs) entries are found by the
// addresses of their sources, a bounded number of them; a transient program is packed and not kept.
std::shared_ptr<const Entry> fresh_entry(const std::vector<Tensor>& sources, const Tensor* slot,
                                         const std::vector<int64_t>& program, const std::vector<double>& constants);

// The slot's entry as it is; null when there is none for the instruction set in use.
std::shared_ptr<const Entry> trusted_entry(int64_t slot);

}  // namespace mobilenet_ext
