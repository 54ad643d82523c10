"""Models by name, for the command line: ours, torchvision's, timm's, or whatever a user's callable returns.

All but the pretrained ones and a callable's get random weights and BatchNorm statistics that make their activations
spread over both clamps of ReLU6, so that a comparison exercises the arithmetic; nothing is downloaded.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

DEFAULT_SIZE = 224  # pixels


class Files(NamedTuple):
    """What :func:`load` may read beside a name: a file with a state_dict, and whether pickled modules are allowed."""

    weights: str | None = None
    allow_pickle: bool = False

    def load(self, name: str, size: int | None = None) -> nn.Module:
        return load(name, size, weights=self.weights, allow_pickle=self.allow_pickle)


NO_FILES = Files()

_FORMS = "reference:v1, reference:v2, pretrained:efficientnet_lite0, a torchvision or timm name, or module:callable"


class LoadError(ValueError):
    """The model cannot be had; the message is one sentence."""


def load(
    name: str, size: int | None = None, seed: int = 0, *, weights: str | None = None, allow_pickle: bool = False
) -> nn.Module:
    """The model called ``name``, in eval mode on the CPU.

    ``name`` is ``reference:v1`` or ``reference:v2``, ``pretrained:efficientnet_lite0`` (real weights, from the
    packages of the extra ``demo``), a torchvision or timm classification model (``torchvision:`` or ``timm:`` in front
    decides where both have one; torchvision is asked first), or ``module:callable``, a callable without arguments that
    returns an ``nn.Module``, which is used as it is.  ``size`` is the side in pixels of the image that sets the
    statistics of a random model.

    ``name`` may also be a file: a torch.export package (``.pt2``), or, with ``allow_pickle``, a pickled module, which
    can run any code while it is read.  ``weights`` is a file with a ``state_dict``, read with ``weights_only=True``
    and loaded strictly.  LoadError if there is no such model, package or file.
    """
    model = _load(name, size, seed, allow_pickle)
    if weights is not None:
        _load_weights(model, weights)
    return model


def _load(name: str, size: int | None, seed: int, allow_pickle: bool) -> nn.Module:
    if Path(name).suffix in (".pt2", ".pt", ".pth", ".pkl") and ":" not in name:
        return _from_file(Path(name), allow_pickle)
    prefix, separator, rest = name.partition(":")
    if separator and prefix == "pretrained":
        return _pretrained(rest)
    if separator and prefix not in ("reference", "torchvision", "timm"):
        return _from_callable(prefix, rest).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _by_name(name) if separator == "" else _from_library(prefix, rest)
        side = size or input_size(model)
        randomise(model, torch.randn(2, input_channels(model), side, side))
    return model.eval()


def input_size(model: nn.Module) -> int:
    """Side in pixels of the image a model was made for; 224 where it does not say."""
    size = getattr(model, "input_size", None)
    if isinstance(size, int):
        return size
    config = getattr(model, "pretrained_cfg", None)
    return int(config["input_size"][-1]) if config and config.get("input_size") else DEFAULT_SIZE


def input_channels(model: nn.Module) -> int:
    """Channels of a model's image: those of its first convolution, 3 if it has none."""
    return next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)


