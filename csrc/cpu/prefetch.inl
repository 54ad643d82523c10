// What asks for memory ahead of its use: the walks over channels_last memory have too many streams for the processor to
// see them coming. Included by the per-ISA files.
#pragma once
namespace {

ALWAYS_INLINE void prefetch_l1(const float* p) { __builtin_prefetch(p, 0, 3); }
ALWAYS_INLINE void prefetch_l1_to_write(const float* p) { __builtin_prefetch(p, 1, 3); }
ALWAYS_INLINE void prefetch_l2(const float* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace
