"""Optimisers and learning rates.

The optimisers are torch's, without the import of torch.compile's machinery. Several methods of
`torch.optim.Optimizer` are wrapped so that torch.compile skips them. The first call of such a
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
from torch import nn
from torch.optim import Optimizer

from cda.config.recipe import Optimisation

WRAPPED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


@cache
def unwrapped(kind: type[Optimizer]) -> type[Any]:
    """A subclass of `kind` with the methods inside torch's wrappers, used as `kind` is."""
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in WRAPPED}
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), {**methods, "step": step, "__doc__": kind.__doc__})


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


def build_optimizer(model: nn.Module, values: Optimisation) -> Optimizer:
    """The recipe's optimiser.

    Without `decay_vectors` 1-D parameters (biases, normalisation) have no weight decay.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if values.decay_vectors or p.ndim > 1]
    free = [p for p in trained if not (values.decay_vectors or p.ndim > 1)]
    groups = [
        {"params": decayed, "weight_decay": values.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    options = {"momentum": values.momentum} if values.optimizer == "sgd" else {}
    optimizer: Optimizer = unwrapped(kinds[values.optimizer])(
        [group for group in groups if group["params"]], lr=values.lr, fused=True, **options
    )
    return optimizer
