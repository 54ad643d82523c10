"""Which kernel a GPU chain takes: decided with fakes on the CPU, so every branch runs without a GPU."""

import json
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mobilenet_ext.backends import BACKENDS, aten, choose, cuda
from mobilenet_ext.backends.gpu import choices, packing, plans, trial
from mobilenet_ext.backends.gpu import runtime as runtime_module
from mobilenet_ext.backends.gpu.plans import Candidate, run_aten
from mobilenet_ext.backends.gpu.runtime import Runtime
from mobilenet_ext.backends.gpu.trial import try_out
from mobilenet_ext.spec import BlockSpec, ConvSpec, LinearSpec, PoolSpec

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")

SPEC = BlockSpec(depthwise=ConvSpec(8, 8, (3, 3), padding=(1, 1, 1, 1), depthwise=True, activation="relu6"))


def packed_item(dtype=torch.float32):
    return packing.pack((SPEC,), [torch.randn(8, 1, 3, 3).to(dtype)], dtype)[0]


class Fakes:
    """Candidates with known times: right ones, a wrong one, one that raises; counts what ran."""

    def __init__(self, **seconds):
        self.seconds, self.calls = seconds, []

    def candidates(self, packed, x, backends):
        return [Candidate(name, self._run(name)) for name in self.seconds if name.split(".")[0] in backends]

    def _run(self, name):
        def run(packed, x):
            self.calls.append(name)
            if "raises" in name:
                raise RuntimeError("no code for this architecture")
            y = run_aten(packed, x)
            return y + 0.01 * (torch.arange(y.numel()).view(y.shape) == 3) if "wrong" in name else y

        return run

    def timer(self, call):
        """PyTorch takes one second; a candidate is recognised by what its call records."""
        before = len(self.calls)
        call()
        return self.seconds[self.calls[-1]] if len(self.calls) > before else 1.0


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MOBILENET_EXT_GPU", raising=False)


def make_runtime(fakes, backends=("cuda", "triton"), capturing=False):
    runtime = Runtime()
    runtime.timer, runtime.list_candidates = fakes.timer, fakes.candidates
    runtime.backends = lambda x: backends
    runtime.capturing = lambda x: capturing
    return runtime


X = torch.randn(3, 8, 6, 5)


def test_the_order_of_backends():
    assert [backend.name for backend in BACKENDS] == ["cpu", "cuda", "triton", "aten"]


def test_the_fastest_right_kernel_is_kept():
    fakes = Fakes(**{"cuda.a": 0.5, "triton.b": 0.25, "triton.slow": 3.0})
    runtime, packed = make_runtime(fakes), packed_item()
    assert torch.equal(runtime.run_item(packed, X), run_aten(packed, X))
    assert runtime.counters == {"triton.b": 1}
    verdict = runtime.verdict_on(SPEC, X)
    assert verdict.choice == "triton.b"
    assert verdict.why == "agrees with PyTorch and is 4.00 times as fast"
    assert verdict.rejected == {}


def test_a_slower_kernel_is_not_used():
    runtime = make_runtime(Fakes(**{"cuda.slow": 1.5}))
    runtime.run_item(packed_item(), X)
    assert runtime.counters == {"aten": 1}
    assert runtime.verdict_on(SPEC, X).why == "PyTorch; no kernel here is faster"


def test_a_wrong_kernel_is_not_used_however_fast():
    runtime, packed = make_runtime(Fakes(**{"cuda.wrong": 0.1})), packed_item()
    assert torch.equal(runtime.run_item(packed, X), run_aten(packed, X))
    assert runtime.counters == {"aten": 1}
    assert "wrong by 0.01" in runtime.verdict_on(SPEC, X).why


def test_a_kernel_that_does_not_start_is_not_used():
    runtime = make_runtime(Fakes(**{"cuda.raises": 0.1, "triton.b": 0.5}))
    runtime.run_item(packed_item(), X)
    assert runtime.counters == {"triton.b": 1}
    assert runtime.verdict_on(SPEC, X).rejected == {"cuda.raises": "RuntimeError: no code for this architecture"}


