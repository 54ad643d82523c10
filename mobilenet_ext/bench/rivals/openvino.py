"""OpenVINO on the CPU, from the PyTorch front end, pinned to fp32: it may choose bf16 by itself."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from mobilenet_ext.bench.rivals.base import Rival, Runner

_STREAMS_FROM = 8


def _convert(model: nn.Module, example: Tensor) -> Any:
    import openvino

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return openvino.convert_model(model, example_input=example, input=[tuple(example.shape)])


def _convert_one(model: nn.Module, example: Tensor) -> Any:
    return _convert(model, example[:1])


def _compile(converted: Any, threads: int, hint: str) -> Any:
    import openvino

    settings = {"PERFORMANCE_HINT": hint, "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(converted, "CPU", settings)


def _load(converted: Any, example: Tensor, threads: int) -> Runner:
    request = _compile(converted, threads, "LATENCY").create_infer_request()
    inputs = [example.numpy()]
    return lambda: request.infer(inputs, share_inputs=True, share_outputs=True)[0]


def _load_streams(converted: Any, example: Tensor, threads: int) -> Runner:
    """The images of the batch as single requests over the streams that OpenVINO chooses; a call ends with the last."""
    import openvino

    queue = openvino.AsyncInferQueue(_compile(converted, threads, "THROUGHPUT"))
    images = [[image.numpy()] for image in example.split(1)]
    results: list[Tensor | None] = [None] * len(images)

    def store(request: Any, index: int) -> None:
        results[index] = torch.from_numpy(request.get_output_tensor(0).data.copy())

    queue.set_callback(store)

    def run() -> Tensor:
        for index, image in enumerate(images):
            queue.start_async(image, userdata=index, share_inputs=True)
        queue.wait_all()
        return torch.cat([result for result in results if result is not None])

    return run


LATENCY = Rival("openvino", "hint LATENCY, precision hint f32", ("openvino",), _load, _convert)
STREAMS = Rival(
    "openvino streams",
    "hint THROUGHPUT, precision hint f32, images as requests of their own",
    ("openvino",),
    _load_streams,
    _convert_one,
    _STREAMS_FROM,
)
