"""What a call costs outside the kernels: on so little arithmetic that nothing else is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import mobilenet_ext
from mobilenet_ext._library import native
from mobilenet_ext.bench import shapes
from mobilenet_ext.bench.cases import PlainLayer
from mobilenet_ext.bench.rivals import ours
from mobilenet_ext.bench.timing import Schedule, interleave
from mobilenet_ext.models import InvertedResidual, MobileNetV2

_WIDTH = 0.05  # 8 channels nearly everywhere


def measure(schedule: Schedule) -> list[dict[str, Any]]:
    """Microseconds per call on one thread, on an image of one pixel: the operator, one module, a whole MobileNetV2.

    The module's overhead includes the operator's; that of the network is of one operator call with all its layers.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            calls = _calls()
        with torch.inference_mode():
            samples = interleave(calls, schedule)
    finally:
        torch.set_num_threads(threads)
    return [{"what": name, "microseconds": 1e6 * min(samples.per_round(name))} for name in calls]


def _calls() -> dict[str, Callable[[], object]]:
    item = shapes.parse("block 8->8->8 1x1 k3 s1 relu6").item
    layer = PlainLayer(item).eval()
    pixel, image = torch.randn(1, 8, 1, 1), torch.randn(1, 3, 1, 1)
    rival = ours.chain("", (item,), lambda model: list(model.buffers()))
    operator = rival.load(rival.convert(layer, pixel), pixel, 1)
    block = mobilenet_ext.fuse(InvertedResidual(8, 8, 1, 1).eval())
    network = mobilenet_ext.fuse(MobileNetV2(num_classes=8, alpha=_WIDTH).eval())
    compiled = torch.compile(network)
    frozen = torch.compile(mobilenet_ext.freeze(mobilenet_ext.fuse(MobileNetV2(num_classes=8, alpha=_WIDTH).eval())))
    with torch.inference_mode():
        compiled(image)
        frozen(image)
    return {
        "operator": operator,
        "fused block": lambda: block(pixel),
        "fused MobileNetV2": lambda: network(image),
        "fused MobileNetV2, torch.compile": lambda: compiled(image),
        "the same, frozen": lambda: frozen(image),
        f"(empty call, {native.isa()})": lambda: None,
    }
