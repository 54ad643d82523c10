"""Whole blocks in Triton kernels under Triton's interpreter, against float64: run by test_triton.py."""

import math

import pytest
import torch
from triton_cases import BLOCKS, BN, DTYPES, LAYOUTS, PLANS, SIZES, assert_right, depthwise_spec, image, sources_of

from mobilenet_ext.backends import aten
from mobilenet_ext.backends.gpu import packing, plans
from mobilenet_ext.backends.triton import common
from mobilenet_ext.spec import BlockSpec, ConvSpec
from mobilenet_ext.tolerance import check


def test_the_interpreter_runs():
    assert common.INTERPRETED


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("plan", PLANS)
def test_blocks(dtype, name, plan):
    size = SIZES[(len(name) + len(plan) + DTYPES.index(dtype)) % 3]
    block = BLOCKS[name]
    if plan == "block" and block.expand is None:
        plan = "depthwise_project"
    x = image((2, block.in_channels, *size), dtype, LAYOUTS[len(name) % 3])
    assert_right(block, x, sources_of(block, dtype), plans.partial(PLANS[plan], 0))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("config", range(4))
def test_every_configuration_of_a_block(plan, config):
    block = BLOCKS["residual"]
    x = image((3, 8, 6, 7), torch.float32, "channels_last")
    assert_right(block, x, sources_of(block, torch.float32), plans.partial(PLANS[plan], config))


@pytest.mark.parametrize("plan", PLANS)
def test_a_dense_first_stage_runs_in_pytorch_and_the_rest_in_kernels(plan):
    stem = ConvSpec(3, 16, (3, 3), (2, 2), (1, 1), (1, 1, 1, 1), activation="relu6", eps=1e-5, sources=BN)
    block = BlockSpec(stem, depthwise_spec(16, 3, 1), ConvSpec(16, 8, eps=1e-5, sources=BN))
    x = image((1, 3, 9, 9), torch.float32, "contiguous")
    packed = packing.pack((block,), sources_of(block, torch.float32), torch.float32)[0]
    names = [c.name for c in plans.candidates(packed, x, ("triton",))]
    assert not any(name.startswith("triton.block") for name in names)
    run = plans._triton_stages if plan == "stages" else plans._triton_pair
    assert check(run(0, packed, x), (block,), x, packed.sources).ok


@pytest.mark.parametrize("name", BLOCKS)
def test_an_empty_batch(name):
    block = BLOCKS[name]
    x = torch.empty(0, block.in_channels, 6, 6)
    packed = packing.pack((block,), sources_of(block, torch.float32), torch.float32)[0]
    for run in (plans._triton_stages, plans._triton_pair):
        assert run(0, packed, x).shape == aten.run_block(block, x, packed.tensors).shape


def test_not_a_number_and_infinity():
    block = BLOCKS["separable"]
    x = image((1, 20, 5, 5), torch.float32, "channels_last")
    x[0, 3, 2, 2], x[0, 4, 0, 0], x[0, 5, 4, 4] = math.nan, math.inf, -math.inf
    for run in (plans._triton_stages, plans._triton_pair):
        packed = packing.pack((block,), sources_of(block, torch.float32), torch.float32)[0]
        exact = [{name: t.double() for name, t in named.items()} for named in packed.tensors]
        reference = aten.run_block(block, x.double(), exact)
        assert reference.isnan().any()
        torch.testing.assert_close(run(0, packed, x).double(), reference, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_rounded_weights_fail():
    """The comparison can fail: weights rounded to fp16 are within no float32 tolerance."""
    block = BLOCKS["residual"]
    sources = sources_of(block, torch.float32)
    rounded = [s.half().float() for s in sources]
    x = image((2, 8, 6, 7), torch.float32, "channels_last")
    packed = packing.pack((block,), rounded, torch.float32)[0]
    assert not check(plans._triton_pair(0, packed, x), (block,), x, sources).ok