@torch.no_grad()
def randomise(model: nn.Module, example: Tensor) -> None:
    """Give every BatchNorm random affine parameters and, near those of ``example``, random statistics, in place.

    Uses the global random generator.  The mode of every module is as before.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        if norm.affine:
            norm.weight.uniform_(1.0, 3.0)
            norm.bias.normal_(0.5, 1.0)
        norm.momentum = 1.0
        norm.training = norm.track_running_stats
    try:
        model(example)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes:
            module.training = mode
    for norm in norms:
        if norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.add_(0.3 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean))
            norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.6, 1.6))


def _from_file(path: Path, allow_pickle: bool) -> nn.Module:
    if not path.is_file():
        raise LoadError(f"there is no file {str(path)!r}")
    if path.suffix == ".pt2":
        try:
            return torch.export.load(path).module()
        except Exception as error:  # whatever a damaged archive raises
            raise LoadError(f"{path} is no torch.export package ({type(error).__name__})") from error
    if not allow_pickle:
        raise LoadError(
            f"{path} may hold a pickled module, and reading one can run any code that is in it; "
            "--allow-pickle reads files that you trust, and --weights FILE reads tensors only"
        )
    model = torch.load(path, map_location="cpu", weights_only=False)
    if not isinstance(model, nn.Module):
        raise LoadError(f"{path} holds a {type(model).__name__}; allowed: a torch.nn.Module (--weights takes the rest)")
    return model.eval()


def _load_weights(model: nn.Module, file: str) -> None:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise LoadError(f"the weights cannot be read: {error}") from error
    except Exception as error:  # the unpickler's refusals are of several kinds
        first = str(error).strip().splitlines()[:1]
        raise LoadError(f"{file} holds more than tensors, or is damaged: {''.join(first)[:120]}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise LoadError(f"{file} holds a {type(state).__name__}; allowed: a state_dict")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise LoadError(" ".join(line.strip() for line in str(error).splitlines()[:2])[:200]) from error


def _reference(version: str) -> nn.Module:
    from mobilenet_ext import models

    classes = {"v1": models.MobileNetV1, "v2": models.MobileNetV2}
    if version not in classes:
        raise LoadError(f"no reference model {version!r}; allowed: v1, v2")
    return classes[version]()


def _pretrained(name: str) -> nn.Module:
    from mobilenet_ext import pretrained

    try:
        return pretrained.load(name)
    except (ImportError, ValueError) as error:
        raise LoadError(str(error)) from error


def _no_import(package: str, error: Exception) -> str:
    advice = f"; `pip install {package}` adds it" if isinstance(error, ModuleNotFoundError) else ""
    return f"{package} cannot be imported ({error}){advice}"


def _from_torchvision(name: str) -> nn.Module | str:
    """The model, or why there is none."""
    try:
        from torchvision import models
    except (ImportError, OSError, RuntimeError) as error:  # a build for another torch raises RuntimeError
        return _no_import("torchvision", error)
    names = models.list_models(module=models)
    if name not in names:
        return _unknown(name, names)
    return models.get_model(name, weights=None)


def _from_timm(name: str) -> nn.Module | str:
    try:
        import timm
    except (ImportError, OSError, RuntimeError) as error:
        return _no_import("timm", error)
    if not timm.is_model(name):
        return _unknown(name, timm.list_models())
    return timm.create_model(name, pretrained=False)


def _unknown(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3)
    return "it knows " + ", ".join(close) if close else "it knows nothing like it"


def _from_library(library: str, name: str) -> nn.Module:
    if library == "reference":
        return _reference(name)
    found = _from_torchvision(name) if library == "torchvision" else _from_timm(name)
    if isinstance(found, str):
        raise LoadError(f"no model {name!r} in {library}: {found}")
    return found


def _by_name(name: str) -> nn.Module:
    reasons = {}
    for library, find in (("torchvision", _from_torchvision), ("timm", _from_timm)):
        found = find(name)
        if isinstance(found, nn.Module):
            return found
        reasons[library] = found
    listed = "; ".join(f"{library}: {reason}" for library, reason in reasons.items())
    raise LoadError(f"no model {name!r} ({listed}); allowed: {_FORMS}")


def _from_callable(module_name: str, attribute: str) -> nn.Module:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        target = importlib.import_module(module_name)
    except ImportError as error:
        raise LoadError(f"cannot import module {module_name!r}: {error}; allowed: {_FORMS}") from error
    finally:
        sys.path.remove(here)
    factory = getattr(target, attribute, None)
    if not callable(factory):
        raise LoadError(f"module {module_name!r} has no callable {attribute!r}")
    model = factory()
    if not isinstance(model, nn.Module):
        raise LoadError(f"{module_name}:{attribute} returned a {type(model).__name__}; allowed: a torch.nn.Module")
    return model
