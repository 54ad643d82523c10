"""Matches blocks that no other matcher knows by their structure, found with ``torch.fx``.

A user's own block is a straight line of convolution, BatchNorm and activation, perhaps with squeeze-and-excitation in
it and a shortcut around it.  Which of its modules come in which order only its ``forward`` says; ``torch.fx`` runs it
once on symbolic values.  Everything in the graph has to be understood, or the block is left alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mobilenet_ext.matchers.chains import finish, in_blocks
from mobilenet_ext.matchers.common import (
    BATCH_NORMS,
    Activation,
    Match,
    Piece,
    Recurse,
    RefusedError,
    optional_class,
    read_activation,
    read_identity,
    read_squeeze,
    read_stage,
)
from mobilenet_ext.spec import BlockSpec

_MOST_CONVOLUTIONS = 8  # of one block, squeeze-and-excitation included
_FUNCTIONS: dict[Callable[..., Any], str] = {
    F.relu: "relu",
    torch.relu: "relu",
    F.relu6: "relu6",
    F.hardswish: "hardswish",
    F.silu: "silu",
    F.hardsigmoid: "hardsigmoid",
    F.sigmoid: "sigmoid",
    torch.sigmoid: "sigmoid",
}
_METHODS = {"relu": "relu", "relu_": "relu", "sigmoid": "sigmoid"}
_ADDS = (operator.add, operator.iadd, torch.add)
_MULTIPLIES = (operator.mul, operator.imul, torch.mul)
_DROPS = (nn.Dropout, nn.Dropout2d, nn.Identity)


class _Tracer(fx.Tracer):
    """Looks into every module of the user's, not into PyTorch's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m).__module__.startswith("torch.nn.") and not isinstance(m, nn.Sequential)


def _is_candidate(module: nn.Module) -> bool:
    """A module of the user's own with few convolutions, a depthwise one among them, and BatchNorm."""
    if type(module).__module__.startswith(("torch.", "mobilenet_ext.", "torchvision.", "timm.")):
        return False
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    depthwise = any(m.groups == m.in_channels == m.out_channels > 1 for m in convolutions)
    return depthwise and 2 <= len(convolutions) <= _MOST_CONVOLUTIONS


