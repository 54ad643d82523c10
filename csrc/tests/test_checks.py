"""Tests of the checks themselves, on small listings with planted faults.  Run by ctest."""

from __future__ import annotations

import shutil
import tempfile
import unittest
from pathlib import Path

import check_instructions
import check_spills
import check_symbols
import cuda_resources

TABLE = "0000000000000000 D mobilenet_ext_isa_avx2\n0000000000000010 t (anonymous namespace)::depthwise_row()\n"

X86 = """
0000000000000000 <void (anonymous namespace)::gemm_tile<6>()>:
   0:\tpush   %rbp
   1:\tmov    %rsp,%rbp
   4:\tvmovups 0x20(%rsp),%zmm0
   8:\tvfmadd231ps %zmm1,%zmm2,%zmm3
   c:\tvfmadd231ps (%rdi),%zmm2,%zmm3
  10:\tvfmadd231ps %zmm1,%zmm2,%zmm3
  14:\t{inside}
  18:\tvfmadd231ps %zmm1,%zmm2,%zmm3
  1c:\tjne    8 <void (anonymous namespace)::gemm_tile<6>()+0x8>
  20:\tdec    %rax
  24:\tjne    4 <void (anonymous namespace)::gemm_tile<6>()+0x4>
  28:\tret
"""

ARM = """
0000000000000000 <void (anonymous namespace)::gemm_tile<6>()>:
   0:\tmov\tx29, sp
   4:\tfmla\tv1.4s, v2.4s, v3.s[0]
   8:\tfmla\tv1.4s, v2.4s, v3.s[1]
   c:\tfmla\tv1.4s, v2.4s, v3.s[2]
  10:\tfmla\tv1.4s, v2.4s, v3.s[3]
  14:\t{inside}
  18:\tcbnz\tx0, 4 <void (anonymous namespace)::gemm_tile<6>()+0x4>
"""


class Symbols(unittest.TestCase):
    def test_the_table_alone_is_fine(self) -> None:
        self.assertEqual(check_symbols.leaks(TABLE + "                 U memcpy\n", "isa_avx2"), [])

    def test_weak_global_and_unique_symbols_are_leaks(self) -> None:
        for kind in "WVuTBi":
            self.assertEqual(
                len(check_symbols.leaks(TABLE + f"0000000000000020 {kind} std::max()\n", "isa_avx2")), 1, kind
            )

    def test_the_table_must_be_there_and_be_this_isas(self) -> None:
        self.assertIn("0 kernel tables", check_symbols.leaks("", "isa_avx2")[0])
        self.assertEqual(len(check_symbols.leaks(TABLE, "isa_avx512")), 2)


class Spills(unittest.TestCase):
    def spills(self, listing: str, inside: str, arch: str) -> tuple[int, int]:
        (body,) = check_spills.functions(listing.replace("{inside}", inside)).values()
        loops, found = check_spills.spills(body, check_spills.ARCHES[arch])
        return loops, len(found)

    def test_x86(self) -> None:
        self.assertEqual(self.spills(X86, "add $4,%rdi", "x86_64"), (1, 0))
        self.assertEqual(self.spills(X86, "mov 0x8(%rsp),%rax", "x86_64"), (1, 0))
        self.assertEqual(self.spills(X86, "vmovaps %zmm4,0x40(%rsp)", "x86_64"), (1, 1))
        self.assertEqual(self.spills(X86, "vmovups -0x40(%rbp),%ymm4", "x86_64"), (1, 1))
        self.assertEqual(self.spills(X86, "vfmadd231ps 0x40(%rsp,%rax,1),%zmm1,%zmm2", "x86_64"), (1, 1))

    def test_aarch64(self) -> None:
        self.assertEqual(self.spills(ARM, "ldr\tx1, [sp, #16]", "aarch64"), (1, 0))
        self.assertEqual(self.spills(ARM, "ldr\tq4, [x1, #16]", "aarch64"), (1, 0))
        self.assertEqual(self.spills(ARM, "ldr\tq4, [sp, #16]", "aarch64"), (1, 1))
        self.assertEqual(self.spills(ARM, "stp\tq4, q5, [x29, #32]", "aarch64"), (1, 1))

    def test_a_loop_with_few_fmas_is_not_hot(self) -> None:
        listing = X86.replace("vfmadd231ps", "vaddps", 1)
        self.assertEqual(self.spills(listing, "vmovaps %zmm4,0x40(%rsp)", "x86_64"), (0, 0))


class Instructions(unittest.TestCase):
    ALLOWED = check_instructions.read("# comment\navx2 block 2.000\n")

    def test_more_instructions_are_found(self) -> None:
        self.assertEqual(check_instructions.failures({"avx2 block": 2.1}, self.ALLOWED), [])
        (line,) = check_instructions.failures({"avx2 block": 2.2}, self.ALLOWED)
        self.assertIn("2.200 instructions per vector multiply-add", line)

    def test_blocks_without_a_figure_and_figures_without_a_block(self) -> None:
        lines = check_instructions.failures({"avx2 other": 2.0}, self.ALLOWED)
        self.assertEqual([line.split(":")[0] for line in lines], ["avx2 other", "avx2 block"])


@unittest.skipIf(shutil.which("c++filt") is None, "needs c++filt")
class CudaKernels(unittest.TestCase):
    """Compiled kernels are those that the emulation knows, without spills."""

    NAME = "depthwise_kernel<half, 8, 3, 1>"

    def faults(self, expected: str, spilled: int = 0) -> list[str]:
        log = (
            "ptxas info    : Compiling entry function "
            "'_ZN13mobilenet_ext4cuda16depthwise_kernelI6__halfLi8ELi3ELi1EEEvNS0_16DepthwiseForwardE' for 'sm_90'\n"
            f"    0 bytes stack frame, {spilled} bytes spill stores, 0 bytes spill loads\n"
            "ptxas info    : Used 88 registers, used 1 barriers\n"
        )
        with tempfile.TemporaryDirectory() as folder:
            path, names = Path(folder, "kernels_sm_90.log"), Path(folder, "kernels.txt")
            path.write_text(log)
            names.write_text(expected + "\n")
            return cuda_resources.faults(path, cuda_resources.listed(names))

    def test_what_the_emulation_knows(self) -> None:
        self.assertEqual(self.faults("depthwise_kernel<Half, 8, 3, 1>"), [])

    def test_a_kernel_that_it_does_not_know_and_one_that_is_not_compiled(self) -> None:
        first, second = self.faults("depthwise_kernel<BFloat16, 8, 3, 1>")
        self.assertIn(f"{self.NAME} is compiled, but the emulation does not know it", first)
        self.assertIn("depthwise_kernel<bf16, 8, 3, 1> is not compiled", second)

    def test_spills(self) -> None:
        (line,) = self.faults("depthwise_kernel<Half, 8, 3, 1>", 16)
        self.assertIn(f"{self.NAME} spills 16 bytes", line)


if __name__ == "__main__":
    unittest.main()
