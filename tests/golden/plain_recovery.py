"""Ten steps of recovery written the obvious way from docs/fidelity.md, in float64.

The project's functions give the draws (starts, crop boxes, flips, rolls) and nothing else.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from cda.config.recipe import Recover
from cda.config.settings import Dataset
from cda.engine.blocks import Block, start_images
from cda.method.augment import Views, draw_views
from cda.rng import generator

SIZE, CLASSES, STEPS = 16, 8, 10
MATRICES = {"0.weight", "3.weight", "8.weight"}  # of `network`
MEAN, STD = (0.48, 0.45, 0.40), (0.23, 0.22, 0.25)
DATA = Dataset(
    name="toy", layout="digits", classes=CLASSES, resolution=SIZE, mean=MEAN, std=STD, get="x"
)


def recipe(**values: Any) -> Recover:
    """Ten steps of recovery."""
    usual = {
        "mode": "curriculum",
        "iterations": STEPS,
        "lr": 0.25,
        "alpha_bn": 0.05,
        "jitter": 4,
        "min_crop": 0.2,
    }
    return Recover(**(usual | values))


RECOVERIES = {"cda": recipe(scheduler="cosine"), "sre2l": recipe(mode="constant", min_crop=0.08)}
BLOCK = Block(0, 4, 8)


def network(dtype: torch.dtype = torch.float64, seed: int = 7) -> nn.Sequential:
    """Two convolutions with BN and a linear layer.

    Weights from numpy, so that they never change with torch.
    """
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    layers += [
        nn.Conv2d(8, 12, 3, stride=2, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
    ]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(48, CLASSES)).to(dtype)
    draws = np.random.default_rng(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.from_numpy(draws.uniform(0.5, 1.5, tensor.shape)))
        elif tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(draws.standard_normal(tensor.shape) * 0.3))
    return model.eval().requires_grad_(False)


def lowest(values: Recover, step: int) -> float:
    """The crop's smallest area ratio."""
    end = values.milestone * values.iterations
    if values.mode == "constant":
        return values.min_crop
    if values.mode == "reverse":
        return values.min_crop if step < end else values.max_crop
    if step >= end:
        return values.min_crop
    left = {
        "step": 1.0,
        "linear": 1 - step / end,
        "cosine": (1 + math.cos(math.pi * step / end)) / 2,
    }
    return values.min_crop + (values.max_crop - values.min_crop) * left[values.scheduler]


def augmented(images: Tensor, views: Views) -> Tensor:
    """The images as the step's views show them: one view for all of them, or one each."""
    parts = []
    for i, group in enumerate(images.split(len(images) // len(views.flips))):
        top, left, height, width = (int(value) for value in views.boxes[i])
        part = tv.resized_crop(group, top, left, height, width, [SIZE, SIZE], antialias=False)
        part = part.flip(-1) if views.flips[i] else part
        parts.append(torch.roll(part, (int(views.rolls[i][0]), int(views.rolls[i][1])), (2, 3)))
    return torch.cat(parts)


def distances(model: nn.Sequential, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and of every BN layer ‖var − RV‖₂ + ‖mean − RM‖₂ of its input."""
    found: list[Tensor] = []

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        values = inputs[0].transpose(0, 1).flatten(1)  # [C, B·H·W]
        mean = values.sum(dim=1) / values.shape[1]
        var = ((values - mean[:, None]) ** 2).sum(dim=1) / values.shape[1]
        terms = [
            ((now - then) ** 2).sum().sqrt()
            for now, then in [(var, layer.running_var), (mean, layer.running_mean)]
        ]
        found.append(terms[0] + terms[1])

    handles = [
        module.register_forward_hook(hook) for module in model if isinstance(module, nn.BatchNorm2d)
    ]
    logits = model(x)
    for handle in handles:
        handle.remove()
    return logits, found


def drawn(block: Block, values: Recover, step: int) -> Views:
    """The views of a step, from the project's draws."""
    draws = generator(*block.purpose(values.seed), "step", step)
    count, scale = block.size if values.per_image else 1, (lowest(values, step), values.max_crop)
    return draw_views(
        draws, count, SIZE, crop="random_resized_crop", scale=scale, flip=values.flip,
        jitter=values.jitter,
    )  # fmt: skip


def recover(block: Block, values: Recover) -> tuple[Tensor, list[tuple[float, float]]]:
    """The block's images [B, 3, R, R] after all steps, and (cross-entropy, BN distance) of every
    step.
    """
    model, labels = network(), list(range(block.first, block.last))
    x = torch.from_numpy(start_images(block, values.seed, SIZE))
    first, second, losses = torch.zeros_like(x), torch.zeros_like(x), []
    for s in range(values.iterations):
        x = x.detach().requires_grad_()
        views = drawn(block, values, s)
        logits, layers = distances(model, augmented(x, views))
        logs = logits - logits.exp().sum(dim=1, keepdim=True).log()
        entropy = -sum(logs[i, label] for i, label in enumerate(labels)) / len(labels)
        bn = values.first_bn_multiplier * layers[0] + layers[1]
        (slope,) = torch.autograd.grad(entropy + values.alpha_bn * bn, x)
        losses.append((entropy.item(), bn.item()))
        lr = values.lr * (1 + math.cos(math.pi * s / values.iterations)) / 2
        first = 0.5 * first + 0.5 * slope
        second = 0.9 * second + 0.1 * slope**2
        x = x.detach() - lr * (first / (1 - 0.5 ** (s + 1))) / (
            (second / (1 - 0.9 ** (s + 1))).sqrt() + 1e-8
        )
        for c in range(3):
            x[:, c] = x[:, c].clamp(-MEAN[c] / STD[c], (1 - MEAN[c]) / STD[c])
    return x, losses
