"""Fused models in training: the same steps as plain ones, and everything that people train with."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fused_cases import assert_close, example, make_block, make_run, randomize
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mobilenet_ext
from mobilenet_ext._library import native
from mobilenet_ext.fusion import disabled, fuse
from mobilenet_ext.models import MobileNetV1, MobileNetV2
from mobilenet_ext.report import fusion_report


def trained_here() -> int:
    return native.counters().get("depthwise_backward", 0)


def freeze_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def step(model: nn.Module, x: Tensor) -> Tensor:
    """A scalar that no BatchNorm makes constant, and its backward."""
    y = model(x)
    loss = (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum()
    loss.backward()
    return loss.detach()


def assert_same_step(fused: nn.Module, plain: nn.Module, x: Tensor, native_backward: bool = True) -> None:
    before = trained_here()
    losses = step(fused, x), step(plain, x)
    assert (trained_here() > before) == native_backward
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-3)
    largest = max(float(p.grad.abs().max()) for p in plain.parameters() if p.grad is not None)
    for (name, ours), theirs in zip(fused.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=2e-3, atol=2e-4 * largest, msg=name)
    for (name, ours), theirs in zip(fused.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "block": make_block,
    "run": make_run,
    "v1": lambda: randomize(MobileNetV1(num_classes=5, alpha=0.25)),
    "v2": lambda: randomize(MobileNetV2(num_classes=5, alpha=0.35)),
}


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "batch"])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_is_that_of_the_plain_model(name: str, frozen: bool):
    plain = MODELS[name]().train()
    for module in plain.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    fused = fuse(plain)
    if frozen:
        freeze_norms(plain)
        freeze_norms(fused)
    x = example(4) if name in ("block", "run") else torch.randn(4, 3, 64, 64)
    for _ in range(2):
        assert_same_step(fused, plain, x)
    assert not [row for row in fusion_report(fused).rows if row.kind == "PyTorch" and "Dropout" not in row.module]


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
def test_running_statistics(momentum: float | None):
    plain = make_block().train()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    fused = fuse(plain)
    for seed in range(3):
        x = example(3) + seed
        with torch.no_grad():
            assert_close(fused(x), plain(x))
    for ours, theirs in zip(fused.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_no_running_statistics_stays_with_pytorch():
    plain = make_block().train()
    plain.conv[0][1] = nn.BatchNorm2d(64, track_running_stats=False)
    fused = fuse(plain)
    x = example()
    assert_close(fused(x), plain(x))
    assert any("no running statistics" in row.reason for row in fusion_report(fused).rows)


def test_training_false_is_plain_pytorch():
    fused = fuse(make_block(), training=False).train()
    before = trained_here()
    step(fused, example())
    assert trained_here() == before


def test_disabled_is_plain_pytorch():
    fused = fuse(make_block()).train()
    before = trained_here()
    with disabled():
        step(fused, example())
    assert trained_here() == before


def test_dropout_inside_a_run_keeps_dropping():
    model = nn.Sequential(make_block(), nn.Dropout(0.5), make_block()).train()
    y = fuse(model)(example())
    assert not torch.equal(y, fuse(model)(example()))


def test_autocast_and_scaler():
    plain = make_run().train()
    fused, x = fuse(plain), example(4)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    optimizer = torch.optim.SGD(fused.parameters(), 0.01)
    with torch.autocast("cpu", torch.bfloat16):
        y = fused(x)
        assert y.dtype == plain(x).dtype
    before = [p.detach().clone() for p in fused.parameters()]
    scaler.scale(y.float().square().mean()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert any(not torch.equal(p, old) for p, old in zip(fused.parameters(), before, strict=True))
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in fused.parameters())


def test_averaged_model_and_update_bn():
    fused = fuse(make_run()).train()
    averaged = torch.optim.swa_utils.AveragedModel(fused, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    optimizer = torch.optim.SGD(fused.parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        step(fused, example(3))
        optimizer.step()
        averaged.update_parameters(fused)
    torch.optim.swa_utils.update_bn([example(3)], averaged)
    averaged.eval()
    with torch.no_grad(), disabled():
        expected = averaged(example())
    with torch.no_grad():
        assert_close(averaged(example()), expected)


def test_accumulation_and_checkpointing():
    plain = make_run().train()
    freeze_norms(plain)
    fused, whole = fuse(plain), fuse(plain)
    freeze_norms(fused)
    freeze_norms(whole)
    x = example(6)
    whole(x).square().sum().backward()
    for part in x.split(2):
        checkpoint(fused, part, use_reentrant=False).square().sum().backward()
    for ours, theirs in zip(fused.parameters(), whole.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "batch"])
def test_compiled_training_step(frozen: bool):
    fused = fuse(make_run()).train()
    if frozen:
        freeze_norms(fused)
    eager = copy.deepcopy(fused)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    for batch in (3, 3, 4):
        x = example(batch)
        torch.testing.assert_close(step(compiled, x), step(eager, x), rtol=1e-5, atol=1e-4)
    for ours, theirs in zip(fused.parameters(), eager.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad)
    for ours, theirs in zip(fused.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_functional_call():
    fused = fuse(make_block()).train()
    parameters = {name: (p.detach() * 1.5).requires_grad_() for name, p in fused.named_parameters()}
    y = torch.func.functional_call(fused, parameters, (example(),))
    y.square().sum().backward()
    plain = mobilenet_ext.unfuse(fused)
    copies = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    expected = torch.func.functional_call(plain, copies, (example(),))
    assert_close(y, expected)
    expected.square().sum().backward()
    for name, p in parameters.items():
        assert p.grad is not None, name
    assert_close(parameters["conv.1.0.weight"].grad, copies["conv.1.0.weight"].grad)


def test_train_eval_train():
    plain = make_run()
    fused, x = fuse(plain), example(4)
    optimizers = [torch.optim.SGD(m.parameters(), 1e-4) for m in (fused, plain)]
    for mode in (True, False, True, False):
        for model, optimizer in zip((fused, plain), optimizers, strict=True):
            model.train(mode)
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            torch.testing.assert_close(fused.eval()(x), plain.eval()(x), rtol=1e-3, atol=1e-3)


def test_sync_batch_norm_stays_with_pytorch():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(make_block()).train()
    fused = fuse(model)
    assert "SyncBatchNorm" in fusion_report(fused).rows[0].reason
    before = trained_here()
    step(fused, example())
    assert trained_here() == before


def _worker(rank: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        model = fuse(make_run()).train()
        freeze_norms(model)
        wrapped = nn.parallel.DistributedDataParallel(model)
        before = trained_here()
        F.mse_loss(wrapped(example(4)[rank::2]), torch.zeros(()).expand(2, 16, 10, 10)).backward()
        assert trained_here() > before
        torch.save([p.grad for p in model.parameters()], Path(folder) / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes(tmp_path: Path):
    """DistributedDataParallel on gloo: both ranks have the gradients of one process on the whole batch."""
    ranks_running = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [process.wait(timeout=300) for process in ranks_running] == [0, 0]
    model = fuse(make_run()).train()
    freeze_norms(model)
    F.mse_loss(model(example(4)), torch.zeros(()).expand(4, 16, 10, 10)).backward()
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for first, second, p in zip(*ranks, model.parameters(), strict=True):
        assert torch.equal(first, second)
        assert_close(first, p.grad)


if __name__ == "__main__":  # a rank of test_two_processes: importlib mode leaves no name to spawn it by
    _worker(int(sys.argv[1]), sys.argv[2])
