"""The benchmark: its statistics, its rounds, its shapes, what it does with wrong and missing contenders, its output.

No test looks at a time.
"""

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mobilenet_ext._library import native
from mobilenet_ext.bench import cases, report, results, rivals, runner, shapes, statistics, timing
from mobilenet_ext.bench.accuracy import Reference
from mobilenet_ext.bench.rivals.base import Rival
from mobilenet_ext.bench.statistics import Interval
from mobilenet_ext.bench.timing import Schedule
from mobilenet_ext.cli import main

ONE_ROUND = Schedule(rounds=1, slot=1e-4, settle=0.0)
SHAPE_FILES = Path(__file__).parent.parent / "benchmarks" / "shapes"
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


# Statistics


def test_the_paired_ratio_cancels_what_slows_a_whole_round():
    noise = [1.0, 5.0, 2.0, 9.0, 1.5]
    ratio = statistics.paired_ratio([3 * n for n in noise], [2 * n for n in noise])
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((1.5, 1.5, 1.5))


def test_the_interval_is_the_bootstrap_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(3)
    values = (1 + 0.2 * torch.randn(40, generator=generator, dtype=torch.float64)).tolist()
    ours = statistics.paired_ratio(values, [1.0] * 40)
    theirs = stats.bootstrap((values,), statistics_median, method="percentile", rng=0).confidence_interval
    assert ours.low < ours.median < ours.high
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert statistics.paired_ratio(values, [1.0] * 40) == ours


def statistics_median(sample, axis=-1):
    import numpy as np

    return np.median(sample, axis=axis)


@pytest.mark.parametrize(("numerators", "denominators"), [([], []), ([1.0], [1.0, 2.0])])
def test_pairs_must_be_pairs(numerators, denominators):
    with pytest.raises(ValueError, match="equally many"):
        statistics.paired_ratio(numerators, denominators)


def test_percentiles():
    timing_ = statistics.summarise([[1.0, 2.0], [3.0, 4.0, 5.0]])
    assert (timing_.minimum, timing_.p50, timing_.calls) == (1.0, 3.0, 5)
    assert timing_.p99 == pytest.approx(4.96)
    with pytest.raises(ValueError, match="empty"):
        statistics.percentile([], 50)


# Rounds


class Clock:
    """A clock that only contenders and pauses move."""

    def __init__(self):
        self.now = 0.0
        self.order = []

    def __call__(self):
        return self.now

    def pause(self, seconds):
        self.now += seconds

    def contender(self, name, seconds):
        def call():
            self.order.append(name)
            self.now += seconds

        return call


def rounds(clock, schedule, **options):
    contenders = {name: clock.contender(name, seconds) for name, seconds in (("a", 0.01), ("b", 0.02), ("c", 0.04))}
    return timing.interleave(contenders, schedule, clock=clock, pause=clock.pause, **options)


def test_every_round_has_every_contender_once_and_the_order_rotates():
    clock = Clock()
    samples = rounds(clock, Schedule(rounds=3, slot=0.08))
    first = [name for i, name in enumerate(clock.order) if i == 0 or clock.order[i - 1] != name]
    assert "".join(first) == "bca" + "cab" + "abc"
    assert {name: [len(calls) for calls in slots] for name, slots in samples.calls.items()} == {
        "a": [8] * 3,
        "b": [4] * 3,
        "c": [3] * 3,  # at least three calls
    }
    assert samples.per_round("b") == pytest.approx([0.02] * 3)


