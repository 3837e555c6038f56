"""The recover loop (paper Section 2.3, Eq. 6): images that the model recognises, with the real
data's BN statistics.

Several class blocks go through the network together; draws, BN statistics and losses are each
block's own, so that one block alone is the special case. docs/fidelity.md gives the loop's order;
items 3 to 9 say where it follows the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from cda.config.recipe import Recover
from cda.config.settings import Dataset
from cda.engine.device import Device
from cda.engine.kernels import batch_norm
from cda.engine.kernels.winograd import Convolutions
from cda.errors import ArtifactError
from cda.method.augment import Views, draw_views, resample, resampling
from cda.method.bn_matching import BNMatching
from cda.method.curriculum import image_lr, min_crop
from cda.rng import generator


@dataclass(frozen=True)
class Block:
    """The classes `first` to `last` (exclusive) of one shard, optimised together."""

    shard: int
    first: int
    last: int

    def purpose(self, seed: int) -> tuple[object, ...]:
        """What its draws are seeded by: it and nothing around it."""
        return ("recover", seed, "shard", self.shard, "from", self.first)


def blocks_of(shard: int, classes: int, size: int) -> list[Block]:
    """A shard's class blocks: `size` consecutive classes each, the last one with what is left
    (fidelity 4).
    """
    return [Block(shard, first, min(first + size, classes)) for first in range(0, classes, size)]


def start_images(block: Block, seed: int, resolution: int) -> NDArray[np.float64]:
    """N(0, 1) images [classes of the block, 3, R, R] in normalised space."""
    count = block.last - block.first
    return generator(*block.purpose(seed), "start").standard_normal(
        (count, 3, resolution, resolution)
    )


def step_views(block: Block, recipe: Recover, step: int, resolution: int) -> Views:
    """Crop, flip and roll of a block at `step`.

    One for all its images (fidelity 3), or one each with `per_image`.
    """
    low = min_crop(
        step, recipe.iterations, mode=recipe.mode, scheduler=recipe.scheduler, milestone=recipe.milestone,
        low=recipe.min_crop, high=recipe.max_crop,
    )  # fmt: skip
    count = block.last - block.first if recipe.per_image else 1
    draws = generator(*block.purpose(recipe.seed), "step", step)
    return draw_views(
        draws,
        count,
        resolution,
        crop="random_resized_crop",
        scale=(low, recipe.max_crop),
        flip=recipe.flip,
        jitter=recipe.jitter,
    )


class Objective:
    """What is minimised: cross-entropy and BN distance of each of `blocks` equal class blocks.

    In float32 on a CPU a frozen model's convolutions and BN layers are computed by
    `cda.engine.kernels`; elsewhere the whole is compiled, if `steps` of it pay for that.
    `runtime.compile: never` is the reference without either.
    """

    def __init__(
        self, model: nn.Module, blocks: int, recipe: Recover, device: Device, steps: int
    ) -> None:
        self.model, self.blocks, self.device = model, blocks, device
        native = device.native and next(model.parameters()).dtype == torch.float32
        device.compiles |= native
        self.matching = BNMatching(
            model, blocks, recipe.first_bn_multiplier, batch_norm if native else None
        )
        self._convolutions = Convolutions(model) if native else None
        self._losses = self._eager if native else device.compiled(self._eager, steps)

    def __call__(
        self, images: Tensor, rows: Tensor, columns: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both losses [K] of images [K·B, 3, R, R] with labels [K·B] as the views' matrices show
        them.
        """
        return self._losses(images, rows, columns, labels)

    def _eager(
        self, images: Tensor, rows: Tensor, columns: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        seen = resample(images, (rows, columns))
        with self.device.autocast():
            logits = self.model(seen.contiguous(memory_format=torch.channels_last))
        precise = logits if logits.dtype == torch.float64 else logits.float()
        entropy = (
            F.cross_entropy(precise, labels, reduction="none").view(self.blocks, -1).mean(dim=1)
        )
        return entropy, self.matching.loss()

    def close(self) -> None:
        """Leave the model as it was."""
        self.matching.remove()
        if self._convolutions is not None:
            self._convolutions.remove()


class Recovery:
    """Equal-sized class blocks on their way from noise to images; `step` moves all of them on by
    one iteration.

    `outputs` are the model's, of every class of `data`; by default it has those classes and no
    other.
    """

    def __init__(
        self,
        objective: Objective,
        blocks: list[Block],
        recipe: Recover,
        data: Dataset,
        dtype: torch.dtype = torch.float32,
        label: str = "recover",
        outputs: Sequence[int] | None = None,
    ) -> None:
        assert len(blocks) == objective.blocks
        device = objective.device.torch_device
        self.objective, self.blocks, self.recipe, self.data, self.torch_device = (
            objective,
            blocks,
            recipe,
            data,
            device,
        )
        self.label, self.done = label, 0
        self.trace: list[dict[str, Any]] = []
        start = np.concatenate(
            [start_images(block, recipe.seed, data.resolution) for block in blocks]
        )
        self.images = torch.from_numpy(start).to(device, dtype).requires_grad_()
        own = range(data.classes) if outputs is None else outputs
        self.labels = torch.tensor(
            [own[label] for b in blocks for label in range(b.first, b.last)], device=device
        )
        self.mean, self.std = (
            torch.tensor(values, dtype=dtype, device=device).view(3, 1, 1)
            for values in (data.mean, data.std)
        )
        self.optimizer = torch.optim.Adam(
            [self.images], lr=recipe.lr, betas=(0.5, 0.9), eps=1e-8, fused=True
        )
        self._last: tuple[Tensor, Tensor] | None = None

    def step(self) -> None:
        """One iteration; raises ArtifactError if a block's loss is no longer a number."""
        recipe, step = self.recipe, self.done
        drawn = [step_views(block, recipe, step, self.data.resolution) for block in self.blocks]
        views = Views(*(np.concatenate(parts) for parts in zip(*drawn, strict=True)))
        matrices = resampling(views, self.data.resolution, self.torch_device, self.images.dtype)
        entropy, distance = self.objective(self.images, *matrices, self.labels)
        self.optimizer.param_groups[0]["lr"] = image_lr(step, recipe.iterations, recipe.lr)
        self.optimizer.zero_grad(set_to_none=True)
        (entropy + recipe.alpha_bn * distance).sum().backward()
        self.optimizer.step()
        with torch.no_grad():
            self.images.copy_(
                self.images.maximum(-self.mean / self.std).minimum((1 - self.mean) / self.std)
            )
        self.done += 1
        self._last = (entropy.detach(), distance.detach())
        if self.done in (1, recipe.iterations) or self.done % max(1, recipe.iterations // 20) == 0:
            ce, bn = self.losses()
            self.trace.append({"step": self.done, "ce": ce, "bn": bn})

    def losses(self) -> tuple[list[float], list[float]]:
        """Cross-entropy and BN distance of each block at the last step.

        Raises ArtifactError if one is no number.
        """
        assert self._last is not None
        entropy, distance = (part.tolist() for part in self._last)
        for block, ce, bn in zip(self.blocks, entropy, distance, strict=True):
            if not (math.isfinite(ce) and math.isfinite(bn)):
                where = (
                    f"shard {block.shard}, classes {block.first} to {block.last - 1}, "
                    f"step {self.done}"
                )
                raise ArtifactError(
                    f"{self.label}: the loss is no number at {where}; lower recover.lr or use "
                    "precision fp32"
                )
        return entropy, distance

    def summary(self) -> str:
        """The last noted losses, mean over the blocks, for people."""
        ce, bn = (float(np.mean(self.trace[-1][key])) for key in ("ce", "bn"))
        return f"loss {ce:.3f} + α·{bn:.2f}"

    def pixels(self) -> NDArray[np.uint8]:
        """The images as uint8 [K · B, R, R, 3], truncated as the authors' code does (fidelity 9)."""
        unit = (self.images.detach() * self.std + self.mean).clamp(0, 1)
        return (unit * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def state(self) -> dict[str, Any]:
        """Everything the remaining iterations depend on.

        Raises ArtifactError rather than keep what has diverged.
        """
        if self._last is not None:
            self.losses()
        return {
            "done": self.done,
            "images": self.images,
            "optimizer": self.optimizer.state_dict(),
            "trace": self.trace,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.done, self.trace = state["done"], state["trace"]
        with torch.no_grad():
            self.images.copy_(state["images"])
        self.optimizer.load_state_dict(state["optimizer"])
