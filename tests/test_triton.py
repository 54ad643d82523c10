"""The Triton kernels without a GPU: all of them interpreted, all of them compiled, some traced into graphs."""

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

pytestmark = pytest.mark.triton
pytest.importorskip("triton", reason="needs Triton")


INTERPRETED = {"": 90, "_backward": 50, "_blocks": 65, "_chain": 10, "_gradients": 20}
"""Files of tests under the interpreter, and the least number of tests in each."""


def test_no_interpreted_file_is_left_out():
    files = {path.name for path in Path(__file__).parent.glob("triton_interpreter*.py")}
    assert files == {f"triton_interpreter{name}.py" for name in INTERPRETED}


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERPRETED)
def test_every_kernel_is_right_under_the_interpreter(name):
    """In a process of its own: the interpreter has to be chosen before Triton is imported."""
    folder = Path(__file__).parent
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    command = [sys.executable, "-m", "pytest", str(folder / f"triton_interpreter{name}.py"), *options]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) >= INTERPRETED[name]
    assert "skipped" not in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "target"), [("fp16", "sm_90"), ("fp16", "gfx942")])
def test_every_kernel_compiles_without_spills(dtype, target):
    from mobilenet_ext.backends.triton import aot

    cases = list(aot.cases(dtype))
    assert len(cases) >= 30
    for case in cases:
        usage = aot.compile_case(case, dtype, target)
        assert usage.spills == 0, (case.name, usage)
        assert aot.occupancy(usage, target) >= case.occupancy, (case.name, usage)


def test_the_register_budget_can_fail():
    """Sixteen times as many accumulators as a thread has registers must show as spills."""
    import dataclasses

    from mobilenet_ext.backends.triton import aot

    case = next(case for case in aot.cases("fp16") if case.name == "batch_norm_backward_apply")
    large = dataclasses.replace(case, constants={**case.constants, "BM": 512, "BC": 128})
    usage = aot.compile_case(large, "fp16", "sm_90")
    assert usage.spills > 0 or aot.occupancy(usage, "sm_90") < case.occupancy


def _tile(warps, constants, names):
    return (*(constants[name] for name in names), warps)


def test_every_configuration_that_dispatch_can_choose_is_compiled():
    from mobilenet_ext.backends.triton import aot, batch_norm_backward, block, depthwise, depthwise_backward, pointwise

    def compiled(kernel, *names, dtype="fp32", **where):
        return {
            _tile(case.warps, case.constants, names)
            for case in aot.cases(dtype)
            if case.kernel is kernel and where.items() <= case.constants.items()
        }

    for dtype, precisions in (("fp16", ("ieee",)), ("bf16", ("ieee",)), ("fp32", ("ieee", "tf32"))):
        for taps in (3, 5):
            for nhwc, configs in ((True, depthwise.CONFIGS_NHWC), (False, depthwise.CONFIGS_NCHW)):
                where = {"NHWC": nhwc, "KH": taps, "dtype": dtype}
                assert compiled(depthwise.depthwise_kernel, "ROWS", "BW", "BC", **where) == set(configs)
            data = compiled(depthwise_backward.backward_data_kernel, "BW", "BC", KH=taps, dtype=dtype)
            assert data == set(depthwise_backward.DATA_CONFIGS)
        apply = compiled(batch_norm_backward.apply_kernel, "BM", "BC", dtype=dtype)
        assert apply == set(batch_norm_backward.APPLY_CONFIGS)
        for precision in precisions:
            where = {"PRECISION": precision, "dtype": dtype}
            assert compiled(pointwise.pointwise_kernel, "BM", "BN", "BK", **where) == set(pointwise.CONFIGS)
            assert compiled(block.inverted_residual_kernel, "BM", "BC", "BO", **where) == set(block.BLOCK_CONFIGS)
            project = compiled(block.depthwise_project_kernel, "BM", "BC", BO=block.WIDEST_OUTPUT, **where)
            assert project == {(bm, bc, many) for bm, bc, _, many in block.PROJECT_CONFIGS}


