"""Fused models in other processes: pickled, distributed, in data loader workers."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from fused_cases import Features, assert_close, assert_fused_right, example, make_block, make_run, plain_result
from torch.utils.data import DataLoader

from mobilenet_ext.fusion import fuse


def test_pickle_in_a_new_process(tmp_path):
    fused, x = fuse(make_run()), example()
    torch.save((fused, x, assert_fused_right(fused, x)), tmp_path / "model.pt")
    code = """
        import sys, torch
        model, x, y = torch.load(sys.argv[1], weights_only=False)
        from mobilenet_ext import _C
        with torch.no_grad():
            assert torch.equal(model(x), y)
        assert sum(_C.counters().values()) > 0
    """
    run = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "model.pt")]
    subprocess.run(run, check=True)


DISTRIBUTED = """
    import sys
    import torch
    import torch.distributed as dist
    from torch import nn
    from fused_cases import Features, assert_close, example, fused_path, make_run, plain_result
    from mobilenet_ext.fusion import fuse

    rank = int(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
    torch.manual_seed(rank)
    model = nn.parallel.DistributedDataParallel(make_run().train())
    fuse(model, inplace=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        model(example() + rank + step).square().mean().backward()
        optimizer.step()
        model.eval()
        with torch.no_grad(), fused_path():
            y = model(example())
        assert_close(y, plain_result(model, example()))
        model.train()
    # Gradients through the fused forward are reduced like any others.
    model.eval()
    optimizer.zero_grad()
    with fused_path():
        model(example() + rank).square().mean().backward()
    optimizer.step()
    mine = torch.cat([p.detach().flatten() for p in model.parameters()])
    theirs = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(theirs, mine)
    assert torch.equal(theirs[0], theirs[1])
    dist.destroy_process_group()
"""


def test_distributed_data_parallel(tmp_path):
    paths = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(DISTRIBUTED), str(rank), str(tmp_path / "store")],
            env={**os.environ, "PYTHONPATH": paths},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_data_loader_workers(context: str):
    fused = fuse(make_block())
    expected = torch.stack([plain_result(fused, example(1) + index)[0] for index in range(4)])
    if context == "fork":
        with torch.no_grad():
            fused(example(1))  # packed before the fork
    loader = DataLoader(Features(fused), batch_size=2, num_workers=2, multiprocessing_context=context)
    assert_close(torch.cat(list(loader)), expected)
