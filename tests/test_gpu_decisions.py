"""What a kept decision is for: nothing that was found out on one kind of call is used on another."""

from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from test_gpu_choice import SPEC, Fakes, X, _own_cache, make_runtime, packed_item  # noqa: F401

from mobilenet_ext.backends.gpu import choices, packing, plans, precision, trial
from mobilenet_ext.backends.gpu import runtime as runtime_module
from mobilenet_ext.backends.gpu.plans import Candidate
from mobilenet_ext.spec import BlockSpec, ConvSpec

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")


def test_the_second_call_decides_nothing(monkeypatch):
    fakes = Fakes(**{"cuda.a": 0.5})
    runtime, packed = make_runtime(fakes), packed_item()
    runtime.run_item(packed, X)

    def fails(*args):
        raise AssertionError("asked again")

    for name in ("list_candidates", "backends", "capturing", "choices_of"):
        monkeypatch.setattr(runtime, name, fails)
    monkeypatch.setattr(runtime_module, "shape_key", fails)
    calls = len(fakes.calls)
    runtime.run_item(packed, torch.randn_like(X))
    runtime.run_item(packed_item(), X)  # packed again, as after every step of an optimizer
    assert fakes.calls[calls:] == ["cuda.a"] * 2


def _offset(x):
    """The same values and strides, off a multiple of 16 bytes."""
    return torch.cat([torch.zeros(1, dtype=x.dtype), x.flatten()])[1:].view(x.shape)


OTHERS = {
    "batch of the same class": lambda x: torch.randn(4, *x.shape[1:]),
    "size": lambda x: torch.randn(3, 8, 6, 6),
    "layout": lambda x: x.to(memory_format=torch.channels_last),
    "dtype": lambda x: x.half(),
    "alignment": _offset,
    "slice": lambda x: torch.randn(6, *x.shape[1:])[::2],
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_decision_is_for_exactly_this_kind_of_image(name):
    """In a capture only what has run just so may run: Triton would compile for another size or alignment."""
    fakes = Fakes(**{"cuda.a": 0.5})
    runtime = make_runtime(fakes)
    runtime.run_item(packed_item(), X)
    calls, other = len(fakes.calls), OTHERS[name](X)
    runtime.capturing = lambda x: True
    runtime.run_item(packed_item(other.dtype), other)
    assert fakes.calls[calls:] == []
    runtime.run_item(packed_item(), torch.randn_like(X))
    assert fakes.calls[calls:] == ["cuda.a"]


def test_a_decision_is_for_one_item_mode_and_tf32_state(monkeypatch):
    fakes = Fakes(**{"cuda.a": 0.5})
    runtime, packed = make_runtime(fakes), packed_item()
    runtime.run_item(packed, X)
    runtime.capturing = lambda x: True
    calls = len(fakes.calls)
    relu = BlockSpec(depthwise=replace(SPEC.depthwise, activation="relu"))
    runtime.run_item(packing.pack((relu,), [torch.randn(8, 1, 3, 3)], torch.float32)[0], X)
    with monkeypatch.context() as patch:
        patch.setattr(precision, "matmul_tf32", lambda: not torch.backends.cuda.matmul.allow_tf32)
        runtime.run_item(packed, X)
    with monkeypatch.context() as patch:
        patch.setenv("MOBILENET_EXT_GPU", "trust")
        runtime.run_item(packed, X)
    assert fakes.calls[calls:] == []
    assert runtime.counters["aten"] == 3


class OnDevice:
    """A tensor's stand-in that says it lies on some GPU: what the runtime asks before a kernel runs."""

    def __init__(self, x, index):
        self._x, self.device = x, torch.device("cuda", index)

    def __getattr__(self, name):
        return getattr(self._x, name)


def test_what_one_gpu_decided_is_nothing_to_another(monkeypatch):
    """Two GPUs of one machine, each with a kernel that is wrong on the other."""
    packed = packed_item()
    runtime = make_runtime(Fakes())
    here = {0: "cuda.a", 1: "triton.b"}
    runtime.list_candidates = lambda packed, x, backends: [
        Candidate(name, lambda p, x, name=name: name) for name in here.values()
    ]
    monkeypatch.setattr(runtime_module, "try_out", lambda packed, x, *rest: trial.Verdict(here[x.device.index]))
    monkeypatch.setattr(choices, "fingerprint", str)
    first, second = OnDevice(X, 0), OnDevice(X, 1)
    for capturing in (False, True):
        runtime.capturing = lambda x, capturing=capturing: capturing
        assert [runtime.run_item(packed, x) for x in (first, second, first)] == ["cuda.a", "triton.b", "cuda.a"]
    assert [runtime.verdict_on(SPEC, x).choice for x in (first, second)] == ["cuda.a", "triton.b"]
    assert runtime.choices_of(first.device).path != runtime.choices_of(second.device).path


@pytest.mark.parametrize(
    ("name", "value"),
    [("name", "H200"), ("major", 10), ("minor", 3), ("multi_processor_count", 66)],
)
def test_verdicts_belong_to_one_kind_of_gpu(monkeypatch, name, value):
    properties = {"name": "H100", "major": 9, "minor": 0, "multi_processor_count": 132}

    def fingerprint():
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**properties))
        return choices.fingerprint.__wrapped__(torch.device("cuda", 0))

    before = fingerprint()
    assert fingerprint() == before
    properties[name] = value
    assert fingerprint() != before


def test_verdicts_belong_to_driver_and_versions(monkeypatch):
    properties = SimpleNamespace(name="H100", major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    changes = [
        (choices, "_driver_version", lambda: "999.0"),
        (torch, "__version__", "9.9.9"),
        (torch.version, "cuda", "99.0"),
        (torch.backends.cudnn, "version", lambda: 99),
        (choices.metadata, "version", lambda name: "99"),
        (choices, "_code_digest", lambda: "0"),
    ]
    prints = [choices.fingerprint.__wrapped__(torch.device("cuda", 0))]
    for where, name, value in changes:
        with monkeypatch.context() as patch:
            patch.setattr(where, name, value)
            prints.append(choices.fingerprint.__wrapped__(torch.device("cuda", 0)))
    assert len(set(prints)) == len(changes) + 1


@pytest.mark.parametrize("most", [1, 2, 4, 64])
def test_one_class_has_one_list_of_candidates(monkeypatch, most):
    """A verdict on one batch names a candidate that every other batch of the class has as well."""
    item = BlockSpec(ConvSpec(8, 8), SPEC.depthwise, ConvSpec(8, 8))
    sources = [torch.randn(8, 8, 1, 1), torch.randn(8, 1, 3, 3), torch.randn(8, 8, 1, 1)]
    packed = packing.pack((item,), sources, torch.float32)[0]
    monkeypatch.setattr(plans, "RECOMPUTE_PIXELS", 30 * most - 1)  # between the batches of a class, were it not for it
    lists = set()
    for batch in range(most // 2 + 1, most + 1):
        found = plans.candidates(packed, torch.empty(batch, 8, 6, 5), ("triton",))
        lists.add(tuple(candidate.name for candidate in found))
    assert len(lists) == 1
