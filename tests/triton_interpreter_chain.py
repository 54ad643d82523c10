"""The chain operators of a GPU with interpreted Triton kernels behind them: run by test_triton.py."""

import pytest
import torch
from triton_cases import BLOCKS, LAYOUTS, image, sources_of

from mobilenet_ext.backends.gpu import plans, register, runtime, slots
from mobilenet_ext.freshness import Slot, bump_epoch, distrust
from mobilenet_ext.spec import BlockSpec, ConvSpec, encode
from mobilenet_ext.tolerance import check

PAIR = plans.partial(plans._triton_pair, 0)
LAST = BlockSpec(expand=ConvSpec(8, 6, (3, 3), (2, 2), (1, 1), (1, 1, 1, 1), activation="relu", sources=("weight",)))


class TestChainOperator:
    """The functions behind the CUDA dispatch key, called directly on CPU tensors."""

    @pytest.fixture(autouse=True)
    def _own_cache(self, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setenv("MOBILENET_EXT_GPU", "trust")

    @pytest.mark.parametrize("mode", ["trust", "check"])
    @pytest.mark.parametrize("layout", LAYOUTS[:2])
    def test_a_chain(self, monkeypatch, mode, layout):
        monkeypatch.setenv("MOBILENET_EXT_GPU", mode)
        monkeypatch.setattr(plans, "_triton_candidates", lambda *a: iter([plans.Candidate("triton.pair:0", PAIR)]))
        runtime.runtime.counters.clear()
        chain = (BLOCKS["residual"], LAST)
        sources = sources_of(chain[0], torch.float32) + sources_of(chain[1], torch.float32)
        x = image((1, 8, 5, 4), torch.float32, layout)
        program, constants = encode(chain, "follow_input", transient=True)
        y = register.chain(x, sources, None, program, constants)
        assert check(y, chain, x, sources).ok
        assert y.is_contiguous() == (layout == "contiguous")
        expected = {"trust": {"triton.pair:0": 1, "aten": 1}, "check": {"aten": 2}}  # interpreted, PyTorch is faster
        assert runtime.runtime.counters == expected[mode]

    def test_slots_are_packed_again_when_sources_change(self):
        slot = Slot()
        chain = (BLOCKS["residual"],)
        sources = sources_of(chain[0], torch.float32)
        x = image((1, 8, 3, 3), torch.float32, "channels_last")
        program, constants = encode(chain)
        first = register.chain(x, sources, slot.tensor, program, constants)
        entry = slots.trusted(slot.id)
        assert torch.equal(register.chain_cached(x, slot.tensor), first)
        assert register.chain(x, sources, slot.tensor, program, constants) is not None
        assert slots.trusted(slot.id) is entry
        sources[0].mul_(2)
        changed = register.chain(x, sources, slot.tensor, program, constants)
        assert slots.trusted(slot.id) is not entry
        assert check(changed, chain, x, sources).ok
        bump_epoch()
        before = slots.trusted(slot.id)
        register.chain(x, sources, slot.tensor, program, constants)
        assert slots.trusted(slot.id) is not before

    def test_a_captured_entry_is_packed_again_in_place(self):
        slot = Slot()
        chain = (BLOCKS["residual"],)
        sources = sources_of(chain[0], torch.float32)
        x = image((1, 8, 3, 3), torch.float32, "channels_last")
        program, constants = encode(chain)
        register.chain(x, sources, slot.tensor, program, constants)
        entry = slots.trusted(slot.id)
        entry.pinned = True
        weight = entry.packed[torch.float32][0].stages["expand"].weight
        sources[0].mul_(2)
        register.chain(x, sources, slot.tensor, program, constants)
        again = slots.trusted(slot.id)
        assert again.pinned
        distrust(slot.id)
        register.chain(x, sources, slot.tensor, program, constants)
        assert slots.trusted(slot.id) is not again
        assert slots.trusted(slot.id).packed[torch.float32][0].stages["expand"].weight is weight
        assert again.packed[torch.float32][0].stages["expand"].weight is weight
        torch.testing.assert_close(weight, sources[0][:, :, 0, 0].t())

    def test_a_freed_slot_is_forgotten(self):
        slot = Slot()
        number = slot.id
        chain = (LAST,)
        program, constants = encode(chain)
        x = image((1, 8, 3, 3), torch.float32, "channels_last")
        register.chain(x, sources_of(chain[0], torch.float32), slot.tensor, program, constants)
        del slot
        with pytest.raises(RuntimeError, match=f"slot {number} holds nothing packed for a GPU"):
            register.chain_cached(x, torch.tensor(number))

    def test_a_half_image_with_float32_weights(self):
        """What autocast gives: products see weights rounded to fp16, BatchNorm its fp32 vectors."""
        chain = (BLOCKS["separable"],)
        sources = sources_of(chain[0], torch.float32)
        x = image((1, 20, 4, 4), torch.float16, "channels_last")
        program, constants = encode(chain)
        y = register.chain(x, sources, None, program, constants)
        rounded = [s.half() if s.dim() == 4 else s for s in sources]
        assert y.dtype == torch.float16
        assert check(y, chain, x, rounded, torch.float16).ok

    @pytest.mark.parametrize(
        ("x", "message"),
        [
            (torch.randn(1, 9, 3, 3), r"x has 9 channels \(shape \(1, 9, 3, 3\)\); this block takes 8"),
            (torch.randn(8, 3, 3), r"x has shape \(8, 3, 3\); allowed: four dimensions"),
            (torch.randn(1, 8, 3, 3).double(), r"x is torch.float64; allowed: torch.float32"),
        ],
    )
    def test_errors(self, x, message):
        program, constants = encode((LAST,))
        with pytest.raises(RuntimeError, match=message):
            register.chain(x, sources_of(LAST, torch.float32), None, program, constants)
