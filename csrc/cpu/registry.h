// The ordered list of instruction sets, best first, and which one is in use.
#pragma once
#include <string>
#include <vector>

#include "kernel_table.h"
#include "train_table.h"

namespace mobilenet_ext {

struct Isa {
  const IsaTable* table;
  const TrainTable* train;
  const char* description;
  const char* needs;  // what the CPU must have, for people
  bool supported;     // by this CPU and operating system
};

// Every instruction set compiled into this library.
const std::vector<Isa>& isas();

// The best supported instruction set at or below the cap.
const IsaTable& active_isa();

// The training kernels of an instruction set.
const TrainTable& train_table(const IsaTable& isa);

// Whether somebody chose: with MOBILENET_EXT_ISA or set_isa_cap. Scalar kernels run only then (dispatch prefers
// PyTorch).
bool isa_is_capped();

// Cap dispatch at a named instruction set; empty removes the cap. Throws std::invalid_argument with the valid names.
// MOBILENET_EXT_ISA sets the first cap; a bad value there throws on the first use.
void set_isa_cap(const std::string& name);

}  // namespace mobilenet_ext
