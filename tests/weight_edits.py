"""Every way to change a weight of a model that fused modules promise to see."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from fused_cases import example
from torch import nn

from mobilenet_ext.fusion import refresh

Edit = Callable[[nn.Module], None]


def first_weight(model: nn.Module) -> nn.Parameter:
    return next(model.parameters())


def first_norm(model: nn.Module) -> nn.BatchNorm2d:
    return next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def changed_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value * 1.5 if value.is_floating_point() else value for key, value in model.state_dict().items()}


def step(model: nn.Module, make: Callable[..., torch.optim.Optimizer]) -> None:
    optimizer = make(model.parameters())
    model(example()).square().mean().backward()
    optimizer.step()


def in_place(model: nn.Module) -> None:
    with torch.no_grad():
        first_weight(model).mul_(1.5)


def in_place_in_inference_mode(model: nn.Module) -> None:
    with torch.inference_mode():
        first_weight(model).mul_(1.5)


def foreach_function(model: nn.Module) -> None:
    with torch.no_grad():
        torch._foreach_mul_(list(model.parameters()), 1.1)


def foreach_optimizer(model: nn.Module) -> None:
    step(model, lambda parameters: torch.optim.Adam(parameters, lr=0.05, foreach=True))


def fused_optimizer(model: nn.Module) -> None:
    step(model, lambda parameters: torch.optim.Adam(parameters, lr=0.05, fused=True))


def data_optimizer(model: nn.Module) -> None:
    """An optimizer that writes to ``.data``, which leaves no trace in the versions."""

    class Data(torch.optim.Optimizer):
        def __init__(self, parameters: object) -> None:
            super().__init__(parameters, {})

        def step(self) -> None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.add_(parameter.grad, alpha=-0.5)

    step(model, Data)


def load(model: nn.Module) -> None:
    model.load_state_dict(changed_state(model))


def load_assigned(model: nn.Module) -> None:
    model.load_state_dict(changed_state(model), assign=True)


def new_data(model: nn.Module) -> None:
    parameter = first_weight(model)
    parameter.data = parameter.data * 1.5


def new_data_twice(model: nn.Module) -> None:
    """The second storage may get the address of the first one's predecessor."""
    parameter = first_weight(model)
    parameter.data = torch.zeros_like(parameter)
    parameter.data = torch.full_like(parameter, 0.1)


def new_parameter(model: nn.Module) -> None:
    owner = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    owner.weight = nn.Parameter(owner.weight.detach() * 1.5)


def new_module(model: nn.Module) -> None:
    parent = next(module for module in model.modules() if isinstance(module._modules.get("0"), nn.Conv2d))
    parent[0] = copy.deepcopy(parent[0])
    with torch.no_grad():
        parent[0].weight.mul_(1.5)


def swapped_tensors(model: nn.Module) -> None:
    parameter = first_weight(model)
    torch.utils.swap_tensors(parameter, nn.Parameter(parameter.detach() * 1.5))


def half_and_back(model: nn.Module) -> None:
    with torch.no_grad():
        first_weight(model).mul_(1.0001)  # away from what float16 holds exactly
    model.half().float()


def double_and_back(model: nn.Module) -> None:
    model.double()
    with torch.no_grad():
        first_weight(model).mul_(1.5)
    model.float()


def running_statistics(model: nn.Module) -> None:
    first_norm(model).running_mean.add_(0.5)


def new_buffer(model: nn.Module) -> None:
    first_norm(model).running_var = first_norm(model).running_var * 4


def train_statistics(model: nn.Module) -> None:
    model.train()
    with torch.no_grad():
        model(example() + 1)
    model.eval()


def train_one_norm(model: nn.Module) -> None:
    norm = first_norm(model)
    norm.train()
    norm(torch.randn(2, norm.num_features, 4, 4) + 1)
    norm.eval()


def update_bn(model: nn.Module) -> None:
    torch.optim.swa_utils.update_bn([example() + 1, example() - 1], model)
    model.eval()


def epsilon(model: nn.Module) -> None:
    first_norm(model).eps = 1e-5  # the same: nothing may break
    first_norm(model).bias.data = first_norm(model).bias.data + 1


def refreshed(model: nn.Module) -> None:
    first_weight(model).data[0].mul_(3)
    refresh(model)


def refreshed_numpy(model: nn.Module) -> None:
    first_weight(model).detach().numpy()[0] *= 3
    refresh(model)


EDITS: list[Edit] = [
    in_place,
    in_place_in_inference_mode,
    foreach_function,
    foreach_optimizer,
    fused_optimizer,
    data_optimizer,
    load,
    load_assigned,
    new_data,
    new_data_twice,
    new_parameter,
    new_module,
    swapped_tensors,
    half_and_back,
    double_and_back,
    running_statistics,
    new_buffer,
    train_statistics,
    train_one_norm,
    update_bn,
    epsilon,
    refreshed,
    refreshed_numpy,
]
