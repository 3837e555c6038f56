"""Distilled images by matching (DC, DSA, DM): one optimiser moves the images of all classes.

Each iteration draws a fresh network. A class at a time, a batch of its real images and its
distilled images pass through it under one siamese augmentation, and the gradient of their distance
(`cda.method.matching`) adds to the images'. Every draw is of a generator of its own purpose, so
that an iteration is a pure function of the images, their momentum and its number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from cda.config.recipe import Distill
from cda.engine.device import seed_everything
from cda.engine.images import Images, to_unit
from cda.engine.optimizers import make_optimizer, restore_optimizer
from cda.errors import ArtifactError
from cda.method import dsa
from cda.method.matching import embedding_distance, gradient_distance
from cda.rng import generator


def start_images(
    recipe: Distill, classes: int, ipc: int, size: int, real: NDArray[np.uint8]
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Images [classes · ipc, R, R, 3] to begin with, class by class; `real` are theirs, or empty.

    Noise is N(0, 1) after normalisation, so it comes as float32 that is not to be normalised.
    """
    if recipe.start == "real":
        return real
    shape = (classes, ipc, size, size, 3)
    draws = [
        generator("distill", recipe.seed, "class", label, "noise").standard_normal(shape[1:])
        for label in range(classes)
    ]
    return np.stack(draws).astype(np.float32).reshape(-1, *shape[2:])


@dataclass(frozen=True)
class RealImages:
    """Real images of each class, normalised when they are taken."""

    images: Images
    of_class: list[Tensor]  # indices on the device

    @classmethod
    def of(cls, images: Images, classes: int) -> RealImages:
        """`images` by their labels."""
        return cls(images, [(images.labels == c).nonzero()[:, 0] for c in range(classes)])

    def batch(self, label: int, count: int, draws: np.random.Generator) -> Tensor:
        """Up to `count` images of a class without replacement, normalised [n, 3, R, R]."""
        own = self.of_class[label]
        order = draws.permutation(len(own))[:count]
        return self.images.normalised(self.images.at(own[self.images.resident(order)]))


