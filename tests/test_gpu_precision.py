"""TF32 is read in whichever way it was set, and both of its switches count."""

import pytest
import torch

from mobilenet_ext.backends.gpu import precision
from mobilenet_ext.backends.gpu.classes import shape_key
from mobilenet_ext.spec import BlockSpec, ConvSpec

ITEM = BlockSpec(depthwise=ConvSpec(8, 8, (3, 3), padding=(1, 1, 1, 1), depthwise=True))
MATMUL, CONV = torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv", None)


@pytest.fixture(autouse=True)
def _restore():
    before = MATMUL.allow_tf32, torch.backends.cudnn.allow_tf32
    MATMUL.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    if CONV is not None:
        MATMUL.fp32_precision = CONV.fp32_precision = "ieee"
    MATMUL.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def key(dtype=torch.float32):
    return shape_key(ITEM, torch.empty(1, 8, 4, 4, dtype=dtype))


@pytest.mark.parametrize("new", [False, True], ids=["allow_tf32", "fp32_precision"])
@pytest.mark.parametrize("which", ["matmul", "conv"])
def test_either_switch_is_seen(which, new):
    assert (precision.matmul_tf32(), precision.conv_tf32()) == (False, False)
    assert "+tf32" not in key()
    if not new:
        (MATMUL if which == "matmul" else torch.backends.cudnn).allow_tf32 = True
    elif CONV is None:
        pytest.skip("this torch has no fp32_precision")
    else:
        (MATMUL if which == "matmul" else CONV).fp32_precision = "tf32"
    assert (precision.matmul_tf32(), precision.conv_tf32()) == (which == "matmul", which == "conv")
    assert f"+tf32 in {'products' if which == 'matmul' else 'convolutions'}|" in key()
    assert "+tf32" not in key(torch.float16)


def test_a_verdict_with_one_switch_is_not_one_with_the_other():
    """Our own products obey one switch, PyTorch's convolutions the other: four states, four keys."""
    keys = set()
    for matmul in (False, True):
        for conv in (False, True):
            MATMUL.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, conv
            keys.add(key())
    assert len(keys) == 4
