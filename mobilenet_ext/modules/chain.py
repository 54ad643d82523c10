"""One fused chain of one module: decides per call whether it may run, then calls the operator.

There are two ways in.  In eager mode the checks are made in Python and a fresh chain passes its slot only.  Under
``torch.compile`` and ``torch.export`` the operator gets every source, because the graph has to see the parameters.
"""

from __future__ import annotations

import copy
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from mobilenet_ext._library import native
from mobilenet_ext.backends import cpu, unsupported
from mobilenet_ext.freshness import (
    Slot,
    Stamp,
    current_epoch,
    distrust,
    hidden_change,
    is_fresh,
    take_stamp,
    watch_optimizers,
)
from mobilenet_ext.memory_format import in_format_of
from mobilenet_ext.modules.bound import PLAIN_TENSORS, Bound, is_supported, is_supported_on_gpu
from mobilenet_ext.modules.structure import Snapshot, global_hook_reason, mode_reason
from mobilenet_ext.modules.switch import switch
from mobilenet_ext.modules.traced import run_traced, trace_key
from mobilenet_ext.spec import BlockSpec, ChainItem, LinearSpec, encode
from mobilenet_ext.training.run import no_training_kernel, run_steps, steps_of, training_reason

if TYPE_CHECKING:
    from mobilenet_ext.matchers import Match

_ops = torch.ops.mobilenet_ext
_chain_cached = _ops.chain_cached.default
_requires_grad = attrgetter("requires_grad")
_is_grad_enabled = torch.is_grad_enabled
_is_autocast_enabled = torch.is_autocast_enabled
_tracing_state = torch._C._get_tracing_state
_transforms_active = torch._C._are_functorch_transforms_active
_AUTOCAST_INPUTS = frozenset({torch.float32, torch.bfloat16, torch.float16})


def _adds_its_input(chain: tuple[ChainItem, ...]) -> bool:
    """Whether shortcuts alone lead from the input to the output, so that a wider input widens the output."""
    before, wide = True, True
    for item in chain:
        short = before if isinstance(item, BlockSpec) and item.residual_back else wide
        before, wide = wide, isinstance(item, BlockSpec) and (item.residual or item.residual_back) and short
    return wide


