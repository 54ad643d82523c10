"""The demonstration: a real network with its real weights classifies real photographs, plain and fused.

Needs the packages of the extra ``demo``; uses no network.
"""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mobilenet_ext import fuse, fusion_report, pretrained, tolerance, verify
from mobilenet_ext._library import native
from mobilenet_ext.demo.photos import Photo
from mobilenet_ext.demo.timing import interleaved, ratio
from mobilenet_ext.report import FusionReport
from mobilenet_ext.tolerance import Comparison

if TYPE_CHECKING:
    from mobilenet_ext.verification import VerifyResult

MODEL = "EfficientNet-Lite0"
PLAIN, PLAIN_NHWC, FUSED = "PyTorch", "PyTorch, channels_last", "mobilenet_ext"
_TOP = 5


@dataclass(frozen=True)
class Guess:
    """One of the likeliest ImageNet classes; ``index`` is its place in the 1000 logits."""

    index: int
    name: str
    probability: float


@dataclass(frozen=True)
class Answer:
    """What both models say about one photograph, likeliest class first; ``logit_difference`` is their largest."""

    photo: str
    plain: tuple[Guess, ...]
    fused: tuple[Guess, ...]
    logit_difference: float


@dataclass(frozen=True)
class Timing:
    """Median milliseconds of one photograph by contestant; speed-up of the fused model over each of the others.

    A speed-up is (median, lower quartile, upper quartile) of the ratios within a round.
    """

    threads: int
    rounds: int
    isa: str
    milliseconds: dict[str, float]
    speedup: dict[str, tuple[float, float, float]]


@dataclass(frozen=True)
class DemoResult:
    """``logits`` sets the fused logits of all photographs against float64, ``verification`` every fused module on the
    first one.

    ``timing`` is None where the models disagree: a wrong result has no speed.
    """

    answers: tuple[Answer, ...]
    logits: Comparison
    verification: VerifyResult
    report: FusionReport
    timing: Timing | None = None

    @property
    def ok(self) -> bool:
        """Whether something was fused, and all fused modules and the logits are within tolerance."""
        return self.verification.fused > 0 and self.verification.ok and self.logits.ok

    @property
    def logit_difference(self) -> float:
        """The largest difference between a logit of the two models."""
        return max(answer.logit_difference for answer in self.answers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model": MODEL,
            "ok": self.ok,
            "answers": [asdict(answer) for answer in self.answers],
            "logit_difference": self.logit_difference,
            "logits": asdict(self.logits),
            "verification": self.verification.to_dict(),
            "fusion_report": json.loads(self.report.to_json()),
            "timing": None if self.timing is None else asdict(self.timing),
        }


def steps(photos: Sequence[Photo], rounds: int) -> int:
    """How often :func:`run_demo` calls ``advance``."""
    return 2 + len(photos) + rounds


def run_demo(
    photos: Sequence[Photo],
    rounds: int = 20,
    threads: int | None = None,
    advance: Callable[[str], None] = lambda next_step: None,
) -> DemoResult:
    """Classify ``photos`` with the plain and the fused network, compare the two, and if they agree, time them.

    ``rounds`` is how often each is timed, with ``threads`` threads (default: torch's number).  ``advance`` is called
    after each step with what comes next.  ValueError for no photograph, or for numbers below 1; ImportError if a
    package of the extra ``demo`` is missing.
    """
    threads = torch.get_num_threads() if threads is None else threads
    for name, value in (("photos has length", len(photos)), ("rounds is", rounds), ("threads is", threads)):
        if value < 1:
            raise ValueError(f"{name} {value}; allowed: 1 or more")
    plain = pretrained.load()
    fused = fuse(plain)
    exact = copy.deepcopy(plain).double()
    names = pretrained.require("timm.data").ImageNetInfo()
    advance("classifying")
    answers, logits = [], []
    for photo in photos:
        logits.append(_logits(plain, fused, exact, photo.pixels))
        answers.append(_answer(photo.name, *logits[-1][:2], names.index_to_description))
        advance("classifying" if len(answers) < len(photos) else "comparing every fused module with float64")
    x = photos[0].pixels
    result = DemoResult(tuple(answers), _compare(logits), verify(plain, fused, x), fusion_report(fused, x))
    advance("timing")
    if not result.ok:
        return result
    return replace(result, timing=_time(plain, fused, x, rounds, threads, advance))


@torch.no_grad()
def _logits(plain: nn.Module, fused: nn.Module, exact: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return plain(x)[0], fused(x)[0], exact(x.double())[0]


def _answer(photo: str, plain: Tensor, fused: Tensor, name_of: Callable[[int], str]) -> Answer:
    return Answer(photo, _top(plain, name_of), _top(fused, name_of), (plain - fused).abs().max().item())


def _compare(logits: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Comparison:
    """All photographs together: the errors of one photograph's logits have common causes, and so vary by chance."""
    plain, fused, exact = (torch.stack(tensors) for tensors in zip(*logits, strict=True))
    return tolerance.compare(fused, exact, (plain.double() - exact).square().mean().sqrt().item())


def _top(logits: Tensor, name_of: Callable[[int], str]) -> tuple[Guess, ...]:
    best = logits.softmax(dim=0).topk(_TOP)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple(Guess(index, name_of(index), probability) for index, probability in pairs)


def _time(
    plain: nn.Module, fused: nn.Module, x: Tensor, rounds: int, threads: int, advance: Callable[[str], None]
) -> Timing:
    # Both layouts, because either may be the faster one for PyTorch.
    nhwc = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    x_nhwc = x.to(memory_format=torch.channels_last)
    contestants = {PLAIN: lambda: plain(x), PLAIN_NHWC: lambda: nhwc(x_nhwc), FUSED: lambda: fused(x)}
    seconds = interleaved(contestants, rounds, threads, lambda: advance("timing"))
    return Timing(
        threads=threads,
        rounds=rounds,
        isa=native.isa(),
        milliseconds={name: 1e3 * statistics.median(times) for name, times in seconds.items()},
        speedup={name: ratio(seconds[name], seconds[FUSED]) for name in (PLAIN, PLAIN_NHWC)},
    )
