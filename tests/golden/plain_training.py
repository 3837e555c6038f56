"""Ten steps of training, and DSA, written the obvious way from docs/fidelity.md, in float64.

The project's generators give DSA's draws and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tests.golden.plain_recovery import CLASSES, MATRICES, SIZE, network
from torch import Tensor

from cda.config.recipe import Continual, Optimisation
from cda.method.augment import draw_views
from cda.rng import generator

TRAININGS = {
    "sgd, T²": Optimisation(  # as Tiny-ImageNet's post-training
        epochs=5, batch_size=6, optimizer="sgd", lr=0.02, momentum=0.9, weight_decay=0.01,
        decay_vectors=True, schedule="cosine", schedule_per="epoch", warmup_epochs=2,
        warmup_factor=0.01,
    ),
    "adamw": Optimisation(  # as ImageNet-1K's
        epochs=5, batch_size=6, optimizer="adamw", lr=0.01, weight_decay=0.1, decay_vectors=False,
        schedule="cosine", schedule_per="epoch",
    ),
    "adam, smoothed": Optimisation(  # as ImageNet-21K's squeeze
        epochs=5, batch_size=6, optimizer="adam", lr=0.01, weight_decay=0.1, decay_vectors=False,
        schedule="cosine", schedule_per="step", warmup_epochs=1, warmup_factor=0.05,
    ),
    "sgd, steps": Optimisation(  # as ImageNet-1K's squeeze, with the hard labels of a mixture
        epochs=5, batch_size=6, optimizer="sgd", lr=0.05, momentum=0.9, weight_decay=0.01,
        decay_vectors=True, schedule="step", step_epochs=2, step_factor=0.1,
    ),
}  # fmt: skip
CONTINUAL = Continual(epochs=5, batch_size=6, lr=0.02, weight_decay=0.01, temperature=20.0)


class Batches:
    """Ten images in batches of six and four, in an order for each epoch; `change` alters them."""

    steps, images = 2, 10

    def __init__(self, target: str, change: Callable[[Tensor, int, int], Tensor] | None = None):
        self.target, self.change = target, change
        self.teacher = network(seed=8)
        self.all = torch.from_numpy(np.random.default_rng(9).standard_normal((10, 3, SIZE, SIZE)))

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Any]]:
        draws = np.random.default_rng((10, epoch))
        order, labels = draws.permutation(10), draws.integers(0, CLASSES, (2, 10))
        share = draws.random(10)
        for step, chosen in enumerate((order[:6], order[6:])):
            images = self.all[chosen]
            images = images if self.change is None else self.change(images, epoch, step)
            own, partner = torch.from_numpy(labels[:, chosen])
            target: Any = {
                "teacher": self.teacher(images),
                "label": own,
                "mixture": (own, partner, torch.from_numpy(share[chosen])),
            }[self.target]
            if step >= first_step:
                yield images, target


def distillation(logits: Tensor, teacher: Tensor, temperature: float, factor: float) -> Tensor:
    """KL from the teacher at a temperature, times a factor."""
    p, q = (F.softmax(values / temperature, dim=1) for values in (teacher, logits))
    return factor * (p * (p.log() - q.log())).sum() / len(logits)


def entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of target distributions [N, C]."""
    return -(target * (logits.exp() / logits.exp().sum(dim=1, keepdim=True)).log()).sum() / len(
        logits
    )


def smoothed(labels: Tensor, share: float) -> Tensor:
    """Labels of which `share` is spread over all classes."""
    return (1 - share) * F.one_hot(labels, CLASSES).double() + share / CLASSES


def mixed(logits: Tensor, target: Any) -> Tensor:
    """Cross-entropy of the labels of mixed images."""
    own, partner, share = target
    shares = share[:, None]
    return entropy(logits, shares * smoothed(own, 0) + (1 - shares) * smoothed(partner, 0))


PLAIN_LOSSES: dict[str, tuple[str, Callable[[Tensor, Any], Tensor]]] = {
    "sgd, T²": ("teacher", lambda x, t: distillation(x, t, 20.0, 400.0)),
    "adamw": ("teacher", lambda x, t: distillation(x, t, 20.0, 1.0)),
    "adam, smoothed": ("label", lambda x, t: entropy(x, smoothed(t, 0.2))),
    "sgd, steps": ("mixture", mixed),
}


def rate(values: Optimisation, epoch: int, step: int, steps: int) -> float:
    """The learning rate."""
    now = epoch + step / steps if values.schedule_per == "step" else float(epoch)
    if now < values.warmup_epochs:
        share = now / values.warmup_epochs
        return values.lr * ((1 - share) * values.warmup_factor + share)
    done = now - values.warmup_epochs
    if values.schedule == "step":
        return values.lr * values.step_factor ** math.floor(done / values.step_epochs)
    return values.lr * (1 + math.cos(math.pi * done / (values.epochs - values.warmup_epochs))) / 2


