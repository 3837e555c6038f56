"""Which of a GPU's fp32 kernels a plain side uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def as_torch_ships_it(tf32: bool = True) -> Iterator[None]:
    """Let fp32 convolutions use TF32, which is torch's default; the engines' fp32 never does."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
