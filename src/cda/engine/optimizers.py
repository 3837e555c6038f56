"""Optimisers and learning rates.

The optimisers are torch's, fused, without the import of torch.compile's machinery. Several methods
of `torch.optim.Optimizer` are wrapped so that torch.compile skips them. The first call of such a
wrapper imports `torch._dynamo`, which takes a job over a second. We compile losses and never an
optimiser, so that the methods inside the wrappers serve as they are: the steps are bit for bit the
same.
"""

from __future__ import annotations

import inspect
import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cda.config.recipe import Optimisation
from cda.engine.compiling import supported

WRAPPED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


@cache
def unwrapped(kind: type[Optimizer]) -> type[Any]:
    """A subclass of `kind` with the methods inside torch's wrappers, used as `kind` is."""
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in WRAPPED}
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), {**methods, "step": step, "__doc__": kind.__doc__})


def make_optimizer(
    kind: type[Optimizer], parameters: list[Any], lr: float, device: torch.device, **options: Any
) -> Optimizer:
    """An optimiser of `parameters` (tensors or groups of them) on `device`.

    On a GPU the learning rate is a tensor there, so that a recorded step (`cda.engine.graphs`)
    reads each step's own.
    """
    cuda = device.type == "cuda"
    options |= supported(kind, capturable=True) if cuda else {}
    optimizer: Optimizer = unwrapped(kind)(  # type: ignore[arg-type]
        parameters, lr=lr, fused=True, **options
    )
    for group in optimizer.param_groups if cuda else ():
        group["lr"] = torch.tensor(lr, device=device)
    return optimizer


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Use the learning rate `lr` from the next step on."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def restore_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load the `state_dict` of an optimiser of the same parameters, on any device.

    The optimiser's options stay as they are: a checkpoint has another device's.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    groups = [group | {"lr": 0.0} for group in optimizer.state_dict()["param_groups"]]
    optimizer.load_state_dict(state | {"param_groups": groups})
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    # fused steps pair elements by their place in memory: states need the parameters' layout
    for parameter, own in optimizer.state.items():
        for name, value in own.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                own[name] = torch.empty_like(parameter).copy_(value)


def forget_steps(optimizer: Optimizer) -> None:
    """Make an optimiser as new, in place: without momentum or other means over its steps."""
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()


def lr_at(values: Optimisation, epoch: int, step: int, steps: int) -> float:
    """Learning rate of `step` (of `steps`) in `epoch`, both from 0: warm-up, then the schedule.

    The warm-up is linear. With `schedule_per: epoch` the rate changes between epochs (as torch's
    LinearLR, then CosineAnnealingLR or StepLR), with `step` at every step.
    """
    now = epoch + (step / steps if values.schedule_per == "step" else 0.0)
    if now < values.warmup_epochs:
        return values.lr * (
            values.warmup_factor + (1 - values.warmup_factor) * now / values.warmup_epochs
        )
    now -= values.warmup_epochs
    if values.schedule == "cosine":
        return (
            values.lr * (1 + math.cos(math.pi * now / (values.epochs - values.warmup_epochs))) / 2
        )
    if values.schedule == "step":
        return values.lr * values.step_factor ** int(now // values.step_epochs)
    return values.lr


def restarts(values: Optimisation, epoch: int) -> bool:
    """Whether `epoch` begins with a new optimiser: at a drop of the step schedule, by `restart`."""
    since = epoch - values.warmup_epochs
    dropped = values.schedule == "step" and since > 0 and since % values.step_epochs == 0
    return values.restart and dropped


def is_decayed(name: str, parameter: Tensor, values: Optimisation) -> bool:
    """Whether a parameter has weight decay.

    Without `decay_vectors` 1-D parameters (biases, normalisation) have none; with `decay_names:
    weight` those without `weight` in their name have none (fidelity 15).
    """
    matrix = values.decay_vectors or parameter.ndim > 1
    return matrix and (values.decay_names == "all" or "weight" in name)


def build_optimizer(model: nn.Module, values: Optimisation) -> Optimizer:
    """The recipe's optimiser."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in trained if is_decayed(name, p, values)]
    free = [p for name, p in trained if not is_decayed(name, p, values)]
    groups = [
        {"params": decayed, "weight_decay": values.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    options = {"momentum": values.momentum} if values.optimizer == "sgd" else {}
    return make_optimizer(
        kinds[values.optimizer],
        [group for group in groups if group["params"]],
        values.lr,
        trained[0][1].device,
        **options,
    )
