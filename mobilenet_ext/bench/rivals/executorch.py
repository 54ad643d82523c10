"""ExecuTorch with the XNNPACK backend."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mobilenet_ext.bench.rivals.base import Rival, Runner


def _convert(model: nn.Module, example: Tensor) -> bytes:
    with _quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        # torch.export under inference mode gives a program that cannot be lowered.
        with torch.inference_mode(False), torch.no_grad():
            exported = torch.export.export(model, (example.clone(),))
            program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    return bytes(program.buffer)


def _load(converted: bytes, example: Tensor, threads: int) -> Runner:
    from executorch.extension.pybindings import portable_lib

    with _quiet():
        portable_lib._unsafe_reset_threadpool(threads)  # the only way to set it from Python
        module = portable_lib._load_for_executorch_from_buffer(converted)
    inputs = [example]
    return lambda: module.forward(inputs)[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lowering warns and logs about things of its own; the native part writes to the file descriptor itself."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    descriptor = os.dup(2)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as sink:
            os.dup2(sink.fileno(), 2)
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(descriptor, 2)
        os.close(descriptor)
        logging.disable(previous)


XNNPACK = Rival(
    "executorch", "XNNPACK partitioner, thread pool reset per thread count", ("executorch",), _load, _convert
)
