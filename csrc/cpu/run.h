// Run a packed chain.
#pragma once
#include <functional>
#include <map>
#include <string>

#include "tasks.h"
#include "workers.h"

namespace mobilenet_ext {

void run_chain(const PackedChain& chain, TaskCache& cache, const Input& in, const Output& out, int threads,
               const Parallel& parallel);

// How often each kind of kernel ran since the last reset: "block", "conv", "linear", and the same with ".<isa>".
std::map<std::string, int64_t> counters();
void reset_counters();
// Counts one more run of a kind on an instruction set.
void count_run(const char* kind, const char* isa);

// One line per item and call on stderr; MOBILENET_EXT_VERBOSE sets it at start.
void set_verbose(bool on);

}  // namespace mobilenet_ext