class FusedChain:
    """The state that turns the modules of a ``Match`` into one operator call.

    It holds no reference to the module that owns it.  A copy or an unpickled chain starts with an empty slot and
    binds itself to its module at the first call.
    """

    def __init__(self, module: nn.Module, match: Match, follow_input: bool = False, training: bool = True) -> None:
        self.match = match
        self.training = training
        self.snapshot = Snapshot(module, match.skipped)
        self.frozen = False
        self._set_layout(follow_input)
        self._reset()

    def _set_layout(self, follow_input: bool) -> None:
        self.follow_input = follow_input
        layout = "follow_input" if follow_input else "channels_last"
        self.program, self.constants = encode(self.match.chain, layout)
        self.steps = steps_of(self.match)
        # Why no training kernel takes the chain, whatever its modes; then PyTorch trains it.
        self.no_training = no_training_kernel(self.match.chain)
        self.trains = self.training and self.no_training is None
        self.key = trace_key(self.match, self.snapshot, layout, self.steps if self.trains else ())
        first = self.match.chain[0]
        self.in_channels = first.in_features if isinstance(first, LinearSpec) else first.in_channels
        # What the backend says of the chain itself; device and dtype are looked at on every call.
        self.no_kernel = unsupported(cpu, self.match.chain, torch.device("cpu"), torch.float32)
        self._only_residual = _adds_its_input(self.match.chain)

    def _reset(self) -> None:
        watch_optimizers()
        self.slot = Slot()
        # A compiled graph may be called with other tensors than the module's own (functional_call), which a stamp
        # made in Python would not notice; so it packs into a slot of its own.
        self.graph_slot = Slot()
        self.step_slots = [Slot() for _ in self.steps]  # frozen blocks in training, each packed by itself
        self.stamp: Stamp | None = None
        # Frozen, and the slot holds what the module holds: a compiled graph then reads no tensor of the module.
        self.sealed = False
        self.bound: Bound | None = None
        self.last_shape: tuple[int, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("match", "snapshot", "frozen", "follow_input", "training")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.match, self.snapshot, self.frozen = state["match"], state["snapshot"], state["frozen"]
        self.training = state["training"]
        self._set_layout(state["follow_input"])
        self._reset()

    def __deepcopy__(self, memo: dict[int, Any]) -> FusedChain:
        clone = copy.copy(self)
        memo[id(self)] = clone
        return clone

    def chains(self) -> list[FusedChain]:
        return [self]

    def distrust(self) -> None:
        """Look at everything again at the next call, even when frozen."""
        self.stamp = None
        self.sealed = False

    def freeze(self, module: nn.Module) -> None:
        """Check no more, and pack the weights now where the fused path may run on the CPU."""
        self.frozen = True
        if self.no_kernel is not None or switch.depth or isinstance(self.match.chain[0], LinearSpec):
            return
        nothing = torch.empty((0, self.in_channels, 1024, 1024))  # large enough for any chain
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            if self._inspect(module, nothing) is None or self.bound is None:
                return
            if self.bound.structure.in_eval(module):
                self._run_checked(module, nothing)

    def reason(self, module: nn.Module) -> str | None:
        """Why ``module`` would run in PyTorch now, whatever its input; None when the fused path may run."""
        if switch.depth:
            return "switched off (disabled() or MOBILENET_EXT_DISABLE)"
        return (
            self.no_kernel
            or self._mode_reason(module)
            or global_hook_reason()
            or self.snapshot.reason(module)
            or self._source_reason(module)
        )

    def _mode_reason(self, module: nn.Module) -> str | None:
        reason = mode_reason(module, self.match.norms, self.match.identities)
        if reason is None or not self.training:
            return reason
        if self.no_training is not None:
            return f"training: {self.no_training}, which PyTorch runs"
        return training_reason(module, self.match.norms, self.match.identities) or mode_reason(
            module, self.match.norms, (), in_eval=True
        )

    def training_kernel(self, module: nn.Module, index: int) -> str:
        """How item ``index`` trains as its BatchNorm stands now; empty in eval mode."""
        if not self.trains:
            return ""
        norms = [norm for norm in self.steps[index].norms if norm is not None]
        modes = {module.get_submodule(path).training for path, _ in norms}
        if True not in modes:
            return ""
        return "training: batch statistics" if len(modes) == 1 else "training: some batch statistics"

    def _source_reason(self, module: nn.Module) -> str | None:
        for source in self.match.sources:
            owner = module.get_submodule(source.path)
            tensor: Tensor | None = owner._parameters.get(source.name)
            if tensor is None:
                tensor = owner._buffers.get(source.name)
            where = f"{source.path}.{source.name}".lstrip(".")
            if tensor is None:
                return f"{where} is neither a parameter nor a buffer any more"
            if not is_supported(tensor) and not (tensor.is_cuda and is_supported_on_gpu(tensor, tensor)):
                kind = type(tensor).__name__
                return (
                    f"{where} is a {kind} of {tensor.dtype} and {tensor.layout} on {tensor.device}; "
                    "kernels exist for dense tensors, float32 on the CPU, float32, float16 and bfloat16 on GPUs"
                )
        return None

    def run(self, module: nn.Module, x: Any) -> Tensor | None:
        """The output for ``x`` (N, C, H, W), or None when the plain modules have to run.

        An input that no kernel takes (rank, dtype, device, channels) also gives None, so that the plain modules
        answer it with the result or the error that their user knows.
        """
        if is_compiling():
            return run_traced(self, module, x)
        if self.no_kernel is not None and not (isinstance(x, Tensor) and x.is_cuda):
            return None
        if (
            type(x) not in PLAIN_TENSORS
            or switch.depth
            or _tracing_state() is not None
            or _transforms_active()
            or forward_ad._current_level >= 0
        ):
            return None
        shape = x.shape
        if len(shape) != 4 or shape[1] != self.in_channels or x.layout is not torch.strided:
            return None
        if not x.is_cpu:
            return self._run_on_gpu(module, x) if x.is_cuda else None
        if _is_autocast_enabled("cpu"):
            if x.dtype not in _AUTOCAST_INPUTS:
                return None
            y = self._run_eager(module, x.float())
            return y if y is None else y.to(self.autocast_dtype(x))
        if x.dtype is not torch.float32:
            return None
        self.last_shape = shape
        return self._run_eager(module, x)

    def _run_on_gpu(self, module: nn.Module, x: Tensor) -> Tensor | None:
        """Under autocast the image takes the autocast dtype, as the inputs of autocast's convolutions do."""
        if _is_autocast_enabled("cuda"):
            if x.dtype not in _AUTOCAST_INPUTS:
                return None
            dtype = self.autocast_dtype(x)
            y = self._run_eager(module, x.to(torch.get_autocast_dtype("cuda")))
            return y if y is None else y.to(dtype)
        if x.dtype not in _AUTOCAST_INPUTS:
            return None
        self.last_shape = x.shape
        return self._run_eager(module, x)

    def _run_eager(self, module: nn.Module, x: Tensor) -> Tensor | None:
        stamp = self.stamp
        if stamp is None:
            return self._run_checked(module, x)
        if self.frozen:
            tensors = stamp.tensors
        else:
            bound = self.bound
            if bound is None or not bound.is_that_of(module) or not bound.structure.may_run(module):
                return self._run_checked(module, x)
            tensors = bound.watch.tensors
            if tensors is not stamp.tensors or not is_fresh(stamp):
                return self._run_checked(module, x)
        if _is_grad_enabled() and (x.requires_grad or any(map(_requires_grad, tensors))):
            if self.trains and x.is_cpu:
                return self._run_steps(module, x, tensors)
            return _ops.chain_grad.default(x, tensors, self.slot.tensor, self.program, self.constants)
        try:
            return _chain_cached(x, self.slot.tensor)
        except RuntimeError:
            # Another instruction set was chosen since, or this input has an error, which the next call repeats.
            return self._run_checked(module, x)

    def _run_checked(self, module: nn.Module, x: Tensor) -> Tensor | None:
        """Inspect everything, then pass all sources, which repacks what is stale."""
        previous, self.stamp = self.stamp, None
        self.sealed = False
        tensors = self._inspect(module, x)
        if tensors is None:
            return None
        assert self.bound is not None
        grad = _is_grad_enabled() and (x.requires_grad or any(map(_requires_grad, tensors)))
        if self.trains and x.is_cpu and (grad or not self.bound.structure.in_eval(module)):
            self.stamp = previous
            return self._run_steps(module, x, tensors)
        # The stamp comes before the call: an edit made meanwhile is then seen by the next call.
        stamp = take_stamp(tensors)
        if previous is None or hidden_change(previous, stamp):
            if x.is_cpu:
                native.bump_epoch()
            else:
                distrust(self.slot.id)
        op = _ops.chain_grad.default if grad else _ops.chain.default
        y = op(x, tensors, self.slot.tensor, self.program, self.constants)
        self.stamp = stamp
        self.sealed = self.frozen and x.is_cpu
        return y

    def _run_steps(self, module: nn.Module, x: Tensor, tensors: list[Tensor]) -> Tensor:
        """The training path: block by block, so that each saves its own input."""
        y = run_steps(self.steps, module.get_submodule, x, tensors, [slot.tensor for slot in self.step_slots])
        if self.follow_input and y.dim() == 4:
            y = in_format_of(y, x)
        return y

    def _inspect(self, module: nn.Module, x: Tensor) -> list[Tensor] | None:
        """The sources if the fused path may run, else None; the same verdict as :meth:`reason`, without words."""
        bound = self.bound
        try:
            if bound is None or not bound.is_that_of(module):
                bound = self.bound = Bound(module, self.match)
            tensors = bound.watch.tensors
        except (AttributeError, KeyError):
            self.bound = None
            return None
        if not bound.structure.may_run(module) and not (self.trains and x.is_cpu and bound.structure.may_train(module)):
            return None
        epoch = current_epoch()
        if bound.epoch is not epoch:
            bound.holds, bound.epoch = self.snapshot.holds((module, *bound.structure.modules)), epoch
        if not bound.holds:
            return None
        if x.is_cpu:
            return tensors if all(map(is_supported, tensors)) else None
        return tensors if all(is_supported_on_gpu(tensor, x) for tensor in tensors) else None

    def autocast_dtype(self, x: Tensor) -> torch.dtype:
        """The dtype that the plain modules return: a shortcut from a wider input widens the sum."""
        dtype = torch.get_autocast_dtype(x.device.type)
        return torch.promote_types(dtype, x.dtype) if self._only_residual else dtype
