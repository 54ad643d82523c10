"""torch.export and AOTInductor on fused models, saved and loaded in a new process, packed once."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from fused_cases import assert_close, assert_fused_right, example, make_run, packs, plain_result, randomize
from torch import nn

from mobilenet_ext.fusion import fuse
from mobilenet_ext.models import MobileNetV2


def network() -> nn.Module:
    return fuse(randomize(MobileNetV2(num_classes=10, alpha=0.25)).eval())


def calls(program: torch.export.ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("strict", [False, True])
def test_export_is_one_call(strict: bool):
    fused, x = network(), example(1, 3, 64)
    with torch.no_grad():
        program = torch.export.export(fused, (x,), strict=strict)
    assert calls(program) == ["mobilenet_ext.chain.default"]
    assert set(program.state_dict) == set(fused.state_dict())
    assert not program.constants
    with packs(1), torch.no_grad():
        for _ in range(3):
            assert_close(program.module()(x), plain_result(fused, x))


def test_export_with_gradients_is_the_differentiable_op():
    fused, x = fuse(make_run()), example()
    program = torch.export.export(fused, (x,))
    assert [call for call in calls(program) if call.startswith("mobilenet_ext")] == [
        "mobilenet_ext.train_block.default"
    ] * 3
    program.module()(x).sum().backward()


def test_export_dynamic_batch_by_the_input_s_own_name():
    fused = fuse(make_run())
    with torch.no_grad():
        program = torch.export.export(fused, (example(2),), dynamic_shapes={"input": {0: torch.export.Dim("batch")}})
        for batch in (1, 2, 5):
            assert_close(program.module()(example(batch)), plain_result(fused, example(batch)))


def test_exported_program_sees_new_weights():
    fused, x = fuse(make_run()), example()
    with torch.no_grad():
        module = torch.export.export(fused, (x,)).module()
        before = module(x)
        for parameter in module.parameters():
            parameter.mul_(1.1)
        assert not torch.equal(module(x), before)


def run_in_a_new_process(code: str, *arguments: Path) -> None:
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], check=True)


def test_saved_program_in_a_new_process(tmp_path):
    fused, x = network(), example(1, 3, 64)
    with torch.no_grad():
        torch.export.save(torch.export.export(fused, (x,)), tmp_path / "model.pt2")
    torch.save((x, assert_fused_right(fused, x)), tmp_path / "example.pt")
    code = """
        import sys, torch, mobilenet_ext
        from mobilenet_ext import _C
        x, expected = torch.load(sys.argv[2])
        model = torch.export.load(sys.argv[1]).module()
        with torch.no_grad():
            for _ in range(3):
                assert torch.equal(model(x), expected)
        assert _C.pack_count() == 1, _C.pack_count()
    """
    run_in_a_new_process(code, tmp_path / "model.pt2", tmp_path / "example.pt")


@pytest.mark.slow
def test_ahead_of_time_package_in_a_new_process(tmp_path):
    fused, x = network(), example(1, 3, 64)
    with torch.no_grad():
        program = torch.export.export(fused, (x,))
        torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    torch.save((x, assert_fused_right(fused, x)), tmp_path / "example.pt")
    code = """
        import sys, torch, mobilenet_ext
        from mobilenet_ext import _C
        x, expected = torch.load(sys.argv[2])
        model = torch._inductor.aoti_load_package(sys.argv[1])
        for _ in range(3):
            assert torch.equal(model(x), expected)
        assert _C.pack_count() == 1, _C.pack_count()
    """
    run_in_a_new_process(code, tmp_path / "model.pt2", tmp_path / "example.pt")