def test_rounds_by_time_are_at_least_five_and_every_round_probes():
    peaks = iter([1.0, 7.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    parts = []
    samples = rounds(Clock(), Schedule(seconds=0.1), probe=lambda: next(peaks), progress=parts.append)
    assert samples.peaks == [1.0, 7.0, 2.0, 3.0, 4.0]
    assert samples.peak == 7.0
    assert parts == sorted(parts)
    assert parts[-1] == 1.0
    assert len(rounds(Clock(), Schedule(seconds=8.0)).peaks) > 5


def test_cold_calls_follow_a_flush_that_is_not_timed():
    clock = Clock()
    samples = rounds(clock, Schedule(rounds=1), flush=clock.contender("flush", 3.0))
    assert max(max(calls) for slots in samples.calls.values() for calls in slots) == pytest.approx(0.04)
    assert clock.order.count("flush") == len(clock.order) // 2
    assert clock.order[::2] == ["flush"] * (len(clock.order) // 2)


def test_probe_and_flush_run():
    assert timing.peak_probe(2, 1e-3)() > timing.peak_probe(1, 1e-3)() * 0.1 > 0
    timing.cache_flusher()()


# Shapes


def test_lines_of_the_paper_tables_round_trip():
    layers = shapes.paper_layers(shapes.KINDS)
    assert {layer.kind for layer in layers} >= {"pointwise", "depthwise", "separable", "block"}
    for layer in layers:
        assert shapes.parse(layer.line) == shapes.Layer(layer.item, layer.size)


@pytest.mark.parametrize(
    "line",
    [
        "dense 3->32 224x224 k3 s2 relu6",
        "depthwise 96 30x31 k5 s2 same relu",
        "depthwise 16 30x31 k3 s1 d2 none",
        "separable 32->64 9x9 k3 s1 relu6",
        "pointwise 8->8 7x7 s1 none residual",
        "block 3->32->16 224x224 expand3s2 k3 s1 relu6 project-relu",
    ],
)
def test_every_option_round_trips(line):
    assert shapes.parse(line + "  # a note").line == line
    assert shapes.parse(line + "  # a note").note == "a note"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("conv 3->32 8x8", "KIND one of dense, pointwise"),
        ("block 3->32 8x8", "N->N->N"),
        ("depthwise 0 8x8", "N above 0"),
        ("depthwise 8 8", "NxN"),
        ("depthwise 8 8x8 k0", "'k0' in line"),
        ("depthwise 8 8x8 swish", "relu6"),
    ],
)
def test_wrong_lines_say_what_is_allowed(line, message):
    with pytest.raises(ValueError, match=message):
        shapes.parse(line)


def test_a_file_names_its_wrong_line(tmp_path):
    path = tmp_path / "shapes.txt"
    path.write_text(f"# a comment\n\n{TINY}\n")
    assert [layer.line for layer in shapes.read(path)] == [TINY]
    path.write_text("# a comment\nnonsense\n")
    with pytest.raises(ValueError, match="line 2"):
        shapes.read(path)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("depthwise", ["depthwise"]), ("pointwise", ["pointwise"]), ("block", ["separable", "block"])],
)
def test_the_shape_files_are_the_layer_tables(name, kinds):
    lines = [layer.line for layer in shapes.read(SHAPE_FILES / f"{name}.txt")]
    assert lines == [layer.line for layer in shapes.paper_layers(kinds)]


def test_parts_are_the_convolutions_of_a_block():
    layer = shapes.parse("block 8->16->12 9x9 k3 s2 relu6")
    assert [part.line for part in shapes.parts(layer)] == [
        "pointwise 8->16 9x9 s1 relu6",
        "depthwise 16 9x9 k3 s2 relu6",
        "pointwise 16->12 5x5 s1 none",
    ]


def test_a_model_without_a_layer_table_says_why():
    with pytest.raises(ValueError, match="Linear has no layer table"):
        shapes.network_layers(torch.nn.Linear(2, 2), (8, 8))


# Contenders


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


# Output


def synthetic(speedup):
    timed = statistics.Timing(1e-3, 2e-3, 3e-3, 9)
    entries = (
        results.Entry("mobilenet_ext", "1", "", True, "timed", "", 1e-7, 1e-6, 0.1, timed),
        results.Entry("engine", "2", "", False, "timed", "", 1e-7, 1e-6, 0.1, timed, Interval(speedup, 0.1, 9.0)),
        results.Entry("absent", "", "", False, "missing", "absent is not installed"),
    )
    shape = (2, 3, 8, 8)
    return results.Result("net", "network", shape, 1, "avx2", 10**6, 10**5, 4e9, 5, False, {}, "", entries)


def test_where_we_lose_is_red_and_bold():
    losing = results.Report({"cpu": "x"}, {}, [synthetic(0.5), synthetic(2.0)])
    console = Console(record=True, width=120, force_terminal=True, color_system="standard", file=io.StringIO())
    report.print_report(losing, console)
    lines = [line for line in console.export_text(styles=True).splitlines() if "\x1b[31m" in line]
    assert any("0.50 [0.10, 9.00]" in line for line in lines)
    assert any("Slower: net, batch 2, 1 threads: engine" in line for line in lines)
    assert not any("2.00 [0.10, 9.00]" in line for line in lines)
    text = report.markdown(losing)
    assert "**0.50 [0.10, 9.00]**" in text
    assert "**2.00 [0.10, 9.00]**" not in text
    assert "Geometric mean over 2 configurations: 1.00" in text
    assert "Nowhere slower" in report.markdown(results.Report({}, {}, [synthetic(2.0)]))