def train(
    values: Optimisation, batches: Batches, loss_of: Callable[[Tensor, Any], Tensor]
) -> dict[str, list[float]]:
    """Losses and learning rates of all steps, and some of the trained weights."""
    model = network().train().requires_grad_(True)
    names, weights = zip(*model.named_parameters(), strict=True)
    decays = [
        values.weight_decay if values.decay_vectors or name in MATRICES else 0.0 for name in names
    ]
    first = [torch.zeros_like(weight) for weight in weights]
    second = [torch.zeros_like(weight) for weight in weights]
    losses, rates, count = [], [], 0
    for epoch in range(values.epochs):
        for step, (images, target) in enumerate(batches.epoch(epoch)):
            loss, lr = loss_of(model(images), target), rate(values, epoch, step, batches.steps)
            slopes = torch.autograd.grad(loss, weights)
            losses.append(loss.item())
            rates.append(lr)
            count += 1
            with torch.no_grad():
                for w, g, m, v, decay in zip(weights, slopes, first, second, decays, strict=True):
                    if values.optimizer == "adamw":
                        w -= lr * decay * w
                    else:
                        g = g + decay * w
                    if values.optimizer == "sgd":
                        m.copy_(values.momentum * m + g)
                        w -= lr * m
                        continue
                    m.copy_(0.9 * m + 0.1 * g)
                    v.copy_(0.999 * v + 0.001 * g**2)
                    w -= lr * (m / (1 - 0.9**count)) / ((v / (1 - 0.999**count)).sqrt() + 1e-8)
    return {"losses": losses, "rates": rates, "weights": some_of(weights)}


def some_of(tensors: Any) -> list[float]:
    """The norm of some tensors, and two dozen of their values from all over."""
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    values: list[float] = flat[:: len(flat) // 23].tolist()
    return [flat.norm().item(), *values]


# Continual learning: DSA


def plain_dsa(images: Tensor, draws: np.random.Generator) -> Tensor:
    """One of DSA's six operations with its published parameters, image by image."""
    kind, n = int(draws.integers(6)), len(images)
    if kind == 1:
        pad = round(SIZE / 8)
        boxes = draw_views(draws, n, SIZE, crop="pad_crop", padding=pad, flip=0.0).boxes
        wide = F.pad(images, (pad, pad, pad, pad))
        corners = [(int(top) + pad, int(left) + pad) for top, left in boxes[:, :2]]
        return torch.stack(
            [wide[i, :, y : y + SIZE, x : x + SIZE] for i, (y, x) in enumerate(corners)]
        )
    values = draws.random({0: (3, n), 2: (n, 2), 3: n, 4: (n, 2), 5: n}[kind])
    out = []
    for i, image in enumerate(images.clone()):
        if kind == 0:
            image = image + values[0, i] - 0.5
            grey = image.mean(dim=0)
            image = grey + 2 * values[1, i] * (image - grey)
            image = image.mean() + (0.5 + values[2, i]) * (image - image.mean())
        elif kind == 2:
            top, left = (math.floor(value * (SIZE + 1)) - SIZE // 4 for value in values[i])
            image[
                :,
                max(top, 0) : max(top + SIZE // 2, 0),
                max(left, 0) : max(left + SIZE // 2, 0),
            ] = 0
        elif kind == 3:
            image = torch.flip(image, [2]) if values[i] < 0.5 else image
        else:
            x, y = 1 / 1.2 + (1.2 - 1 / 1.2) * values[i] if kind == 4 else (1.0, 1.0)
            angle = 0.0 if kind == 4 else math.radians(30 * values[i] - 15)
            image = warped(image, x, y, angle)
        out.append(image)
    return torch.stack(out)


def warped(image: Tensor, x_ratio: float, y_ratio: float, angle: float) -> Tensor:
    """A bilinear warp about the centre, zero outside: (x, y) reads the turned and scaled (x, y)."""
    result = torch.zeros_like(image)
    for row, column in np.ndindex(SIZE, SIZE):
        x, y = (column + 0.5) / SIZE - 0.5, (row + 0.5) / SIZE - 0.5
        x, y = (
            x_ratio * (x * math.cos(angle) - y * math.sin(angle)),
            y_ratio * (x * math.sin(angle) + y * math.cos(angle)),
        )
        across, down = (x + 0.5) * SIZE - 0.5, (y + 0.5) * SIZE - 0.5
        for r in (math.floor(down), math.floor(down) + 1):
            for c in (math.floor(across), math.floor(across) + 1):
                if 0 <= r < SIZE and 0 <= c < SIZE:
                    share = (1 - abs(down - r)) * (1 - abs(across - c))
                    result[:, row, column] += share * image[:, r, c]
    return result


def dsa_draws(epoch: int, step: int) -> np.random.Generator:
    """Draws under which ten steps see all six operations."""
    return generator("golden", 0, epoch, "dsa", step)
