"""Runs of consecutive children of a Sequential, each one operator call."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from mobilenet_ext.matchers import match_runs
from mobilenet_ext.modules.chain import FusedChain
from mobilenet_ext.modules.plain import finish_plain


class Runs:
    """The fused runs of one Sequential: index of the first child -> (index past the last child, chain)."""

    def __init__(self, found: dict[int, tuple[int, FusedChain]]) -> None:
        self.found = found

    def chains(self) -> list[FusedChain]:
        return [chain for _, chain in self.found.values()]


def find_runs(sequential: Any, follow_input: bool = False, training: bool = True) -> Runs | None:
    """The runs of a plain Sequential, None when there are none."""
    runs = match_runs(sequential)
    found = {run.start: (run.stop, FusedChain(sequential, run.match, follow_input, training)) for run in runs}
    return Runs(found) if found else None


@functools.wraps(nn.Sequential.forward)
def forward_runs(self: Any, input: Any) -> Any:
    """``nn.Sequential.forward`` with each run as one call; a run that may not be fused calls its children."""
    found = {} if self._mobilenet_ext is None else self._mobilenet_ext.found
    children = list(self._modules.values())
    index = 0
    while index < len(children):
        if index not in found:
            input = children[index](input)
            index += 1
            continue
        stop, chain = found[index]
        y = chain.run(self, input)
        if y is None:
            y = input
            for child in children[index:stop]:
                y = child(y)
            y = finish_plain(self, chain, input, y)
        input, index = y, stop
    return input