def test_the_check_is_made_once_per_class():
    fakes = Fakes(**{"cuda.a": 0.5})
    runtime, packed = make_runtime(fakes), packed_item()
    runtime.run_item(packed, X)
    after_trial = len(fakes.calls)
    for batch in (3, 4):  # the same class: batches of 3 and 4
        runtime.run_item(packed, torch.randn(batch, 8, 6, 5))
    assert len(fakes.calls) == after_trial + 2
    for other in (torch.randn(5, 8, 6, 5), torch.randn(3, 8, 6, 4), X.to(memory_format=torch.channels_last)):
        before = len(fakes.calls)
        runtime.run_item(packed, other)
        assert len(fakes.calls) > before + 1


def test_the_verdict_survives_the_process():
    fakes = Fakes(**{"cuda.a": 0.5})
    make_runtime(fakes).run_item(packed_item(), X)
    calls = len(fakes.calls)
    second = make_runtime(fakes)
    second.run_item(packed_item(), X)
    assert len(fakes.calls) == calls + 1
    assert second.verdict_on(SPEC, X).choice == "cuda.a"


@pytest.mark.parametrize("content", ["", "{", '{"fingerprint": "another machine", "verdicts": {}}', "[]", "null"])
def test_a_useless_file_means_a_new_check(content):
    fakes = Fakes(**{"cuda.a": 0.5})
    runtime = make_runtime(fakes)
    path = runtime.choices_of(X.device).path
    path.parent.mkdir(parents=True)
    path.write_text(content)
    make_runtime(fakes).run_item(packed_item(), X)
    assert len(fakes.calls) > 2
    assert json.loads(path.read_text())["fingerprint"] == choices.fingerprint(X.device)


def test_a_folder_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    runtime = make_runtime(Fakes(**{"cuda.a": 0.5}))
    runtime.run_item(packed_item(), X)
    assert runtime.counters == {"cuda.a": 1}


def test_a_verdict_for_a_kernel_that_is_gone_is_made_again():
    make_runtime(Fakes(**{"cuda.a": 0.5})).run_item(packed_item(), X)
    runtime = make_runtime(Fakes(**{"triton.b": 0.5}))
    runtime.run_item(packed_item(), X)
    assert runtime.verdict_on(SPEC, X).choice == "triton.b"


def test_off_runs_pytorch(monkeypatch):
    monkeypatch.setenv("MOBILENET_EXT_GPU", "off")
    fakes = Fakes(**{"cuda.a": 0.5})
    runtime = make_runtime(fakes)
    runtime.run_item(packed_item(), X)
    assert runtime.counters == {"aten": 1}
    assert fakes.calls == []


def test_trust_runs_the_first_that_starts(monkeypatch):
    monkeypatch.setenv("MOBILENET_EXT_GPU", "trust")
    fakes = Fakes(**{"cuda.raises": 0.1, "cuda.slow": 9.0, "triton.b": 0.5})
    runtime, packed = make_runtime(fakes), packed_item()
    for _ in range(2):
        runtime.run_item(packed, X)
    assert fakes.calls == ["cuda.raises", "cuda.slow", "cuda.slow"]
    assert "trust" in runtime.verdict_on(SPEC, X).why


def test_an_unknown_mode_is_named(monkeypatch):
    monkeypatch.setenv("MOBILENET_EXT_GPU", "yes")
    with pytest.raises(ValueError, match="MOBILENET_EXT_GPU is 'yes'; allowed: check, trust, off"):
        make_runtime(Fakes()).run_item(packed_item(), X)


def test_nothing_is_checked_while_a_graph_is_captured():
    fakes = Fakes(**{"cuda.a": 0.5})
    runtime, packed = make_runtime(fakes), packed_item()
    runtime.capturing = lambda x: True
    runtime.run_item(packed, X)
    assert (fakes.calls, runtime.counters) == ([], {"aten": 1})
    runtime.capturing = lambda x: False
    runtime.run_item(packed, X)
    calls = len(fakes.calls)
    runtime.capturing = lambda x: True
    runtime.run_item(packed, X)
    assert fakes.calls[calls:] == ["cuda.a"]


