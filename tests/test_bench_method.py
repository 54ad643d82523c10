"""The benchmark's method: its statistics, its rounds, its shapes.  No test looks at a time."""

from pathlib import Path

import pytest
import torch

from mobilenet_ext.bench import cases, results, runner, shapes, statistics, timing
from mobilenet_ext.bench.timing import Schedule

SHAPE_FILES = Path(__file__).parent.parent / "benchmarks" / "shapes"
TINY = "block 8->16->8 6x5 k3 s1 relu6 residual"


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
    assert samples.peaks == [1.0, 7.0, 2.0, 3.0, 4.0, 5.0]
    assert (samples.peak, samples.rounds) == (7.0, 5)
    assert samples.quiet == []  # the highest peak stood at the edge of two rounds only
    assert parts == sorted(parts)
    assert parts[-1] == 1.0
    assert rounds(Clock(), Schedule(seconds=8.0)).rounds > 5


def test_a_round_is_quiet_if_the_peak_is_nearly_reached_on_both_sides():
    peaks = iter([96.0, 100.0, 94.0, 99.0, 98.0])
    samples = rounds(Clock(), Schedule(rounds=4), probe=lambda: next(peaks))
    assert samples.quiet == [0, 3]
    assert rounds(Clock(), Schedule(rounds=4)).quiet == []  # nothing known without a probe


def test_quiet_rounds_have_a_ratio_of_their_own_if_there_are_enough():
    entry = results.Entry("rival", "1", "", False, results.TIMED)
    calls = {"rival": [[3.0]] * 5 + [[1.0]] * 7, results.OURS: [[1.0]] * 12}
    for peaks, expected in (([9.0] * 6 + [5.0] * 6, 3.0), ([9.0] * 5 + [5.0] * 7, None)):
        timed = runner._with_times(entry, timing.Samples(calls, [*peaks, 5.0]))
        assert timed.speedup.median == 1.0
        assert (timed.quiet_speedup and timed.quiet_speedup.median) == expected


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


@pytest.mark.parametrize("name", ["mobilenetv4_conv_small", "efficientnet_b0"])
def test_layers_of_other_networks_can_be_timed(name):
    timm = pytest.importorskip("timm")
    layers = shapes.network_layers(timm.create_model(name).eval(), (64, 64))
    assert any(layer.item.squeezed for layer in layers) == (name == "efficientnet_b0")
    assert not any(layer.item.residual_back for layer in layers)  # alone, a layer has no earlier input
    for layer in {layer.line: layer for layer in layers}.values():
        case = cases.layer_case(layer)
        wanted = 1 if layer.item.squeezed or layer.item.kind == "conv" else 2
        assert len(case.ours) == wanted, layer.line
        model = cases.PlainLayer(layer.item).eval()
        y = model(torch.randn(1, layer.item.in_channels, *layer.size))
        assert y.shape[1] == layer.item.out_channels
