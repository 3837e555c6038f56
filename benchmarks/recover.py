"""Recover: image-iterations a second, against the plain loop of the paper.

The loop follows Equations 6 and 7 and Algorithm 1.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from benchmarks.harness import Case, Setting, Side, Work
from benchmarks.precision import as_torch_ships_it
from benchmarks.table import ITERATIONS
from cda.config.recipe import Architecture, Recover
from cda.config.settings import Dataset
from cda.engine.blocks import Block
from cda.engine.device import Device, seed_everything
from cda.engine.objective import Objective
from cda.engine.recovery import Recovery
from cda.method import networks
from cda.method.curriculum import image_lr, min_crop
from cda.pipeline.costs import RECOVERY, multiply_adds

# Blocks packed on a GPU by resolution, beside one block; `auto` packs as many as fit.
PACKED = {32: 8, 64: 8, 224: 4}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Problem:
    """A class block and the network it is recovered from."""

    resolution: int
    width: float = 1.0
    images: int = 100
    classes: int = 100
    steps: int = 1  # iterations of one call
    iterations: int = ITERATIONS  # of a recovery; one that is finished starts again

    @property
    def architecture(self) -> Architecture:
        """ResNet-18's, with the stem for the resolution."""
        return Architecture(stem="small" if self.resolution <= 64 else "imagenet", width=self.width)

    @property
    def data(self) -> Dataset:
        """A declared data set without images, which recovery does not read."""
        return Dataset(
            name="synthetic",
            layout="image_folder",
            classes=self.classes,
            resolution=self.resolution,
            mean=MEAN,
            std=STD,
            get="made up",
        )

    @property
    def recipe(self) -> Recover:
        """The paper's values; the roll is an eighth of the image, as on CIFAR-100 and at 224 px."""
        return Recover(
            mode="curriculum",
            block_size=self.images,
            jitter=self.resolution // 8,
            iterations=self.iterations,
        )

    def network(self) -> nn.Module:
        """The recovery model, with random weights, which do not change the speed."""
        seed_everything("benchmark", "weights")
        return (
            networks.build("resnet18", self.classes, self.resolution, self.architecture)
            .eval()
            .requires_grad_(False)
        )

    @property
    def parameters(self) -> dict[str, object]:
        """The problem's values in the table's rows."""
        return {
            "px": self.resolution,
            "width": self.width,
            "block": self.images,
            "classes": self.classes,
        }

    @property
    def operations(self) -> float:
        """Operations of one image-iteration's network passes."""
        return 2.0 * RECOVERY * multiply_adds("resnet18", self.data, self.architecture)


class MatchedBN:
    """A forward hook for the distance between a BN layer's input and its running statistics."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        self.mean, self.var, self.distance = (
            layer.running_mean,
            layer.running_var,
            layer.running_mean.sum(),
        )
        layer.register_forward_hook(self.hook)

    def hook(self, _layer: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        """Mean and biased variance of each channel of [B, C, H, W], the obvious way."""
        x = inputs[0]
        mean = x.mean([0, 2, 3])
        var = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
        self.distance = torch.norm(self.var - var, 2) + torch.norm(self.mean - mean, 2)


class PlainRecovery:
    """One class block, from noise to images, eagerly and in the images' own precision."""

    def __init__(
        self, model: nn.Module, images: Tensor, labels: Tensor, recipe: Recover, data: Dataset
    ) -> None:
        self.model, self.labels, self.recipe, self.data = model, labels, recipe, data
        self.images, self.done = images.requires_grad_(), 0
        self.optimizer = torch.optim.Adam([self.images], lr=recipe.lr, betas=(0.5, 0.9), eps=1e-8)
        self.layers = [
            MatchedBN(layer) for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)
        ]

    def augmented(self, images: Tensor, step: int) -> Tensor:
        """One random resized crop, flip and roll for the whole batch."""
        recipe, size = self.recipe, self.data.resolution
        low = min_crop(step, recipe.iterations, low=recipe.min_crop, high=recipe.max_crop)
        crop = v2.RandomResizedCrop(size, scale=(low, recipe.max_crop))
        seen = v2.RandomHorizontalFlip(recipe.flip)(crop(images))
        roll = (random.randint(0, recipe.jitter), random.randint(0, recipe.jitter))
        return torch.roll(seen, shifts=roll, dims=(2, 3))

    def step(self) -> float:
        """One iteration; returns its loss, read from the device as for printing."""
        recipe = self.recipe
        self.done %= recipe.iterations
        for group in self.optimizer.param_groups:
            group["lr"] = image_lr(self.done, recipe.iterations, recipe.lr)
        self.optimizer.zero_grad()
        logits = self.model(self.augmented(self.images, self.done))
        distances = [layer.distance for layer in self.layers]
        matching = recipe.first_bn_multiplier * distances[0] + sum(distances[1:])
        loss = F.cross_entropy(logits, self.labels) + recipe.alpha_bn * matching
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for channel, (mean, std) in enumerate(zip(self.data.mean, self.data.std, strict=True)):
                self.images[:, channel] = torch.clamp(
                    self.images[:, channel], -mean / std, (1 - mean) / std
                )
        self.done += 1
        return float(loss.item())


