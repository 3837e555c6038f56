"""How hard each recovery step is: the crop schedule of curriculum data augmentation.

A step optimises a random crop whose area ratio lies between `min_crop` and β_u. With a curriculum
early steps see nearly the full image; the lower bound then falls to β_l and small crops appear
(paper Section 2.3, Algorithm 1). The paper's decay γ = 0.92 equals β_u − β_l at its defaults; here
γ is β_u − β_l for every β (fidelity 6). Step s of S is early while s < milestone · S.
"""

from __future__ import annotations

import math


def min_crop(
    step: int,
    steps: int,
    *,
    mode: str = "curriculum",
    scheduler: str = "cosine",
    milestone: float = 1.0,
    low: float = 0.08,
    high: float = 1.0,
) -> float:
    """Lower bound of the crop's area ratio at `step` (from 0) of `steps`.

    `constant`: always `low` (CTL; SRe²L is low 0.08, high 1). `curriculum`: from `high` to `low`,
    reached at the milestone (CL). `reverse`: `low` until the milestone, then `high` (RCL, Table 3).
    Raises ValueError unless 0 < low <= high <= 1, 0 <= milestone <= 1, 0 <= step < steps and the
    names are known.

    >>> [round(min_crop(s, 4, low=0.2, scheduler="linear", milestone=0.5), 2) for s in range(4)]
    [1.0, 0.6, 0.2, 0.2]
    """
    if not 0 < low <= high <= 1 or not 0 <= milestone <= 1 or not 0 <= step < steps:
        raise ValueError(
            f"crop schedule out of range: {low=}, {high=}, {milestone=}, {step=}, {steps=}"
        )
    if scheduler not in ("step", "linear", "cosine"):
        raise ValueError(f"unknown scheduler {scheduler!r}: step, linear or cosine")
    early = step < round(milestone * steps, 6)  # 0.55 · 100 is a little over 55
    if mode == "constant":
        return low
    if mode == "reverse":
        return low if early else high
    if mode != "curriculum":
        raise ValueError(f"unknown mode {mode!r}: constant, curriculum or reverse")
    return low + (high - low) * _share(scheduler, step / (milestone * steps)) if early else low


def _share(scheduler: str, progress: float) -> float:
    """The remaining share of the easy start after `progress` in [0, 1) of the curriculum."""
    if scheduler == "step":
        return 1.0
    if scheduler == "linear":
        return 1.0 - progress
    return (1.0 + math.cos(math.pi * progress)) / 2


def image_lr(step: int, steps: int, lr: float) -> float:
    """Learning rate of the images at `step`: a cosine from `lr` to 0, no warm-up (fidelity 7)."""
    return lr * (1.0 + math.cos(math.pi * step / steps)) / 2
