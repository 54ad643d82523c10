"""The rivals: one file each, in one ordered list.  Adding one is a file and a line here."""

from __future__ import annotations

from mobilenet_ext.bench.rivals import compiled, eager, executorch, jit, onnxruntime, openvino, ours
from mobilenet_ext.bench.rivals.base import Rival

# In the order of the reports.
RIVALS: tuple[Rival, ...] = (
    eager.CONTIGUOUS,
    eager.CHANNELS_LAST,
    jit.FROZEN,
    compiled.FREEZING,
    onnxruntime.SESSION,
    openvino.LATENCY,
    openvino.STREAMS,
    executorch.XNNPACK,
)
# Ours in another form: only by name, and never "a rival".
VARIANTS: tuple[Rival, ...] = (ours.COMPILED,)
DEFAULT = ("eager", "eager channels_last", "torch.compile")


def select(names: str) -> tuple[Rival, ...]:
    """The rivals of a comma-separated list; ``default``, ``all`` and ``none`` stand for several.

    ValueError names what there is.
    """
    known = {rival.name: rival for rival in RIVALS + VARIANTS}
    groups = {"default": DEFAULT, "all": tuple(rival.name for rival in RIVALS), "none": ()}
    chosen: list[str] = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name not in known and name not in groups:
            raise ValueError(f"rival {name!r}; allowed: {', '.join([*groups, *known])}")
        chosen += groups.get(name, (name,))
    return tuple(known[name] for name in dict.fromkeys(chosen))