def test_what_is_launched_for_wide_layers_is_compiled(monkeypatch):
    import torch

    from mobilenet_ext.backends.triton import aot, block, common, pointwise
    from mobilenet_ext.backends.triton.block import Stage

    launched = []
    names = ("BM", "BN", "BC", "BO", "BK", "PRECISION")

    def tile(warps, constants):
        return (*(constants.get(name) for name in names), warps)

    def record(kernel, programs, *args, warps=4, stages=3, **constants):
        launched.append((kernel, tile(warps, constants)))

    monkeypatch.setattr(common, "launch", record)
    monkeypatch.setattr(common, "precision", lambda dtype: "ieee")
    x = torch.empty(1, 160, 7, 7, device="meta").to(memory_format=torch.channels_last)
    hidden = torch.empty(1, 960, 7, 7, device="meta").to(memory_format=torch.channels_last)
    vector, geometry = torch.empty(960, device="meta"), common.Geometry((3, 3), (1, 1), (1, 1), 1, 1, 7, 7)
    expand, middle, project = (
        Stage(torch.empty(shape, device="meta"), vector, vector, "relu6")
        for shape in ((160, 960), (3, 3, 960), (960, 320))
    )
    for config in range(len(pointwise.CONFIGS)):
        pointwise.pointwise(x, expand.weight, vector, vector, "relu6", None, config)
    for config in range(len(block.PROJECT_CONFIGS)):
        block.depthwise_project(hidden, middle, project, geometry, None, config)
    for config in range(len(block.BLOCK_CONFIGS)):
        block.inverted_residual(x, expand, middle, project, geometry, False, config)
    compiled = [(case.kernel, tile(case.warps, case.constants)) for case in aot.cases("fp32")]
    assert len(launched) == len(pointwise.CONFIGS) + len(block.PROJECT_CONFIGS) + len(block.BLOCK_CONFIGS)
    assert [entry for entry in launched if entry not in compiled] == []


def test_every_kernel_states_its_occupancy():
    from mobilenet_ext.backends.triton import aot, depthwise, depthwise_backward, pointwise

    assert {case.occupancy for case in aot.cases("fp32")} >= {0.125, 0.25, 0.375, 0.5, 1.0}
    assert aot.stated_occupancy(depthwise.depthwise_kernel, 5) == 0.375
    assert aot.stated_occupancy(pointwise.pointwise_kernel, None) == 0.125
    with pytest.raises(ValueError, match="backward_data_kernel states no occupancy for 7x7 taps"):
        aot.stated_occupancy(depthwise_backward.backward_data_kernel, 7)


@pytest.mark.parametrize("name", ["depthwise", "pointwise", "depthwise_backward_weight"])
def test_compiled_graphs_contain_the_launches(name, monkeypatch):
    """Traced with fake CUDA tensors: the graph holds the Triton kernels themselves, not a call that hides them."""
    import torch
    import triton
    from torch._functorch.aot_autograd import aot_export_joint_simple
    from torch._subclasses import FakeTensorMode

    from mobilenet_ext.backends.triton import aot, operators
    from mobilenet_ext.backends.triton.common import Geometry

    if torch.version.cuda is None:
        pytest.skip("needs a torch with CUDA")
    # Tracing asks which GPU it compiles for, to see what a kernel writes.
    driver = types.SimpleNamespace(get_current_target=lambda: aot.TARGETS["sm_90"])
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    geometry = operators.flatten(Geometry((3, 3), (1, 1), (1, 1), 1, 1, 8, 8))
    with FakeTensorMode():
        x = torch.empty(2, 16, 8, 8, device="cuda", dtype=torch.float16).to(memory_format=torch.channels_last)
        weight, vector = torch.empty(3, 3, 16, device="cuda", dtype=torch.float16), torch.empty(16, device="cuda")
        matrix = torch.empty(16, 16, device="cuda", dtype=torch.float16)
        calls = {
            "depthwise": (lambda x, w, v: (operators.depthwise(x, w, v, v, geometry, 2),), (x, weight, vector), 1),
            "pointwise": (lambda x, w, v: (operators.pointwise(x, w, v, v, 0, None),), (x, matrix, vector), 1),
            "depthwise_backward_weight": (
                lambda x, y: (operators.depthwise_backward_weight(x, y, geometry),), (x, x.clone()), 2
            ),
        }  # fmt: skip
        call, arguments, launches = calls[name]
        graph = aot_export_joint_simple(call, arguments, trace_joint=False)
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert sum("triton_kernel_wrapper" in target for target in targets) == launches, targets
    assert not any("mobilenet_ext" in target for target in targets), targets
