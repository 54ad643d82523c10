"""ONNX Runtime on the CPU, from torch's exporter."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from mobilenet_ext.bench.rivals.base import Rival, Runner


def _convert(model: nn.Module, example: Tensor) -> bytes:
    import onnxruntime  # noqa: F401  missing is to be noticed before the long export

    # The exporter writes about its progress.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, (example,), dynamo=True, verbose=False)
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    return bytes(program.model_proto.SerializeToString())


def _load(converted: bytes, example: Tensor, threads: int) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(converted, options, providers=["CPUExecutionProvider"])
    feed: dict[str, Any] = {session.get_inputs()[0].name: example.numpy()}
    return lambda: session.run(None, feed)[0]


SESSION = Rival(
    "onnxruntime",
    "CPUExecutionProvider, ORT_ENABLE_ALL, dynamo export",
    ("onnxruntime", "onnx", "onnxscript"),
    _load,
    _convert,
)
