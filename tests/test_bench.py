"""What the benchmark does with contenders: verified before timing, wrong and missing ones named, threads set."""

import sys

import pytest
import torch

from mobilenet_ext._library import native
from mobilenet_ext.bench import cases, report, results, rivals, runner, shapes
from mobilenet_ext.bench.accuracy import Reference
from mobilenet_ext.bench.rivals.base import Rival
from mobilenet_ext.bench.timing import Schedule

ONE_ROUND = Schedule(rounds=1, slot=1e-4, settle=0.0)
TINY = "block 8->16->8 6x5 k3 s1 relu6 residual"


@pytest.fixture
def tiny():
    return cases.layer_case(shapes.parse(TINY))


def run_once(case, *others, batch=2):
    plan = runner.Plan((batch,), (1,), others, ONE_ROUND)
    (result,) = runner.run(case, plan)
    return result


def rival(name, answer, calls=None, **options):
    def load(model, example, threads):
        def call():
            if calls is not None:
                calls.append(name)
            return answer(model, example)

        return call

    return Rival(name, "", ("torch",), load, **options)


def test_rivals_by_name():
    assert [r.name for r in rivals.select("default")] == list(rivals.DEFAULT)
    assert rivals.select("all") == rivals.RIVALS
    assert rivals.select("none") == ()
    assert [r.name for r in rivals.select("eager, torch.jit,eager")] == ["eager", "torch.jit"]
    with pytest.raises(ValueError, match="'tflite'; allowed: default, all, none, eager, "):
        rivals.select("tflite")


def test_a_result_names_kernels_and_errors(tiny):
    result = run_once(tiny, *rivals.select("eager,eager channels_last,torch.jit"))
    assert [(e.name, e.status) for e in result.entries] == [
        ("mobilenet_ext", "timed"),
        ("by convolution", "timed"),
        ("eager", "timed"),
        ("eager channels_last", "timed"),
        ("torch.jit", "timed"),
    ]
    assert result.kernels == {f"block.{native.isa()}": 1}
    assert result.choice.startswith("block/")
    assert result.shape == (2, 8, 6, 5)
    assert result.multiply_adds == 2 * 30 * (8 * 16 + 9 * 16 + 16 * 8)
    assert result.bytes == 4 * (2 * 2 * 8 * 30 + 8 * 16 + 9 * 16 + 16 * 8 + 16 + 16 + 8)
    assert 0 < max(e.relative_error for e in result.entries) < 1e-6
    assert result.ours.speedup is None
    assert all(e.speedup for e in result.entries[1:])


def test_a_wrong_result_is_reported_and_not_timed(tiny):
    calls = []
    wrong = {
        "off": lambda model, x: model(x) + 0.01,
        "bf16": lambda model, x: model(x).bfloat16().float(),
        "nan": lambda model, x: model(x) * float("nan"),
        "shape": lambda model, x: model(x)[:1],
    }
    result = run_once(tiny, *(rival(name, answer, calls) for name, answer in wrong.items()))
    entries = {entry.name: entry for entry in result.entries}
    for name in wrong:
        assert entries[name].status == "wrong", name
        assert entries[name].reason.startswith("wrong result: ")
        assert entries[name].timing is entries[name].speedup is None
    assert calls == list(wrong)  # once each, for the check
    assert entries["mobilenet_ext"].timing is not None
    assert not results.Report({}, {}, [result]).wrong


def test_a_wrong_result_of_ours_is_held_to_the_projects_tolerance(tiny):
    half = rival("mobilenet_ext", lambda model, x: model(x.half().float()), is_ours=True)
    case = cases.Case(**{**vars(tiny), "ours": (half,)})
    result = run_once(case, *rivals.select("eager"))
    assert [entry.status for entry in result.entries] == ["wrong", "timed"]
    assert result.entries[1].speedup is None
    assert results.Report({}, {}, [result]).wrong


def test_what_is_missing_or_fails_is_named(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    def fail(model, x):
        raise RuntimeError("no such instruction\nand more")

    result = run_once(tiny, *rivals.select("onnxruntime"), rival("broken", fail))
    missing, broken = result.entries[-2:]
    assert (missing.status, broken.status) == ("missing", "failed")
    assert missing.reason == "onnxruntime is not installed; mobilenet_ext[bench] brings it"
    assert broken.reason == "RuntimeError: no such instruction"
    text = report.markdown(results.Report({}, {}, [result]))
    assert "Not compared with onnxruntime: missing, onnxruntime is not installed" in text


def test_rivals_for_large_batches_only_stay_out_of_small_ones(tiny):
    large = rival("large", lambda model, x: model(x), smallest_batch=2)
    assert [e.name for e in run_once(tiny, large, batch=1).entries] == ["mobilenet_ext", "by convolution"]
    assert [e.name for e in run_once(tiny, large, batch=2).entries][-1] == "large"


def test_threads_are_set_for_the_rounds_and_restored(tiny):
    seen = []
    spy = rival("spy", lambda model, x: seen.append(torch.get_num_threads()) or model(x))
    before = torch.get_num_threads()
    plan = runner.Plan((1,), (1, 2), (spy,), ONE_ROUND)
    assert [result.threads for result in runner.run(tiny, plan)] == [1, 2]
    assert set(seen) == {1, 2}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "line",
    [
        "dense 3->8 9x9 k3 s2 relu6",
        "pointwise 8->8 5x5 none residual",
        "pointwise 8->24 5x5 relu6 pool",
        "depthwise 8 9x8 k5 s2 same relu",
        "separable 8->16 6x6 relu6",
        "block 3->8->16 9x9 expand3s2 k3 s1 relu6 project-relu6",
    ],
)
def test_every_kind_of_layer_is_right(line):
    result = run_once(cases.layer_case(shapes.parse(line)))
    assert {entry.status for entry in result.entries} == {"timed"}, result.entries


def test_the_reference_is_float64_for_every_image_of_the_batch():
    layer = cases.PlainLayer(shapes.parse("depthwise 8 5x5").item).eval()
    example = torch.randn(11, 8, 5, 5)
    with torch.no_grad():
        reference = Reference.of(layer, example)
        assert reference.output.dtype is torch.float64
        right = layer(example)
    assert reference.judge(right, strict=True).reason == ""
    assert reference.judge(right.numpy(), strict=True).reason == ""
    right[10, 7, 4, 4] += 1.0
    assert "wrong result" in reference.judge(right, strict=False).reason