class Distillation:
    """The images of all classes, `done` iterations on their way.

    They are normalised, class by class: image k of class c is number c · ipc + k.
    """

    def __init__(
        self,
        real: RealImages,
        start: NDArray[Any],
        recipe: Distill,
        build: Callable[[], nn.Module],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.real, self.recipe, self.build = real, recipe, build
        device = real.images.torch_device
        pixels = torch.from_numpy(np.ascontiguousarray(start)).to(device)
        images = to_unit(pixels)
        if not pixels.is_floating_point():
            images = real.images.normalised(images)
        self.images = images.to(dtype).requires_grad_()
        self.classes = len(real.of_class)
        self.ipc = len(start) // self.classes
        self.labels = torch.arange(self.classes, device=device).repeat_interleave(self.ipc)
        self.optimizer = make_optimizer(
            torch.optim.SGD, [self.images], recipe.lr, device, momentum=recipe.momentum
        )
        self.done = 0
        self.trace: list[dict[str, float]] = []

    def step(self) -> float:
        """One iteration: a fresh network, and one or more steps of the images.

        Returns the distance summed over the classes, at the last of them. Raises ArtifactError if
        it is not finite.
        """
        distance = self._iterate(("distill", self.recipe.seed, self.done))
        if not np.isfinite(distance):
            raise ArtifactError(
                f"distill: the distance is {distance} in iteration {self.done}; lower the recipe's "
                "distill.lr"
            )
        self.done += 1
        return distance

    def _iterate(self, purpose: tuple[object, ...]) -> float:
        seed_everything(*purpose, "weights")
        network = self.build().train()
        step = self._match_gradients if self.recipe.match == "gradient" else self._match_embeddings
        return step(network, purpose)

    def _pairs(self, label: int, purpose: tuple[object, ...]) -> tuple[Tensor, Tensor]:
        """A class's real and distilled batch, under the same augmentation."""
        recipe, own = self.recipe, self.images[label * self.ipc : (label + 1) * self.ipc]
        purpose = (*purpose, "class", label)
        draws = generator(*purpose, "real")
        real = self.real.batch(label, recipe.real_batch, draws).to(own.dtype)
        if recipe.augment == "none":
            return real, own
        operation = dsa.draw(generator(*purpose, "dsa"), 1, own.shape[-1])
        return dsa.apply(real, operation), dsa.apply(own, operation)

    def _move(self, distance_of: Callable[[int], Tensor]) -> float:
        """One step of the images against the distances of all classes; their sum.

        Images of two classes never meet, so that a class's graph is freed before the next.
        """
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.images.device, dtype=torch.float64)
        for label in range(self.classes):
            distance = distance_of(label)
            distance.backward()
            total += distance.detach()
        self.optimizer.step()
        return float(total)

    def _match_embeddings(self, network: Any, purpose: tuple[object, ...]) -> float:
        network.requires_grad_(False)

        def distance(label: int) -> Tensor:
            real, own = self._pairs(label, purpose)
            with torch.no_grad():
                target = network.embed(real)
            return embedding_distance(network.embed(own), target)

        return self._move(distance)

    def _match_gradients(self, network: nn.Module, purpose: tuple[object, ...]) -> float:
        recipe, distance = self.recipe, 0.0
        weights = list(network.parameters())
        trainer = make_optimizer(torch.optim.SGD, weights, recipe.model_lr, self.images.device)
        for outer in range(recipe.outer_steps):
            at = (*purpose, "outer", outer)
            distance = self._move(partial(self._gradients, network, weights, at))
            if outer + 1 < recipe.outer_steps:
                self._train(network, trainer, at)
        return distance

    def _gradients(
        self, network: nn.Module, weights: Sequence[Tensor], at: tuple[object, ...], label: int
    ) -> Tensor:
        real, own = self._pairs(label, at)
        target = torch.autograd.grad(self._loss(network, real, label), weights)
        gradient = torch.autograd.grad(self._loss(network, own, label), weights, create_graph=True)
        return gradient_distance(gradient, target)

    def _loss(self, network: nn.Module, images: Tensor, label: int) -> Tensor:
        labels = self.labels.new_full((len(images),), label)
        return F.cross_entropy(network(images), labels)

    def _train(self, network: nn.Module, optimizer: Any, at: tuple[object, ...]) -> None:
        """Train the network on the present images for `inner_epochs`."""
        images = self.images.detach()
        for epoch in range(self.recipe.inner_epochs):
            order = generator(*at, "epoch", epoch, "order").permutation(len(images))
            index = self.real.images.resident(order)
            for number, chosen in enumerate(index.split(self.recipe.model_batch)):
                batch = images[chosen]
                if self.recipe.augment == "dsa":
                    batch = dsa.augment(batch, generator(*at, "epoch", epoch, "dsa", number))
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(network(batch), self.labels[chosen]).backward()
                optimizer.step()

    def unit_images(self) -> NDArray[np.float32]:
        """Images [ipc, classes, R, R, 3] as shards hold them: 0 is black, 1 white."""
        normalised, size = self.real.images.normalised, self.images.shape[-1]
        unit = self.images.detach() * normalised.std + normalised.mean
        by_shard = unit.view(self.classes, self.ipc, 3, size, size).permute(1, 0, 3, 4, 2)
        found: NDArray[np.float32] = by_shard.contiguous().float().cpu().numpy()
        return found

    def learned(self) -> dict[str, float]:
        """What was learned beside the images."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "images": self.images.detach(),
            "optimizer": self.optimizer.state_dict(),
            "done": self.done,
            "trace": self.trace,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's state."""
        with torch.no_grad():
            self.images.copy_(state["images"])
        restore_optimizer(self.optimizer, state["optimizer"])
        self.done, self.trace = state["done"], state["trace"]
