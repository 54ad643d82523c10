// Compiler switches for the per-ISA files.
#pragma once
#define ALWAYS_INLINE inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif
// Stops the compiler from deriving one pointer from another, which costs it registers in the k loop.
#define KEEP_IN_REGISTER(p) asm("" : "+r"(p))
// The same where a loop runs around it: what is read through the pointer is read in every turn.
#define READ_EVERY_TURN(p) asm volatile("" : "+r"(p))