def test_a_verdict_from_disk_is_not_used_in_a_capture_before_its_kernel_has_run():
    make_runtime(Fakes(**{"cuda.a": 0.5})).run_item(packed_item(), X)
    fakes = Fakes(**{"cuda.a": 0.5})
    runtime = make_runtime(fakes, capturing=True)
    runtime.run_item(packed_item(), X)
    assert fakes.calls == []


def test_no_backend_means_pytorch():
    fakes = Fakes(**{"cuda.a": 0.5})
    runtime = make_runtime(fakes, backends=())
    runtime.run_item(packed_item(), X)
    assert runtime.counters == {"aten": 1}
    assert runtime.verdict_on(SPEC, X).why == "PyTorch; no kernel takes this item"


def test_empty_batches_and_linear_items_make_no_trial():
    fakes = Fakes(**{"cuda.a": 0.5})
    runtime = make_runtime(fakes)
    assert runtime.run_item(packed_item(), X[:0]).shape == (0, 8, 6, 5)
    linear = LinearSpec(4, 2)
    packed = packing.pack((linear,), [torch.randn(2, 4), torch.randn(2)], torch.float32)[0]
    assert runtime.run_item(packed, torch.randn(3, 4)).shape == (3, 2)
    assert fakes.calls == []


def test_threads_that_come_together_make_one_trial(monkeypatch):
    """All have seen that there is no verdict before any of them may go on: one makes it, the others take it."""
    count, trials, results = 4, [], []
    all_here = threading.Barrier(count, timeout=30)

    class Meeting(Fakes):
        def candidates(self, packed, x, backends):
            all_here.wait()
            return super().candidates(packed, x, backends)

    def counted(packed, x, found, timer):
        trials.append(threading.get_ident())
        time.sleep(0.05)  # long enough for the others to reach the lock
        return try_out(packed, x, found, timer)

    monkeypatch.setattr(runtime_module, "try_out", counted)
    runtime, packed = make_runtime(Meeting(**{"cuda.a": 0.5})), packed_item()
    threads = [threading.Thread(target=lambda: results.append(runtime.run_item(packed, X))) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trials) == 1
    assert runtime.counters == {"cuda.a": count}
    assert len(results) == count
    assert all(torch.equal(result, run_aten(packed, X)) for result in results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_comparison_holds_for_pytorch_itself(dtype):
    """PyTorch's own result passes its own check in every dtype; one element off by a hundredth does not."""
    packed, x = packed_item(dtype), X.to(dtype)
    same = Candidate("cuda.same", run_aten)
    verdict = try_out(packed, x, [same], lambda call: 1.0)
    assert verdict.rejected == {}
    other = Candidate("cuda.other", lambda p, t: run_aten(p, t) + 0.3 * (torch.arange(t.numel()).view(t.shape) == 3))
    assert "cuda.other" in try_out(packed, x, [other], lambda call: 1.0).rejected


def test_a_chain_runs_item_by_item(monkeypatch):
    fakes = Fakes(**{"cuda.a": 0.5})
    monkeypatch.setattr(runtime_module, "runtime", make_runtime(fakes))
    chain = (SPEC, SPEC)
    packed = packing.pack(chain, [torch.randn(8, 1, 3, 3)] * 2, torch.float32)
    y = runtime_module.run_packed(packed, X, follow_input=False)
    expected = run_aten(packed[1], run_aten(packed[0], X))
    assert torch.equal(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert runtime_module.run_packed(packed, X, follow_input=True).is_contiguous()


def test_reasons_on_a_machine_without_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    device = torch.device("cuda")
    found, reasons = choose((SPEC,), device, torch.float16)
    assert found.name == "aten"
    assert set(reasons) == {"cpu", "cuda", "triton"}
    assert all(reason and "\n" not in reason for reason in reasons.values())


def test_what_the_kernels_do_not_compute_runs_in_pytorch():
    """Squeeze-and-excitation, other activations and shortcuts over two items: never a kernel that leaves them out."""
    first = ConvSpec(8, 16, activation="silu")
    middle = ConvSpec(16, 16, (3, 3), padding=(1, 1, 1, 1), depthwise=True, activation="relu6")
    last = ConvSpec(16, 8)
    gate = {"reduce": ConvSpec(16, 4, activation="relu"), "excite": ConvSpec(4, 16, activation="hardsigmoid")}
    swish = ConvSpec(16, 16, (3, 3), padding=(1, 1, 1, 1), depthwise=True, activation="hardswish")
    plain = BlockSpec(first, middle, last)
    refused = [
        BlockSpec(first, middle, last, **gate),
        BlockSpec(first, swish, last),
        BlockSpec(first, middle, last, residual_back=True),
        BlockSpec(expand=first),
        PoolSpec(8),
    ]
    for item in (plain, *refused):
        sources = [torch.randn(spec.weight_shape) for _, spec in item.stages()]
        packed = packing.pack((item,), sources, torch.float32)[0]
        names = [c.name for c in plans.candidates(packed, X, ("triton",))]
        assert bool(names) == (item is plain), item
        assert not any("block" in name for name in names)  # silu after expand: PyTorch runs that stage


def test_a_shortcut_over_two_items():
    chain = (SPEC, BlockSpec(expand=ConvSpec(8, 8), residual_back=True), PoolSpec(8))
    sources = [torch.randn(8, 1, 3, 3), torch.randn(8, 8, 1, 1)]
    packed = packing.pack(chain, sources, torch.float32)
    y = runtime_module.run_packed(packed, X, follow_input=False)
    torch.testing.assert_close(y, aten.run_chain(chain, X, sources))


def test_candidates_need_a_kernel_for_some_stage():
    pooled = BlockSpec(expand=ConvSpec(8, 4), pool=True)
    packed = packing.pack((pooled,), [torch.randn(4, 8, 1, 1)], torch.float32)[0]
    assert plans.candidates(packed, X, ("cuda", "triton")) == []


def test_a_candidate_without_memory_is_rejected_for_this_process_only():
    class Short(Fakes):
        def _run(self, name):
            def run(packed, x):
                raise torch.OutOfMemoryError("CUDA out of memory")

            return run

    runtime = make_runtime(Short(**{"cuda.a": 0.5}))
    runtime.run_item(packed_item(), X)
    assert runtime.counters == {"aten": 1}
    assert "no memory" in runtime.verdict_on(SPEC, X).rejected["cuda.a"]
    fresh = make_runtime(Fakes(**{"cuda.a": 0.5}))
    fresh.run_item(packed_item(), X)
    assert fresh.counters == {"cuda.a": 1}


def test_a_reference_without_memory_means_pytorch(monkeypatch):
    def expectation(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trial.tolerance, "expectation", expectation)
    runtime, packed = make_runtime(Fakes(**{"cuda.a": 0.5})), packed_item()
    assert torch.equal(runtime.run_item(packed, X), run_aten(packed, X))
    assert runtime.counters == {"aten": 1}
    assert not runtime.verdict_on(SPEC, X).lasting


@pytest.mark.parametrize("name", ["backends/cuda.py", "backends/aten.py", "folding.py", "tolerance.py", "spec.py"])
def test_verdicts_belong_to_the_code_that_made_them(monkeypatch, name):
    before = choices._code_digest.__wrapped__()
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read(self) + b"#" * self.as_posix().endswith(name))
    assert choices._code_digest.__wrapped__() != before


def test_a_misaligned_image_is_copied_for_a_whole_block(monkeypatch):
    seen = []
    fake = SimpleNamespace(inverted_residual=lambda x, *rest: seen.append(x) or x)
    monkeypatch.setattr(torch.ops, "mobilenet_ext_cuda", fake, raising=False)
    item = BlockSpec(ConvSpec(8, 8), SPEC.depthwise, ConvSpec(8, 8))
    sources = [torch.randn(8, 8, 1, 1), torch.randn(8, 1, 3, 3), torch.randn(8, 8, 1, 1)]
    stages = packing.pack((item,), sources, torch.float32)[0].stages
    x = torch.randn(1 + 8 * 16)[1:].view(1, 4, 4, 8).permute(0, 3, 1, 2)
    assert x.data_ptr() % 16 != 0
    cuda.inverted_residual(x, stages, (1, 1), (4, 4), False)
    assert seen[0].data_ptr() % 16 == 0
    assert torch.equal(seen[0], x)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
