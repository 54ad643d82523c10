"""Recognising what can be fused: one matcher file per library, tried in order, each yielding specs and tensor paths.

A matcher is a function ``match(module, recurse) -> Match | None`` that raises ``RefusedError`` with one sentence when
the module is a candidate but not supported; ``recurse`` is :func:`match_module` for its children.
"""

from __future__ import annotations

from torch import nn

from mobilenet_ext.matchers import reference, sequence, timm, torchvision, traced
from mobilenet_ext.matchers.chains import merge_stem, source_tensors
from mobilenet_ext.matchers.common import Match, Refusal, RefusedError, Run, Source

__all__ = ["Match", "Refusal", "Run", "Source", "match_module", "match_runs", "merge_stem", "source_tensors"]

MATCHERS = (reference, torchvision, timm, sequence, traced)


def match_module(module: nn.Module) -> Match | Refusal | None:
    """What stands in for ``module``: a match, a refusal with its reason, or None if it is no candidate at all.

    Never raises and never changes the module.  A refusal does not speak for the children: a model whose classifier is
    unusual is refused as a whole, while its blocks match.
    """
    for matcher in MATCHERS:
        try:
            match = matcher.match(module, match_module)
        except RefusedError as refused:
            return Refusal(str(refused))
        except (AttributeError, TypeError, ValueError, KeyError) as error:  # a module changed beyond what it promises
            return Refusal(f"{type(module).__name__} could not be read: {error}")
        if match is not None:
            return match
    return None


def match_runs(sequential: nn.Sequential) -> list[Run]:
    """Maximal runs of two or more consecutive children of ``sequential`` that form one chain, in order.

    Paths in a run's match start at the Sequential.  Empty for anything but a Sequential with its own ``forward``.
    """
    try:
        return sequence.runs(sequential, match_module)
    except (AttributeError, TypeError, ValueError, KeyError):
        return []
