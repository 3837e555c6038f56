"""Batches of a training: the real set augmented and shuffled, or distilled images with views.

The augmentation of image i in epoch e (crop, flip, cutout, partner, patch) is a pure function of
the relabel seed, e and i; mixing also depends on the label batch and the number of images. Mixing
partners come from the same block of `batch_size` images in the epoch's order, so that one label
store serves every batch size of post-training.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cda.config.recipe import Relabel, Squeeze
from cda.engine.images import EpochViews, Images, augmented, channels_last, compiled_on_gpu
from cda.method import dsa
from cda.method.augment import (
    Cutouts,
    Views,
    cutmix,
    draw_cutouts,
    draw_views,
    mixing_boxes,
    mixup,
    to_device,
)
from cda.rng import generator


def batch_count(images: int, size: int, least: int = 1) -> int:
    """Batches of an epoch of `images`; a last one of fewer than `least` joins the one before.

    >>> batch_count(9, 4), batch_count(9, 4, least=2)
    (3, 2)
    """
    steps = -(-images // size)
    return steps - (steps > 1 and images - (steps - 1) * size < least)


def batch_sizes(images: int, steps: int, size: int) -> list[int]:
    """Number of images of each of an epoch's `steps`; the last one has the rest.

    >>> batch_sizes(9, 3, 4), batch_sizes(9, 2, 4)
    ([4, 4, 1], [4, 5])
    """
    return [size] * (steps - 1) + [images - (steps - 1) * size]


def batch_at(step: int, steps: int, size: int) -> slice:
    """Where the images of `step` are in an epoch's order; the last step takes the rest."""
    return slice(step * size, None if step == steps - 1 else (step + 1) * size)


def split_batch(images: Tensor, target: Any, size: int, least: int = 1) -> list[tuple[Tensor, Any]]:
    """A batch in parts of `size` images; an epoch's last batch may have fewer or smaller parts.

    A last part of fewer than `least` images joins the one before. A target is a tensor [B, …] or a
    tuple of such.
    """
    sizes = batch_sizes(len(images), batch_count(len(images), size, least), size)
    if isinstance(target, tuple):
        targets = zip(*(each.split(sizes) for each in target), strict=True)
    else:
        targets = target.split(sizes)
    return list(zip(images.split(sizes), targets, strict=True))


class Operations(NamedTuple):
    """The operation of DSA for each of N images, and its numbers."""

    names: NDArray[np.str_]  # [N]
    values: NDArray[np.float64]  # [N, 4], of which an operation uses the first ones

    def applied(self, images: Tensor, chosen: NDArray[np.int64]) -> Tensor:
        """Normalised images `chosen` [B], each under its operation."""
        names = self.names[chosen]
        for name in np.unique(names):
            own = np.flatnonzero(names == name)
            operation = dsa.Operation(str(name), self.values[chosen[own]])
            if len(own) == len(chosen):
                return dsa.apply(images, operation)
            index = to_device(own, images.device)
            images = images.index_copy(0, index, dsa.apply(images[index], operation))
        return images


class EpochPlan(NamedTuple):
    """Augmentation of N images in one epoch; all but `order` is indexed by image."""

    order: NDArray[np.int64]  # [N] the epoch's order
    views: Views
    partners: NDArray[np.int64]  # [N] the image that each image is mixed with
    ratios: NDArray[np.float64]  # [N] the image's own share of the mixed label; 1 without mixing
    boxes: NDArray[np.int64]  # [N, 4] CutMix patch: top, bottom, left, right
    cutouts: Cutouts | None = None
    operations: Operations | None = None


def epoch_plan(recipe: Relabel, size: int, count: int, epoch: int) -> EpochPlan:
    """The plan of `epoch` for `count` images of `size` pixels; the same on every machine.

    If the recipe reuses label epochs, its `epochs` must be set.
    """
    own = recipe.label_epoch(epoch)
    views = draw_views(
        generator("relabel", recipe.seed, own, "views"), count, size,
        crop=recipe.augment, scale=recipe.crop_scale, padding=recipe.padding, flip=recipe.flip,
    )  # fmt: skip
    partners, ratios, boxes = _mixed(recipe, size, count, own)
    cutouts = None
    if recipe.cutout:
        cutouts = draw_cutouts(
            generator("relabel", recipe.seed, own, "cutout"), count, size, recipe.cutout
        )
    operations = _operations(recipe, size, count, own) if recipe.operation == "dsa" else None
    order = _order(recipe, count, epoch)
    return EpochPlan(order, views, partners, ratios, boxes, cutouts, operations)


def _order(recipe: Relabel, count: int, epoch: int) -> NDArray[np.int64]:
    return generator("relabel", recipe.seed, epoch, "order").permutation(count)