def plain(problem: Problem, setting: Setting, tf32: bool = True) -> Work:
    """The plain loop; on a GPU with TF32 convolutions, as torch ships it, or in true fp32."""
    setting.reference()
    model = problem.network().to(setting.device)
    size = problem.resolution
    images = torch.randn(problem.images, 3, size, size, device=setting.device)
    labels = torch.arange(problem.images, device=setting.device) % problem.classes
    recovery = PlainRecovery(model, images, labels, problem.recipe, problem.data)

    def work() -> float:
        with as_torch_ships_it(tf32):
            for _ in range(problem.steps):
                recovery.step()
        return problem.steps * problem.images

    return work


def engine(problem: Problem, open_device: Callable[[], Device], blocks: int) -> Work:
    """The engine with `blocks` class blocks packed."""
    device = open_device()
    model = device.freeze(problem.network())
    packed = [Block(shard, 0, problem.images) for shard in range(blocks)]
    objective = Objective(model, blocks, problem.recipe, device, problem.recipe.iterations)
    recovery = Recovery(objective, packed, problem.recipe, problem.data)

    def work() -> float:
        device.use_precision()
        for _ in range(problem.steps):
            recovery.done %= problem.iterations
            recovery.step()
        return problem.steps * problem.images * blocks

    return work


def _sides(
    problem: Problem, setting: Setting, blocks: tuple[int, ...] = (1,), reference: bool = False
) -> tuple[Side, ...]:
    """The plain loop, the engine per number of packed blocks, and in fp32 without compilation."""

    def side(name: str, build: Callable[[], Work], **parameters: Any) -> Side:
        return Side(name, build, parameters, problem.operations)

    sides = [side("plain", lambda: plain(problem, setting), blocks=1)]
    if setting.cuda and reference:
        sides.append(
            side("plain without TF32", lambda: plain(problem, setting, tf32=False), blocks=1)
        )
    precisions = {
        "ours": setting.open_device,
        **({"ours in bf16": setting.bf16} if setting.cuda else {}),
    }
    for name, open_device in precisions.items():
        sides += [
            side(name, partial(engine, problem, open_device, count), blocks=count)
            for count in blocks
        ]
    if reference:
        sides.append(side("reference", lambda: engine(problem, setting.reference, 1), blocks=1))
    return tuple(sides)


def cases(setting: Setting) -> list[Case]:
    """A block at each resolution, then by number of packed blocks, then by number of classes."""
    if setting.quick:
        tiny = Problem(16, width=0.125, images=4, classes=4)
        return [_case("block", tiny, _sides(tiny, setting, (1, 2), reference=True), 2, 0.0)]
    found = []
    for resolution in (32, 64, 224) if setting.cuda else (32,):
        block = Problem(resolution, steps=10 if setting.cuda else 1)
        blocks = (1, PACKED[resolution]) if setting.cuda else (1,)
        found.append(
            _case(
                f"block at {resolution} px",
                block,
                _sides(block, setting, blocks, reference=True),
            )
        )
    width, steps = (1.0, 10) if setting.cuda else (0.25, 1)
    growing = Problem(32, width=width, steps=steps)
    found.append(_case("blocks packed", growing, _sides(growing, setting, (1, 2, 4, 8)), 3))
    for classes in (10, 100, 1000):
        block = Problem(32, width=width, steps=steps, images=min(classes, 100), classes=classes)
        found.append(_case(f"{classes} classes", block, _sides(block, setting), 3))
    return found


def _case(
    what: str, problem: Problem, sides: tuple[Side, ...], rounds: int = 5, seconds: float = 1.0
) -> Case:
    unit = "image-iterations/s"
    return Case(
        "recover",
        what,
        unit,
        sides,
        problem.parameters,
        rounds=rounds,
        seconds=seconds,
        warm_calls=2,
    )
