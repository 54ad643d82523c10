"""``FusedModule``: the mixin that a swapped module's class gains, and the making and unmaking of such classes.

A swap leaves the instance alone: its ``__dict__``, children, parameters and keys stay.  Only its class becomes a
subclass of the class it had, and one attribute holds the fused chain.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from mobilenet_ext.freshness import bump_epoch
from mobilenet_ext.modules.chain import FusedChain
from mobilenet_ext.modules.plain import finish_plain
from mobilenet_ext.modules.runs import Runs, forward_runs
from mobilenet_ext.modules.structure import STATE

_Module = TypeVar("_Module", bound=nn.Module)
_Fused = TypeVar("_Fused", bound="FusedModule")
PlainClass = type[nn.Module]
RUNS = "runs"  # in place of a method's name: the Sequential whose runs are fused


class FusedModule(nn.Module):
    """What every fused module is an instance of; also an instance of the class that it replaced."""

    _plain_class: PlainClass
    _method = "forward"
    _mobilenet_ext: Any = None  # on the instance: what it runs fused; None until there is something

    def _distrust(self) -> None:
        for chain in fused_chains(self):
            chain.distrust()
        bump_epoch()

    def train(self, mode: bool = True) -> FusedModule:
        changes = any(module.training != mode for module in self.modules())
        super().train(mode)
        if changes:
            self._distrust()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FusedModule:
        super()._apply(fn, recurse)
        self._distrust()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._distrust()

    def __prepare_scriptable__(self) -> FusedModule:
        """What ``torch.jit.script`` calls first.  It would put a plain copy into the user's model, so none is given."""
        raise TypeError(
            f"torch.jit.script cannot compile the fused {self._plain_class.__name__}; "
            "script mobilenet_ext.unfuse(model), or use torch.export"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(protocol)
        made_here = "_method" in vars(type(self)) and type(self).__module__ == __name__
        if made_here and isinstance(reduced, tuple) and reduced[1] == (type(self),):
            return (_new_instance, (self._plain_class, self._method), *reduced[2:])
        return reduced


def _new_instance(plain: PlainClass, method: str) -> nn.Module:
    """What pickle and deepcopy call; the state follows."""
    cls = fused_class(plain, method)
    return cls.__new__(cls)


def fused_method(plain: PlainClass, name: str = "forward") -> Callable[..., Any]:
    """The method that tries the fused chain first and runs ``plain``'s own method otherwise."""
    original = getattr(plain, name)
    parameters = list(inspect.signature(original).parameters)
    first = parameters[1] if len(parameters) > 1 else ""

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        chain = self._mobilenet_ext
        x = None
        if len(args) == 1 and not kwargs:
            x = args[0]
        elif not args and len(kwargs) == 1:
            x = kwargs.get(first)
        if chain is None:
            return original(self, *args, **kwargs)
        if x is not None:
            y = chain.run(self, x)
            if y is not None:
                return y
        return finish_plain(self, chain, x, original(self, *args, **kwargs))

    return method


_classes: dict[tuple[PlainClass, str], type[FusedModule]] = {}


def register_fused_class(cls: type[_Fused]) -> type[_Fused]:
    """Class decorator: use ``cls`` for modules whose plain class is ``cls._plain_class``."""
    _classes[cls._plain_class, cls._method] = cls
    return cls


def fused_class(plain: PlainClass, method: str = "forward") -> type[FusedModule]:
    """The fused subclass of ``plain``, made once; ``method`` is the one that the chain replaces, or ``RUNS``."""
    cls = _classes.get((plain, method))
    if cls is None:
        override = {"forward": forward_runs} if method == RUNS else {method: fused_method(plain, method)}
        namespace = {
            "__module__": __name__,
            "__doc__": f"{plain.__module__}.{plain.__qualname__} with fused kernels.",
            "_plain_class": plain,
            "_method": method,
        }
        made = type(f"Fused{plain.__name__}", (FusedModule, plain), namespace | override)
        cls = _classes.setdefault((plain, method), made)
    return cls


def fused_chains(module: nn.Module) -> list[FusedChain]:
    """The chains that ``module`` itself runs; those of its children are their own."""
    state: FusedChain | Runs | None = vars(module).get(STATE)
    return [] if state is None else state.chains()


def swap_in(module: nn.Module, state: FusedChain | Runs, method: str = "forward") -> None:
    """Make ``module`` fused in place; ``state`` becomes its one new attribute."""
    cls = fused_class(type(module), method)
    object.__setattr__(module, STATE, state)
    module.__class__ = cls


def swap_out(module: nn.Module) -> None:
    """Undo :func:`swap_in`.  A subclass that somebody derived from a fused class keeps its class and runs plainly."""
    if isinstance(module, FusedModule):
        plain = module._plain_class
        if _classes.get((plain, module._method)) is type(module):
            module.__class__ = plain  # type: ignore[assignment]
        vars(module).pop(STATE, None)


def sharing_copy(model: _Module) -> _Module:
    """A copy of ``model`` and its children around the very same parameters and buffers."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