def _operations(recipe: Relabel, size: int, count: int, own: int) -> Operations:
    """An operation for each block of `batch_size` images of the label epoch `own`."""
    order, names = _order(recipe, count, own), np.empty(count, "U8")
    values = np.zeros((count, 4))
    for start in range(0, count, recipe.batch_size):
        block = order[start : start + recipe.batch_size]
        draws = generator("relabel", recipe.seed, own, "operation", start // recipe.batch_size)
        operation = dsa.draw(draws, len(block), size)
        names[block] = operation.name
        values[block, : operation.values.shape[1]] = operation.values
    return Operations(names, values)


def _mixed(
    recipe: Relabel, size: int, count: int, own: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Partners, ratios and patches of the label epoch `own`; a block shares ratio and patch."""
    order, draws = _order(recipe, count, own), generator("relabel", recipe.seed, own, "mixing")
    partners, ratios = np.arange(count), np.ones(count)
    boxes = np.zeros((count, 4), dtype=np.int64)
    for start in range(0, count if recipe.mixing != "none" else 0, recipe.batch_size):
        block = order[start : start + recipe.batch_size]
        partners[block] = block[draws.permutation(len(block))]
        ratio = draws.beta(recipe.mixing_alpha, recipe.mixing_alpha)
        ratios[block] = ratio
        boxes[block] = mixing_boxes(np.array([ratio]), draws.random((1, 2)), size)
    if recipe.mixing == "cutmix":  # the image border clips patches: their real area counts
        ratios = 1 - (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / size**2
    return partners, ratios, boxes


class SqueezeBatches:
    """The real training set, augmented and shuffled.

    An epoch is a pure function of (seed, epoch).
    """

    def __init__(self, images: Images, recipe: Squeeze) -> None:
        self.set, self.recipe = images, recipe
        self.images = len(images)
        self.steps = -(-len(images) // recipe.batch_size)
        self._augment = compiled_on_gpu(self._plain, images.device, recipe.epochs * self.steps)

    def _plain(self, pixels: Tensor, views: Tensor, squares: Tensor | None) -> Tensor:
        return channels_last(self.set.normalised(augmented(pixels, views, squares)))

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Any]]:
        """(normalised images [B, 3, R, R], labels [B]) of every step; a rank's share of them."""
        recipe, images = self.recipe, self.set
        order = generator("squeeze", recipe.seed, epoch, "order").permutation(len(images))
        views = draw_views(
            generator("squeeze", recipe.seed, epoch, "views"), len(images), images.size,
            crop=recipe.augment, scale=recipe.crop_scale, padding=recipe.padding, flip=recipe.flip,
        )  # fmt: skip
        draws = generator("squeeze", recipe.seed, epoch, "cutout")
        cutouts = (
            draw_cutouts(draws, len(images), images.size, recipe.cutout) if recipe.cutout else None
        )
        seen, at = EpochViews.of(views, cutouts, images), images.resident(order)
        for step in range(first_step, self.steps):
            batch = batch_at(step, self.steps, recipe.batch_size)
            index, chosen = images.device.share(at[batch]), images.device.share(order[batch])
            yield self._augment(images.taken(index, chosen), *seen.at(index)), images.labels[index]


class Placed(NamedTuple):
    """An epoch's plan on the device; all but `order` is indexed by image."""

    plan: EpochPlan
    order: Tensor  # [N]
    views: EpochViews
    partners: Tensor  # [N]
    mixing: Tensor  # [N, 5] CutMix box, share of the image itself


class DistilledBatches:
    """Distilled images, augmented and mixed as a label store's epochs are, in any batch size.

    `epochs` of the job decide whether compiling pays.
    """

    def __init__(self, images: Images, recipe: Relabel, batch_size: int, epochs: int = 1) -> None:
        self.set, self.recipe, self.batch_size = images, recipe, batch_size
        self.images = len(images)
        self.steps = -(-len(images) // batch_size)
        self._augment = compiled_on_gpu(self._plain, images.device, epochs * self.steps)
        self._placed: Placed | None = None

    def plan(self, epoch: int) -> EpochPlan:
        """The plan of `epoch` for all images."""
        return epoch_plan(self.recipe, self.set.size, len(self.set), epoch)

    def placed(self, plan: EpochPlan) -> Placed:
        """The plan on the device; the last plan is cached."""
        if self._placed is None or self._placed.plan is not plan:
            views = EpochViews.of(plan.views, plan.cutouts, self.set)
            mixing = np.c_[plan.boxes, plan.ratios]
            order, partners, mixes = map(
                self.set.resident, (plan.order, plan.partners, mixing.astype(np.float32))
            )
            self._placed = Placed(plan, order, views, partners, mixes)
        return self._placed

    def inputs(self, plan: EpochPlan, chosen: NDArray[np.int64]) -> Tensor:
        """Images `chosen` [B] normalised, augmented and mixed by the plan: float32 [B, 3, R, R]."""
        return self._inputs(self.placed(plan), self.set.resident(chosen), chosen)

    def _inputs(self, placed: Placed, index: Tensor, chosen: NDArray[np.int64]) -> Tensor:
        """As `inputs`, of `chosen` on the host and the same `index` on the device."""
        mixing, own = placed.mixing[index], chosen
        if self.recipe.mixing != "none":  # partners, with their own views, follow the images
            index = torch.cat([index, placed.partners[index]])
            chosen = np.concatenate([chosen, placed.plan.partners[chosen]])
        pixels, operations = self.set.taken(index, chosen), placed.plan.operations
        inputs = self._augment(pixels, *placed.views.at(index), mixing)
        return inputs if operations is None else operations.applied(inputs, own)

    def _plain(
        self, pixels: Tensor, views: Tensor, squares: Tensor | None, mixing: Tensor
    ) -> Tensor:
        images = augmented(pixels, views, squares)
        if self.recipe.mixing != "none":
            images, partners = images.chunk(2)
            own = mixing[:, 4]
            images = (
                cutmix(images, partners, mixing[:, :4])
                if self.recipe.mixing == "cutmix"
                else mixup(images, partners, own)
            )
        return channels_last(self.set.normalised(images))

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Any]]:
        """(inputs, (epoch, plan on the device, image indices)) of every step, in plan order."""
        placed = self.placed(self.plan(epoch))
        for step in range(first_step, self.steps):
            batch = batch_at(step, self.steps, self.batch_size)
            index = placed.order[batch]
            yield self._inputs(placed, index, placed.plan.order[batch]), (epoch, placed, index)
