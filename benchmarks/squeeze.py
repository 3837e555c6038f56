"""Squeeze: images a second of whole training steps, against a DataLoader of PIL images and an eager
fp32 step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.harness import Case, Setting, Side, Work
from benchmarks.pictures import Pictures, loader_of, synthetic, transform_of
from benchmarks.precision import as_torch_ships_it
from cda.config.recipe import Architecture, Squeeze
from cda.config.settings import Dataset
from cda.engine.batches import SqueezeBatches
from cda.engine.device import Device, seed_everything
from cda.engine.images import Images
from cda.engine.trainer import Trainer
from cda.method import networks
from cda.pipeline.costs import TRAINING, multiply_adds
from cda.stages.squeeze import smoothed_ce

EPOCHS = 1_000_000  # of a training that nobody ends: its learning rate stays


@dataclass(frozen=True)
class Problem:
    """A training set and a network; one call of a side is one epoch."""

    images: int
    batch_size: int = 64
    resolution: int = 32
    classes: int = 100
    width: float = 0.25

    @property
    def architecture(self) -> Architecture:
        """ResNet-18's, with the stem for small images."""
        return Architecture(stem="small", width=self.width)

    @property
    def data(self) -> Dataset:
        """A data set of random images."""
        return Dataset(
            name="synthetic", layout="image_folder", classes=self.classes, resolution=self.resolution,
            mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), get="made up",
        )  # fmt: skip

    @property
    def recipe(self) -> Squeeze:
        """CIFAR-100's values at 32 px, Tiny-ImageNet's crop above."""
        return Squeeze(
            epochs=EPOCHS, batch_size=self.batch_size, optimizer="sgd", lr=0.1, weight_decay=5e-4, schedule="constant",
            augment="pad_crop" if self.resolution <= 32 else "random_resized_crop",
        )  # fmt: skip

    def network(self) -> nn.Module:
        """A fresh network, the same for every side."""
        seed_everything("benchmark", "weights")
        return networks.build("resnet18", self.classes, self.resolution, self.architecture)

    @property
    def parameters(self) -> dict[str, object]:
        """What the rows say of it."""
        own = {
            "px": self.resolution,
            "width": self.width,
            "batch": self.batch_size,
            "classes": self.classes,
        }
        return {**own, "images": self.images}

    @property
    def operations(self) -> float:
        """Operations of training on one image."""
        return 2.0 * TRAINING * multiply_adds("resnet18", self.data, self.architecture)


class PlainTraining:
    """The textbook loop: forward, loss, backward, step, and the loss is read."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, device: str) -> None:
        self.model, self.optimizer, self.device, self.loss = model, optimizer, device, 0.0

    def step(self, images: Tensor, criterion: Callable[[Tensor], Tensor]) -> None:
        """One optimiser step on a batch that is on the device."""
        loss = criterion(self.model(images))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss += loss.item()


def plain(problem: Problem, setting: Setting, tf32: bool = True) -> Work:
    """DataLoader and eager step; on a GPU with TF32 convolutions, as torch ships it, or in true
    fp32.
    """
    setting.reference()
    data, recipe = problem.data, problem.recipe
    pictures = Pictures(*synthetic(problem.images, data), transform_of(recipe, data))
    loader = loader_of(pictures, problem.batch_size, setting)
    model = problem.network().to(setting.device)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    training, criterion = PlainTraining(model, optimizer, setting.device), nn.CrossEntropyLoss()

    def epoch() -> float:
        model.train()
        with as_torch_ships_it(tf32):
            for images, labels, _ in loader:
                images = images.to(setting.device, non_blocking=True)
                target = labels.to(setting.device, non_blocking=True)
                training.step(images, lambda logits, target=target: criterion(logits, target))  # type: ignore[misc]
        return problem.images

    return epoch


def ours(problem: Problem, device: Callable[[], Device]) -> Work:
    """The engine: resident images, batched augmentation, the one training loop's step."""
    own, recipe = device(), problem.recipe
    batches = SqueezeBatches(
        Images(*synthetic(problem.images, problem.data), problem.data, own), recipe
    )
    trainer = Trainer(own.place(problem.network()), recipe, own, ("benchmark",))
    loss, epochs = smoothed_ce(recipe.label_smoothing), itertools.count()

    def epoch() -> float:
        trainer.model.train()
        for images, target in batches.epoch(next(epochs)):
            trainer.step(images, target, loss, recipe.lr)
        return problem.images

    return epoch


def sides(
    problem: Problem,
    setting: Setting,
    plainly: Callable[[bool], Work],
    own: Callable[[Callable[[], Device]], Work],
) -> tuple[Side, ...]:
    """The plain loop (`plainly`, with TF32 or without), ours, and ours in fp32 without compilation."""
    found = [Side("plain", lambda: plainly(True), {}, problem.operations)]
    if setting.cuda:
        found.append(Side("plain without TF32", lambda: plainly(False), {}, problem.operations))
    found.append(Side("ours", lambda: own(setting.open_device), {}, problem.operations))
    found.append(Side("reference", lambda: own(setting.reference), {}, problem.operations))
    return tuple(found)


def problems(setting: Setting) -> list[Problem]:
    """Batches of 64 at 32 pixels; on a GPU more batch sizes, and 64 pixels."""
    if setting.quick:
        return [Problem(images=8, batch_size=4, resolution=16, classes=4, width=0.125)]
    if not setting.cuda:
        return [Problem(images=1280)]
    usual = Problem(images=5000)
    return [
        *(replace(usual, batch_size=size) for size in (8, 64, 128, 256)),
        replace(usual, resolution=64),
    ]


def cases(setting: Setting) -> list[Case]:
    """One for each problem."""
    return [
        Case(
            "squeeze", f"batch {p.batch_size} at {p.resolution} px", "images/s",
            sides(p, setting, lambda tf32, p=p: plain(p, setting, tf32), lambda device, p=p: ours(p, device)),  # type: ignore[misc]
            p.parameters, seconds=0.0 if setting.quick else 1.0, rounds=2 if setting.quick else 5,
        )
        for p in problems(setting)
    ]  # fmt: skip