class _Reader:
    """Walks a traced graph from its input to its output."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        self.module = module
        self.nodes = [node for node in graph.nodes if node.op != "output"]
        self.modules = dict(module.named_modules())
        inputs = [node for node in self.nodes if node.op == "placeholder"]
        outputs = [node for node in graph.nodes if node.op == "output"]
        if len(inputs) != 1 or len(outputs) != 1 or not isinstance(outputs[0].args[0], fx.Node):
            raise RefusedError("its forward takes or returns something other than one tensor")
        self.input, self.result = inputs[0], outputs[0].args[0]
        self.read_nodes = {self.input}

    def read(self) -> Piece:
        end, residual = self.result, False
        if self._calls(end, _ADDS) and self.input in end.args:
            (others,) = ([arg for arg in end.args if arg is not self.input],)
            if len(end.args) != 2 or len(others) != 1 or not isinstance(others[0], fx.Node) or end.kwargs:
                raise RefusedError("its shortcut adds something other than its input to its layers")
            self.read_nodes.add(end)
            end, residual = others[0], True
        piece = self._line(self.input, end)
        unread = [node for node in self.nodes if node not in self.read_nodes]
        if unread:
            raise RefusedError(f"its forward has {unread[0].format_node()}, which no fused kernel covers")
        return in_blocks(piece, residual)

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    @staticmethod
    def _calls(node: fx.Node, functions: tuple[Any, ...]) -> bool:
        return node.op == "call_function" and node.target in functions

    def _next(self, node: fx.Node) -> fx.Node | None:
        """The one node that uses ``node`` and has not been read."""
        users = [user for user in node.users if user not in self.read_nodes and user.op != "output"]
        return users[0] if len(users) == 1 and users[0].args[:1] == (node,) else None

    def _activation(self, node: fx.Node | None) -> Activation | None:
        """The activation that ``node`` is, None if it is none."""
        if node is None:
            return None
        module = self._module(node)
        if module is not None:
            inside = type(module).__module__ == "torch.nn.modules.activation"
            return read_activation(module, str(node.target)) if inside else None
        if set(node.kwargs) - {"inplace", "input"} or len(node.args) > 1:
            return None
        if node.op == "call_method" and node.target in _METHODS:
            return Activation(_METHODS[str(node.target)])
        if node.op == "call_function" and node.target in _FUNCTIONS:
            return Activation(_FUNCTIONS[node.target])
        return None

    def _layer(self, node: fx.Node) -> tuple[Piece, fx.Node]:
        """The convolution at ``node`` with the BatchNorm and activation after it, and the last node read."""
        conv, path = self._module(node), str(node.target)
        assert conv is not None
        self.read_nodes.add(node)
        norm, norm_path, activation = None, "", Activation()
        following = self._next(node)
        if following is not None and isinstance(self._module(following), _BatchNorm):
            norm, norm_path, node = self._module(following), str(following.target), following
            self.read_nodes.add(node)
            following = self._next(node)
        found = self._activation(following)
        if found is not None and following is not None:
            activation, node = found, following
            self.read_nodes.add(node)
        return read_stage(conv, path, norm, norm_path, activation, norm_classes=BATCH_NORMS), node

    def _line(self, node: fx.Node, end: fx.Node) -> Piece:
        piece = Piece()
        while node is not end:
            squeeze = self._squeeze(node)
            if squeeze is not None:
                piece, node = piece + squeeze[0], squeeze[1]
                continue
            users = [user for user in node.users if user not in self.read_nodes and user.op != "output"]
            if len(users) != 1:
                raise RefusedError("its forward is no straight line of layers")
            following = users[0]
            module = self._module(following)
            if isinstance(module, nn.Conv2d):
                layer, node = self._layer(following)
                piece += layer
            elif isinstance(module, _DROPS):
                piece += read_identity(module, str(following.target))
                node = following
                self.read_nodes.add(node)
            else:
                raise RefusedError(f"its forward has {following.format_node()}, which no fused kernel covers")
        return piece

    def _squeeze(self, node: fx.Node) -> tuple[Piece, fx.Node] | None:
        """Mean, 1x1 convolution, activation, 1x1 convolution, gate, and the product with what the mean was of."""
        users = [user for user in node.users if user not in self.read_nodes and user.op != "output"]
        means = [user for user in users if self._is_mean(user)]
        products = [user for user in users if self._calls(user, _MULTIPLIES) and len(user.args) == 2]
        if len(users) != 2 or len(means) != 1 or len(products) != 1:
            return None
        read = [means[0]]
        parts: list[tuple[nn.Module, str]] = []
        for wanted in ("convolution", "activation", "convolution", "activation"):
            (following,) = read[-1].users if len(read[-1].users) == 1 else (None,)
            module = self._module(following) if following is not None else None
            convolution = isinstance(module, nn.Conv2d)
            if following is None or convolution != (wanted == "convolution"):
                return None
            if module is None:
                found = self._activation(following)
                if found is None:
                    return None
                module = _ACTIVATION_MODULES[found.name]()
            parts.append((module, str(following.target)))
            read.append(following)
        product = products[0]
        if set(product.args) != {node, read[-1]} or product.kwargs:
            return None
        self.read_nodes |= {*read, product}
        (first, first_path), (act, act_path), (second, second_path), (gate, gate_path) = parts
        names = (first_path, act_path, second_path, gate_path)
        return read_squeeze("", first, act, second, gate, names), product

    def _is_mean(self, node: fx.Node) -> bool:
        """Whether the node is the mean over H and W with both kept."""
        module = self._module(node)
        if module is not None:
            return type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1))
        if self._calls(node, (F.adaptive_avg_pool2d,)):
            return node.args[1:] in ((1,), ((1, 1),), ([1, 1],)) and not node.kwargs
        if (node.op == "call_method" and node.target == "mean") or self._calls(node, (torch.mean,)):
            given = dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | node.kwargs
            dims = given.get("dim")
            return (
                given.get("keepdim") is True
                and isinstance(dims, (tuple, list))
                and sorted(dim % 4 if isinstance(dim, int) else -1 for dim in dims) == [2, 3]
            )
        return False


_ACTIVATION_MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
    "hardsigmoid": nn.Hardsigmoid,
    "sigmoid": nn.Sigmoid,
}


def match(module: nn.Module, recurse: Recurse) -> Match | None:
    """A user's own block; None where it is no candidate, or where its parts are better matched one by one."""
    if not _is_candidate(module):
        return None
    kind = optional_class("torch.fx.graph_module", "GraphModule")
    if kind is not None and isinstance(module, kind):
        return None  # its code is what was traced; its modules are matched one by one
    graph = _trace(module)
    piece = _Reader(module, graph).read()
    if not any(isinstance(item, BlockSpec) and item.depthwise is not None for item in piece.items):
        return None
    # forward may ask for the mode of the module itself.
    return replace(finish(module, piece + Piece(identities=("",)), "block"), traced=True)


def _trace(module: nn.Module) -> fx.Graph:
    """The graph of the module in eval mode; its state is as before afterwards, and a forward that edits it refused."""
    before = [(part, dict(vars(part))) for part in module.modules()]
    try:
        module.eval()
        graph = _Tracer().trace(module)
    except Exception as error:  # whatever a user's forward raises on symbolic values
        first = str(error).strip().splitlines()[:1]
        what = f"{type(error).__name__}: {''.join(first)[:100]}"
        raise RefusedError(f"torch.fx cannot trace its forward ({what})") from None
    finally:
        edited = [_restore(part, state) for part, state in before]
    if any(edited):
        raise RefusedError("its forward sets attributes of its modules, which a fused kernel would not")
    return graph


def _restore(part: nn.Module, state: dict[str, Any]) -> bool:
    """Put the attributes of ``part`` back; whether any but the mode had changed."""
    now = vars(part)
    edited = now.keys() != state.keys() or any(now[k] is not v for k, v in state.items() if k != "training")
    now.clear()
    now.update(state)
    return edited
