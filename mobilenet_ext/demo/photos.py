"""Photographs as the demonstration's network wants them; needs Pillow, and scikit-learn for the sample photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mobilenet_ext.pretrained import INPUT_SIZE, MEAN, STD, require

if TYPE_CHECKING:
    from PIL import Image

# Side of the central square that is looked at, as a share of the shorter side: what the network was evaluated with.
CROP = 0.875


@dataclass(frozen=True)
class Photo:
    """A photograph and its tensor, (1, 3, 224, 224) in float32, scaled and normalised."""

    name: str
    pixels: Tensor


def read(paths: Sequence[str | Path]) -> list[Photo]:
    """The photographs at ``paths``.  ValueError, naming the file, for the first that cannot be read."""
    return [Photo(str(path), prepare(_open(path))) for path in paths]


def samples() -> list[Photo]:
    """scikit-learn's two sample photographs: a Chinese palace and a daisy."""
    require("PIL")
    found = require("sklearn.datasets").load_sample_images()
    image = require("PIL.Image")
    names = [Path(name).name for name in found.filenames]
    return [Photo(name, prepare(image.fromarray(array))) for name, array in zip(names, found.images, strict=True)]


def prepare(image: Image.Image) -> Tensor:
    """The central square of ``image``, resized bicubically, as (1, 3, 224, 224) in float32, normalised."""
    image = image.convert("RGB")
    width, height = image.size
    side = CROP * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    bicubic = require("PIL.Image").Resampling.BICUBIC
    square = image.resize((INPUT_SIZE, INPUT_SIZE), bicubic, box=(left, top, left + side, top + side))
    values = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).reshape(1, INPUT_SIZE, INPUT_SIZE, 3)
    return ((values / 255 - MEAN) / STD).permute(0, 3, 1, 2).contiguous()


def _open(path: str | Path) -> Image.Image:
    image = require("PIL.Image")
    try:
        with image.open(path) as opened:
            upright = require("PIL.ImageOps").exif_transpose(opened)
            upright.load()
    except image.UnidentifiedImageError:
        raise _unreadable(path, "Pillow does not know its format") from None
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    except (ValueError, SyntaxError, EOFError, image.DecompressionBombError) as error:  # what its decoders raise
        raise _unreadable(path, str(error)) from error
    return upright


def _unreadable(path: str | Path, reason: str) -> ValueError:
    return ValueError(
        f"image {str(path)!r} cannot be read: {reason}; allowed: files that Pillow opens, such as JPEG or PNG"
    )
