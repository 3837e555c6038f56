"""What the matching methods make small: how far distilled images are from real ones for a network.

Gradients (DC, DSA), mean embeddings (DM), or where training leads (MTT). Pure functions of tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

EPSILON = 1e-6  # keeps the cosine of a vanishing gradient finite (public code of DC)


def gradient_distance(distilled: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Σ over layers and their outputs of 1 − cosine between two gradients of the same parameters.

    A layer's gradient has a row for each output: [out, in·k·k] of a convolution. Parameters of one
    dimension (biases, normalisation) do not count. Source: Zhao, Mopuri and Bilen 2021, Eq. 10.
    """
    terms = []
    for own, other in zip(distilled, real, strict=True):
        if own.dim() > 1:
            rows, others = own.flatten(1), other.flatten(1)
            scale = rows.norm(dim=1) * others.norm(dim=1) + EPSILON
            terms.append((1 - (rows * others).sum(dim=1) / scale).sum())
    return torch.stack(terms).sum()


def embedding_distance(distilled: Tensor, real: Tensor) -> Tensor:
    """Squared distance of the mean embeddings of distilled [n, D] and real images [m, D].

    Source: Zhao and Bilen 2023, Eq. 5.
    """
    return (real.mean(dim=0) - distilled.mean(dim=0)).square().sum()