def test_share_of_peak_and_time_per_image():
    result = synthetic(2.0)
    assert result.milliseconds(result.ours) == pytest.approx(1.0)
    assert result.share(result.ours) == pytest.approx(2e6 / 2e-3 / 4e9)
    assert report.best_rival(result).name == "engine"


ENTRY_KEYS = set(results.Entry.__dataclass_fields__) | {"milliseconds_per_image", "share_of_peak"}
RESULT_KEYS = set(results.Result.__dataclass_fields__) | {"batch"}


def reject(constant):
    raise AssertionError(f"{constant} is no JSON")


def check_schema(text):
    document = json.loads(text, parse_constant=reject)
    assert set(document) == {"schema", *results.Report.__dataclass_fields__}
    assert document["schema"] == results.SCHEMA_VERSION
    for result in document["results"]:
        assert set(result) == RESULT_KEYS
        for entry in result["entries"]:
            assert set(entry) == ENTRY_KEYS
            assert (entry["timing"] is not None) == (entry["status"] == "timed")
    return document


def test_json_has_no_nan():
    document = check_schema(results.Report({}, {}, [synthetic(2.0)]).to_json())
    assert document["results"][0]["entries"][2]["milliseconds_per_image"] is None


def test_command_on_a_shape_file(tmp_path, capsys):
    path = tmp_path / "shapes.txt"
    path.write_text(f"{TINY}\ndepthwise 8 6x6\n")
    arguments = ["bench", "--shapes", str(path), "--rounds", "1", "--threads", "1", "--batch", "1", "2"]
    assert main([*arguments, "--json", "-"]) == 0
    document = check_schema(capsys.readouterr().out)
    assert [r["case"] for r in document["results"]] == [TINY] * 2 + ["depthwise 8 6x6 k3 s1 relu6"] * 2
    assert [r["batch"] for r in document["results"]] == [1, 2, 1, 2]
    assert {"cpu", "cores", "caches", "torch", "load"} <= set(document["machine"])
    assert document["startup"] == {}
    assert main([*arguments, "--markdown", "--cold", "--rivals", "none"]) == 0
    assert "| " + TINY in capsys.readouterr().out


@pytest.mark.parametrize("name", [isa["name"] for isa in native.isas() if isa["supported"]])
def test_command_caps_the_instruction_set_for_itself_only(name, tmp_path, capsys):
    before = native.isa()
    path = tmp_path / "shapes.txt"
    path.write_text(TINY)
    arguments = ["--shapes", str(path), "--rounds", "1", "--threads", "1", "--rivals", "none", "--json", "-"]
    assert main(["bench", "--isa", name, *arguments]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["isa"] == name
    assert result["kernels"] == {f"block.{name}": 1}
    assert native.isa() == before


FACTORY = """
from mobilenet_ext.models import MobileNetV2
def build():
    return MobileNetV2(num_classes=5, alpha=0.1)
"""


def test_command_on_a_network(tmp_path, capsys, monkeypatch):
    (tmp_path / "bench_factory.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    plot = [] if not _has_matplotlib() else ["--plot", "figure.svg"]
    arguments = ["--model", "bench_factory:build", "--size", "32x33", "--rounds", "1", "--threads", "1"]
    assert main(["bench", *arguments, "--batch", "1", "2", "--rivals", "eager", "--json", "out.json", *plot]) == 0
    assert "Nowhere slower" in (out := capsys.readouterr().out) or "Slower" in out
    document = check_schema(Path("out.json").read_text())
    network = document["results"][0]
    assert network["case"] == "bench_factory:build 32x33"
    assert network["shape"] == [1, 3, 32, 33]
    assert sum(network["kernels"].values()) == 19
    (model,) = document["startup"]["models"]
    assert (model["first_call_packs"], model["second_call_packs"]) == (1, 0)
    assert document["startup"]["imports"]["import_torch"] > 0
    if plot:
        assert "Roofline" in Path("figure.svg").read_text()


def _has_matplotlib():
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--isa", "sse9"], "sse9"),
        (["--rivals", "tflite"], "rival 'tflite'; allowed: "),
        (["--model", "no_such_net"], "no model 'no_such_net'"),
        (["--shapes", "no_such_file.txt"], "no_such_file.txt"),
        (["--json", "no_such_directory/out.json"], "--json is 'no_such_directory/out.json'"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, capsys):
    assert main(["bench", *arguments, "--rounds", "1"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--size", "0"], ["--size", "3x"], ["--batch", "0"], ["--kernels", "conv"]])
def test_wrong_usage_is_status_2(arguments):
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments])
    assert ended.value.code == 2
