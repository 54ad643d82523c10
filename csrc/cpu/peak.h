// The machine's fp32 FMA rate, measured: the yardstick beside every figure.
#pragma once
namespace mobilenet_ext {

// FLOP/s of one core on the instruction set in use, the best of several short runs within about `seconds`.
double peak_flops(double seconds);

}  // namespace mobilenet_ext
