"""What a fused path relies on in the modules that it does not call, and why it may not run.

A fused chain skips its inner modules.  That is right only while they are what they were when they were matched: same
classes, same settings, no hooks, BatchNorm in eval mode.  ``Structure`` has the checks of every eager call,
``Snapshot`` the slow ones and the words.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules import module as global_hooks
from torch.utils.hooks import RemovableHandle

from mobilenet_ext._library import native
from mobilenet_ext.training.run import inactive

STATE = "_mobilenet_ext"  # the one attribute that a fused module adds to its instance

_HOOKS = {
    "_forward_hooks": "a forward hook",
    "_forward_pre_hooks": "a forward pre-hook (pruning and weight norm add one)",
    "_backward_hooks": "a backward hook",
    "_backward_pre_hooks": "a backward pre-hook",
}
_GLOBAL_HOOKS = (
    global_hooks._global_forward_hooks,
    global_hooks._global_forward_pre_hooks,
    global_hooks._global_backward_hooks,
    global_hooks._global_backward_pre_hooks,
)
# Settings without effect on the output in eval mode.
_FREE_SETTINGS = frozenset({"training", "momentum", "inplace", "p", "drop_prob", "drop_rate", "call_super_init"})

# Settings that change what a layer computes, compared at every call; the rest only after an epoch.
_GEOMETRY = (
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
    "negative_slope",
    "use_shortcut",
    "use_res_connect",
    "has_skip",
)


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class that the module has when it is not fused."""
    return getattr(type(module), "_plain_class", type(module))


def _is_setting(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_setting, value))
    return value is None or isinstance(value, (bool, int, float, str))


class _Expected(NamedTuple):
    cls: type[nn.Module]
    children: tuple[str, ...]
    names: tuple[str, ...]
    values: tuple[Any, ...]

    def holds(self, part: nn.Module) -> bool:
        now = vars(part)
        return (
            plain_class(part) is self.cls
            and "forward" not in now
            and tuple(part._modules) == self.children
            and tuple(map(now.get, self.names)) == self.values
        )


def _settings(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in attributes.items()
        if not name.startswith("_") and name not in _FREE_SETTINGS and _is_setting(value)
    }


def _expected(module: nn.Module) -> _Expected:
    settings = _settings(vars(module))
    return _Expected(plain_class(module), tuple(module._modules), tuple(settings), tuple(settings.values()))


class Snapshot:
    """Classes, children and settings of the module at ``""`` and of every skipped one, when they were matched."""

    def __init__(self, module: nn.Module, skipped: Iterable[str]) -> None:
        self._expected = {path: _expected(module.get_submodule(path)) for path in ("", *skipped)}

    def holds(self, parts: Iterable[nn.Module]) -> bool:
        """Whether nothing has changed since; ``parts`` are the modules of the snapshot's paths, in their order."""
        return all(map(_Expected.holds, self._expected.values(), parts))

    def classes(self) -> Iterator[tuple[str, type[nn.Module]]]:
        """Every skipped path with its class."""
        return ((path, expected.cls) for path, expected in self._expected.items() if path)

    def reason(self, module: nn.Module) -> str | None:
        """In one clause, what has changed since or sits on a skipped module; None when nothing does."""
        for path, expected in self._expected.items():
            part = part_of(module, path)
            if part is None:
                return f"{path} is gone"
            hook = next((words for name, words in _HOOKS.items() if path and vars(part).get(name)), None)
            if hook is not None:
                return f"{path} has {hook}"
            if not expected.holds(part):
                return _change(path or "the module itself", part, expected)
        return None


def _change(path: str, part: nn.Module, expected: _Expected) -> str:
    if "parametrizations" in part._modules:
        return f"{path} is parametrized"
    if plain_class(part) is not expected.cls:
        return f"{path} was a {expected.cls.__name__} and is a {plain_class(part).__name__}"
    if "forward" in vars(part):
        return f"forward of {path} was replaced"
    if tuple(part._modules) != expected.children:
        old, new = ", ".join(expected.children), ", ".join(part._modules)
        return f"children of {path} changed from ({old}) to ({new}) after fusing; fuse again"
    for name, value in zip(expected.names, expected.values, strict=True):
        now = vars(part).get(name)
        if now != value:
            return f"{name} of {path} changed from {value!r} to {now!r} after fusing; fuse again"
    return f"{path} changed after fusing; fuse again"


def part_of(module: nn.Module, path: str) -> nn.Module | None:
    """The submodule at ``path``, None if it is gone."""
    part: nn.Module | None = module
    for atom in path.split(".") if path else ():
        part = None if part is None else part._modules.get(atom)
    return part


