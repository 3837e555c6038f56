"""torch's optimisers, without the import of torch.compile's machinery.

Several methods of `torch.optim.Optimizer` are wrapped so that torch.compile skips them. The first
call of such a wrapper imports `torch._dynamo`, which takes a job over a second. We compile losses
and never an optimiser, so that the methods inside the wrappers serve as they are: the steps are
bit for bit the same.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch.optim import Optimizer

WRAPPED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


@cache
def unwrapped(kind: type[Optimizer]) -> type[Any]:
    """A subclass of `kind` with the methods inside torch's wrappers, used as `kind` is."""
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in WRAPPED}
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), {**methods, "step": step, "__doc__": kind.__doc__})
