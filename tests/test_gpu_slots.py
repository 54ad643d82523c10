"""Packed weights of a GPU chain, on the CPU: whose memory is written, and what a captured call may leave behind."""

import pytest
import torch

from mobilenet_ext.backends.gpu import packing, slots
from mobilenet_ext.freshness import Slot
from mobilenet_ext.spec import BlockSpec, ConvSpec, encode

DEPTHWISE = BlockSpec(depthwise=ConvSpec(8, 8, (3, 3), padding=(1, 1, 1, 1), depthwise=True))
ONE_COLUMN = BlockSpec(expand=ConvSpec(8, 1))  # its weight, transposed, is contiguous already
STEM = BlockSpec(expand=ConvSpec(3, 8, (3, 3), padding=(1, 1, 1, 1)))  # PyTorch runs it


def fresh(slot, item, weight, **options):
    return slots.fresh(slot.id, [weight], *encode((item,)), **options)


@pytest.mark.parametrize("item", [DEPTHWISE, ONE_COLUMN, STEM], ids=["depthwise", "one_column", "stem"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packing_again_in_place_leaves_the_old_parameter_alone(item, dtype):
    ((_, spec),) = item.stages()
    old, new, slot = torch.randn(spec.weight_shape), torch.randn(spec.weight_shape), Slot()
    before = old.clone()
    entry = fresh(slot, item, old)
    (packed,) = entry.for_dtype(dtype)
    ((_, stage),) = packed.stages.items()
    entry.pinned = True
    second = fresh(slot, item, new)
    assert second is not entry
    assert second.pinned
    assert torch.equal(old, before)
    (again,) = second.for_dtype(dtype)
    (expected,) = packing.pack((item,), [new], dtype)
    assert torch.equal(again.tensors[0]["weight"], expected.tensors[0]["weight"])
    if stage.weight is not None:  # what a graph has captured has the new values, in the same place
        assert again.stages[next(iter(again.stages))].weight.data_ptr() == stage.weight.data_ptr()
        assert torch.equal(stage.weight, expected.stages[next(iter(expected.stages))].weight)


def test_nothing_packed_under_capture_is_kept():
    weight, slot = torch.randn(8, 1, 3, 3), Slot()
    fresh(slot, DEPTHWISE, weight, capturing=True).for_dtype(torch.float32, capturing=True)
    with pytest.raises(RuntimeError, match="holds nothing"):
        slots.trusted(slot.id)
    entry = fresh(slot, DEPTHWISE, weight)
    entry.for_dtype(torch.float16, capturing=True)
    assert entry.packed == {}
    kept = entry.for_dtype(torch.float32)
    assert fresh(slot, DEPTHWISE, weight, capturing=True).for_dtype(torch.float32, capturing=True) is kept
