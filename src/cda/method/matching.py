"""What the matching methods make small: how far distilled images are from real ones for a network.

Gradients (DC, DSA), mean embeddings (DM), or where training leads (MTT, TESLA). Pure functions of
tensors. A network's weights are one vector [P] where a trajectory is matched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

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


def trajectory_distance(reached: Tensor, start: Tensor, target: Tensor) -> Tensor:
    """Squared distance of weights [P] from the expert's `target`, over that of its `start`.

    0 is the expert's own way, 1 staying where it began. Source: Cazenavette et al. 2022, Eq. 2.
    """
    return (reached - target).square().sum() / (start - target).square().sum()


# Of (step, weights [P], whether it is to be differentiated): the gradient [P] of the loss of that
# step's batch of distilled images.
StepGradient = Callable[[int, Tensor, bool], Tensor]


class Matched(NamedTuple):
    """A trajectory's distance, and its gradients for the images and for the step size β."""

    distance: Tensor
    images: Tensor
    step_size: Tensor


def unrolled_gradients(
    gradient: StepGradient,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    step_size: Tensor,
    steps: int,
) -> Matched:
    """MTT: differentiate through all `steps` of θ ← θ − β · gradient that begin at `start`.

    Memory grows with the steps. Source: Cazenavette et al. 2022, Algorithm 1.
    """
    weights = start.detach().requires_grad_()
    for step in range(steps):
        weights = weights - step_size * gradient(step, weights, True)
    distance = trajectory_distance(weights, start, target)
    return Matched(distance.detach(), *torch.autograd.grad(distance, (images, step_size)))


def two_pass_gradients(
    gradient: StepGradient,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    step_size: Tensor,
    steps: int,
) -> Matched:
    """TESLA: as MTT, with the weights of each step held constant, so a step's graph at a time.

    The first pass sums the gradients to G without a graph. The distance depends on the images of a
    step through their own term of G alone, so that the second pass takes a step after the other:
    ∂/∂x of −2β ⟨start − βG − target, gradient⟩ over the expert's squared distance. It equals MTT's
    for one step. The public code loses the factor 2. Source: Cui et al. 2023, Section 3.
    """
    beta = step_size.detach()
    total, weights = torch.zeros_like(start), start.detach()
    for step in range(steps):
        own = gradient(step, weights.requires_grad_(), False).detach()
        total, weights = total + own, (weights - beta * own).detach()
    rest = start - beta * total - target
    scale = (start - target).square().sum()
    summed, weights = torch.zeros_like(images), start.detach()
    for step in range(steps):
        own = gradient(step, weights.requires_grad_(), True)
        part = -2 * beta * (rest * own).sum() / scale
        summed += torch.autograd.grad(part, images)[0]
        weights = (weights - beta * own).detach()
    return Matched(
        trajectory_distance(rest + target, start, target), summed, -2 * (rest * total).sum() / scale
    )
