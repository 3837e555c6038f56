"""Distilled images by trajectory matching (MTT, TESLA): training on them leads where experts went.

Each iteration begins at an expert's weights after a random epoch, trains a network on the images
for `synthetic_steps`, and compares where it ends with the expert `expert_epochs` later
(`cda.method.matching`). The images and the step size of that training are learned together. The
public code whitens (ZCA) some data sets; here images are normalised as everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from cda.config.recipe import Distill
from cda.engine.distillation import Distillation, RealImages
from cda.engine.memory import free_bytes
from cda.engine.optimizers import make_optimizer, restore_optimizer
from cda.errors import ArtifactError, ConfigError
from cda.method import dsa
from cda.method.matching import two_pass_gradients, unrolled_gradients
from cda.rng import generator

# Bytes that a step on one image of 32 pixels leaves for the backward pass at width 1: ConvNets of
# widths 1/4 and 1 leave 4.4 to 5.7 MB on a CPU.
IMAGE_STEP = 5e6


class Snapshots(Protocol):
    """Weights of `count` experts."""

    @property
    def count(self) -> int:
        """Number of experts."""
        ...

    def weights(self, expert: int, epoch: int) -> Tensor:
        """Weights [P] of an expert after `epoch` epochs."""
        ...


class TrajectoryMatching(Distillation):
    """The images of all classes and the step size, `done` iterations on their way."""

    def __init__(
        self,
        real: RealImages,
        start: NDArray[Any],
        recipe: Distill,
        build: Callable[[], nn.Module],
        experts: Snapshots,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(real, start, recipe, build, dtype)
        self.experts, self.network = experts, build().train()
        self.named = {name: one.shape for name, one in self.network.named_parameters()}
        device = self.images.device
        self.step_size = torch.tensor(recipe.step_size, dtype=dtype, device=device)
        self.step_size.requires_grad_()
        self.step_optimizer = make_optimizer(
            torch.optim.SGD, [self.step_size], recipe.step_lr, device, momentum=recipe.momentum
        )

    def _iterate(self, purpose: tuple[object, ...]) -> float:
        recipe, count = self.recipe, self.experts.count
        passes = generator("distill", recipe.seed, "experts", self.done // count)
        expert = int(passes.permutation(count)[self.done % count])
        epoch = int(generator(*purpose, "epoch").integers(recipe.max_start))
        ends = (epoch, epoch + recipe.expert_epochs)
        start, target = (self.experts.weights(expert, at).to(self.images) for at in ends)
        chosen = self._batches(purpose)

        def gradient(step: int, weights: Tensor, differentiable: bool) -> Tensor:
            """Of the loss of a step's batch; no graph leads to the images unless it is used."""
            images = self.images if differentiable else self.images.detach()
            batch = images[chosen[step]]
            if recipe.augment == "dsa":
                batch = dsa.augment(batch, generator(*purpose, "step", step, "dsa"))
            loss = F.cross_entropy(self._logits(batch, weights), self.labels[chosen[step]])
            return torch.autograd.grad(loss, weights, create_graph=differentiable)[0]

        match = unrolled_gradients if recipe.backward == "unrolled" else two_pass_gradients
        steps = recipe.synthetic_steps
        found = match(gradient, start, target, self.images, self.step_size, steps)
        self.images.grad, self.step_size.grad = found.images, found.step_size
        self.optimizer.step()
        self.step_optimizer.step()
        if not (learned := self.learned()["step_size"]) > 0:
            raise ArtifactError(
                f"distill: the learned step size is {learned:.3g} in iteration {self.done}; lower "
                "the recipe's distill.step_lr"
            )
        return float(found.distance)

    def _batches(self, purpose: tuple[object, ...]) -> list[Tensor]:
        """Indices of the images of each step: permutations in chunks, the last chunk first."""
        recipe, count = self.recipe, len(self.images)
        size, found = recipe.synthetic_batch or count, list[Tensor]()
        while len(found) < recipe.synthetic_steps:
            order = generator(*purpose, "order", len(found)).permutation(count)
            found += reversed(self.real.images.resident(order).split(size))
        return found[: recipe.synthetic_steps]

    def _logits(self, images: Tensor, weights: Tensor) -> Tensor:
        """Logits [B, C] of the network with `weights` [P]."""
        parts = weights.split([shape.numel() for shape in self.named.values()])
        named = {n: part.view(s) for (n, s), part in zip(self.named.items(), parts, strict=True)}
        logits: Tensor = torch.func.functional_call(self.network, named, (images,))
        return logits

    def learned(self) -> dict[str, float]:
        """The step size: the learning rate at which the images teach."""
        return {"step_size": float(self.step_size.detach())}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        own = {"step_size": self.step_size.detach()}
        return super().state() | own | {"step_optimizer": self.step_optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's state."""
        super().restore(state)
        with torch.no_grad():
            self.step_size.copy_(state["step_size"])
        restore_optimizer(self.step_optimizer, state["step_optimizer"])


def too_large(recipe: Distill, images: int, gigabytes: float = 0.0) -> str:
    """The message where memory does not suffice for `images`, with the way out."""
    if recipe.match != "trajectory" or recipe.backward != "unrolled":
        key = "synthetic_batch" if recipe.match == "trajectory" else "real_batch"
        return f"distill: no memory left; lower distill.{key}, or use a device with more memory"
    batch = recipe.synthetic_batch or images
    need = f" (about {gigabytes:.1f} GB)" if gigabytes else ""
    return (
        f"distill.backward unrolled (MTT): the graph of {recipe.synthetic_steps} steps on {batch} "
        f"images{need} does not fit into memory; use TESLA (method tesla, "
        "distill.backward: two_pass), or lower distill.synthetic_batch"
    )


def require_memory(
    recipe: Distill, images: int, size: int, width: float, device: torch.device
) -> None:
    """Raise ConfigError if the graph of all steps on `images` of `size` pixels does not fit.

    `width` multiplies the network's channels. On a CPU the host's memory counts.
    """
    batch = recipe.synthetic_batch or images
    needed = IMAGE_STEP * recipe.synthetic_steps * batch * width * (size / 32) ** 2
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = free_bytes() if device.type == "cuda" else host
    if recipe.backward == "unrolled" and needed > free:
        raise ConfigError(too_large(recipe, images, needed / 1e9))
