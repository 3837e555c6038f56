"""Squeeze: training images a second, against a DataLoader of PIL images and an eager fp32 step."""

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

EPOCHS = 1_000_000  # a training that does not reach its end


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
            name="synthetic",
            layout="image_folder",
            classes=self.classes,
            resolution=self.resolution,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            get="made up",
        )

    @property
    def recipe(self) -> Squeeze:
        """CIFAR-100's values at 32 px, Tiny-ImageNet's crop above."""
        return Squeeze(
            epochs=EPOCHS,
            batch_size=self.batch_size,
            optimizer="sgd",
            lr=0.1,
            weight_decay=5e-4,
            schedule="constant",
            augment="pad_crop" if self.resolution <= 32 else "random_resized_crop",
        )

    def network(self) -> nn.Module:
        """A fresh network, the same for every side."""
        seed_everything("benchmark", "weights")
        return networks.build("resnet18", self.classes, self.resolution, self.architecture)

    @property
    def parameters(self) -> dict[str, object]:
        """The problem's values in the table's rows."""
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
    """The textbook loop: forward, loss, backward, step, and reading the loss."""

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
    """DataLoader and eager step; on a GPU with TF32 convolutions, torch's default, or true fp32."""
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


def engine(problem: Problem, open_device: Callable[[], Device]) -> Work:
    """The engine: resident images, batched augmentation, the trainer's step."""
    device, recipe = open_device(), problem.recipe
    images = Images(*synthetic(problem.images, problem.data), problem.data, device)
    batches = SqueezeBatches(images, recipe)
    trainer = Trainer(device.place(problem.network()), recipe, device, ("benchmark",))
    loss, epochs = smoothed_ce(recipe.label_smoothing), itertools.count()

    def epoch() -> float:
        device.use_precision()
        trainer.model.train()
        for images, target in batches.epoch(next(epochs)):
            trainer.step(images, target, loss, recipe.lr)
        return problem.images

    return epoch


def sides(
    problem: Problem,
    setting: Setting,
    plain_work: Callable[[bool], Work],
    engine_work: Callable[[Callable[[], Device]], Work],
) -> tuple[Side, ...]:
    """The plain loop (with TF32 or without), the engine, and the engine in uncompiled fp32."""
    found = [Side("plain", lambda: plain_work(True), {}, problem.operations)]
    if setting.cuda:
        found.append(Side("plain without TF32", lambda: plain_work(False), {}, problem.operations))
    found.append(Side("ours", lambda: engine_work(setting.open_device), {}, problem.operations))
    if setting.cuda:
        found.append(
            Side("ours in bf16", lambda: engine_work(setting.bf16), {}, problem.operations)
        )
    found.append(Side("reference", lambda: engine_work(setting.reference), {}, problem.operations))
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
    return [_case(problem, setting) for problem in problems(setting)]


def _case(problem: Problem, setting: Setting) -> Case:
    measured = sides(
        problem,
        setting,
        lambda tf32: plain(problem, setting, tf32),
        lambda open_device: engine(problem, open_device),
    )
    return Case(
        "squeeze",
        f"batch {problem.batch_size} at {problem.resolution} px",
        "images/s",
        measured,
        problem.parameters,
        seconds=0.0 if setting.quick else 1.0,
        rounds=2 if setting.quick else 5,
    )
