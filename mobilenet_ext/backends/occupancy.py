"""How many blocks of a kernel fit on a streaming multiprocessor: arithmetic on what the compiler reports.

Limits per architecture: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
"""

from __future__ import annotations

from dataclasses import dataclass

_REGISTERS = 65536
_REGISTER_UNIT = 256  # registers are given to warps in units of this many
_SHARED_RESERVED = 1024  # bytes of shared memory that the system takes per block
_WARPS = 64
_BLOCKS = 32
SHARED_PER_MULTIPROCESSOR = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}  # bytes
_CDNA_REGISTERS, _CDNA_WAVES, _CDNA_SHARED = 512, 8, 64 * 1024  # per lane and SIMD unit, per SIMD unit, per CU


@dataclass(frozen=True)
class Usage:
    """What one compiled kernel needs.

    ``shared`` is in bytes per block; ``spills`` counts bytes of local memory per thread (on AMD: spilled registers).
    """

    registers: int
    shared: int
    spills: int
    threads: int

    def blocks(self, arch: int) -> int:
        """Blocks per multiprocessor of compute capability ``arch`` (80, 90 or 100)."""
        warps = -(-self.threads // 32)
        per_warp = -(-self.registers * 32 // _REGISTER_UNIT) * _REGISTER_UNIT
        by_registers = _REGISTERS // per_warp // warps
        by_shared = SHARED_PER_MULTIPROCESSOR[arch] // (self.shared + _SHARED_RESERVED)
        return min(by_registers, by_shared, _WARPS // warps, _BLOCKS)

    def occupancy_cdna3(self) -> float:
        """Resident wavefronts over the 32 that a compute unit of AMD's CDNA 3 (gfx942) can hold, four SIMD units."""
        waves = min(_CDNA_WAVES, _CDNA_REGISTERS // max(8, -(-self.registers // 8) * 8))
        by_shared = _CDNA_SHARED // self.shared * (self.threads // 64) if self.shared else 4 * _CDNA_WAVES
        return min(4 * waves, by_shared) / (4 * _CDNA_WAVES)

    def occupancy(self, arch: int) -> float:
        """Resident warps over the 64 that a multiprocessor can hold."""
        return self.blocks(arch) * -(-self.threads // 32) / _WARPS