def in_training(module: nn.Module, paths: Iterable[str]) -> bool:
    """Whether one of the submodules at ``paths`` is in training mode."""
    return any(part is not None and part.training for part in (part_of(module, path) for path in paths))


def mode_reason(
    module: nn.Module, norms: Iterable[str], identities: Iterable[str], in_eval: bool = False
) -> str | None:
    """Why the training modes and statistics inside rule the fused path out; None when they do not.

    With ``in_eval`` the modes are taken as eval ones and only the statistics are looked at.
    """
    if not in_eval and (in_training(module, norms) or in_training(module, identities)):
        return "training: PyTorch"
    for path in norms:
        norm = part_of(module, path)
        if norm is not None and getattr(norm, "running_mean", None) is None:
            return f"{path} has no running statistics"
    return None


def global_hook_reason() -> str | None:
    return "a global module hook is registered" if any(_GLOBAL_HOOKS) else None


class Structure:
    """The checks of every eager call, bound to the very module objects of one instance; their loops run in C++."""

    __slots__ = (
        "_hook_count",
        "_hooks",
        "_kept",
        "_moded",
        "_modes",
        "_needs_eval",
        "_parts",
        "_root_children",
        "_root_names",
        "_root_values",
        "modules",
    )

    def __init__(
        self,
        module: nn.Module,
        skipped: Iterable[str],
        norms: Iterable[str],
        identities: Collection[str],
        every_setting: bool = False,
    ) -> None:
        """``every_setting``: compare all of them at every call.  AttributeError when one of the submodules is gone."""
        self.modules = [module.get_submodule(path) for path in skipped]
        self._hooks = [*_GLOBAL_HOOKS, *(vars(part)[name] for part in self.modules for name in _HOOKS)]
        self._hook_count = -1
        self._root_children = module._modules
        children = [part._modules for part in (module, *self.modules) if part._modules]
        own = list(map(vars, self.modules))
        eps = [vars(module.get_submodule(path)) for path in norms]
        # Only the inner ones: a reference to the module's own dict would be a cycle that keeps its slot alive.
        modes = eps + [vars(module.get_submodule(path)) for path in identities if path]
        parts = [(store, name, child) for store in children for name, child in store.items()]
        parts += [(norm, "eps", norm["eps"]) for norm in eps]
        root = vars(module)
        if every_setting:
            parts += [(store, name, store[name]) for store in own for name in _settings(store)]
            self._root_names = list(_settings(root))
        else:
            parts += [(store, name, store[name]) for store in own for name in _GEOMETRY if name in store]
            self._root_names = [name for name in _GEOMETRY if name in root]
        self._root_values = [root[name] for name in self._root_names]
        states = [(mode, "training", False) for mode in modes]
        self._parts = native.Watch(parts, [*own, *children], self.modules)
        self._modes = native.Watch(states, [], [])
        self._kept = (parts, own, children, states)
        self._needs_eval = "" in identities
        # (False, norm) and (True, dropout or drop path)
        self._moded = [(False, module.get_submodule(path)) for path in norms]
        self._moded += [(True, module.get_submodule(path)) for path in identities if path]

    def is_that_of(self, module: nn.Module) -> bool:
        """Whether ``module`` still consists of the very objects that this is bound to, of unchanged classes."""
        return (
            module._modules is self._root_children
            and self._parts.holds()
            and list(map(vars(module).get, self._root_names)) == self._root_values
        )

    def in_eval(self, module: nn.Module) -> bool:
        """Whether every BatchNorm, dropout and drop path is in eval mode."""
        return self._modes.holds() and not (self._needs_eval and module.training)

    def may_train(self, module: nn.Module) -> bool:
        """Whether the training path stands for the module: no hooks, nothing that drops values, no synchronisation."""
        if any(self._hooks):
            return False
        if self._needs_eval and module.training and not inactive(module):
            return False
        return all(
            not part.training or (inactive(part) if drops else not isinstance(part, nn.SyncBatchNorm))
            for drops, part in self._moded
        )

    def may_run(self, module: nn.Module) -> bool:
        """Whether no hook sits on a skipped module and each is in the mode that the fused path stands for."""
        # Every hook that is registered anywhere takes a number: without a new one there is nothing to look through.
        count = RemovableHandle.next_id
        if count != self._hook_count:
            if any(self._hooks):
                return False
            self._hook_count = count
        return self._modes.holds() and not (self._needs_eval and module.training)
