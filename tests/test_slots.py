"""Every copy of a fused module packs for itself, once, also when threads meet at its first call."""

from __future__ import annotations

import copy
import gc
import io
import threading

import torch
from fused_cases import assert_close, assert_fused_right, example, fused_path, make_block, make_run, packs, plain_result
from torch import nn

from mobilenet_ext import _C
from mobilenet_ext.fusion import fuse, unfuse


def edit(model: nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)


def test_deepcopy_has_its_own_weights():
    fused, x = fuse(make_run()), example()
    mine = assert_fused_right(fused, x)
    clone = copy.deepcopy(fused)
    assert torch.equal(assert_fused_right(clone, x), mine)
    edit(clone)
    assert not torch.equal(assert_fused_right(clone, x), mine)
    with packs(0):
        assert torch.equal(assert_fused_right(fused, x), mine)


def test_shallow_copy_is_right():
    fused, x = fuse(make_block()), example()
    mine = assert_fused_right(fused, x)
    clone = copy.copy(fused)
    clone._modules = dict(fused._modules, conv=copy.deepcopy(fused.conv))
    edit(clone)
    assert not torch.equal(assert_fused_right(clone, x), mine)
    assert torch.equal(assert_fused_right(fused, x), mine)


def test_save_and_load():
    fused, x = fuse(make_run()), example()
    mine = assert_fused_right(fused, x)
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert type(loaded) is type(fused)
    with packs(1):
        assert torch.equal(assert_fused_right(loaded, x), mine)
    edit(loaded)
    assert not torch.equal(assert_fused_right(loaded, x), mine)


def test_eight_threads_and_one_first_call():
    fused = fuse(make_run())
    inputs = [example() + index for index in range(8)]
    expected = [plain_result(fused, x) for x in inputs]
    barrier, errors = threading.Barrier(8), []

    def work(index: int) -> None:
        try:
            barrier.wait()
            for _ in range(50):
                with torch.no_grad():
                    y = fused(inputs[index])
                assert_close(y, expected[index])
        except BaseException as error:
            errors.append(error)

    with fused_path():
        threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors


def test_unfuse_and_fuse_again():
    fused, x = fuse(make_run()), example()
    before = assert_fused_right(fused, x)
    unfuse(fused, inplace=True)
    edit(fused)
    fuse(fused, inplace=True)
    assert not torch.equal(assert_fused_right(fused, x), before)


def test_slots_are_freed():
    fused, x = fuse(make_run()), example()
    gc.collect()
    before = _C.slot_count()
    assert_fused_right(fused, x)
    assert _C.slot_count() > before
    del fused  # by reference counting alone: no cycle holds a slot
    assert _C.slot_count() == before


def test_another_instruction_set_is_packed_for():
    fused, x = fuse(make_block()), example()
    mine = assert_fused_right(fused, x)
    try:
        _C.set_isa_cap("scalar")
        assert_fused_right(fused, x)
    finally:
        _C.set_isa_cap(None)
    assert torch.equal(assert_fused_right(fused, x), mine)
