"""Differentiable Siamese Augmentation (Zhao and Bilen 2021) of the matching methods.

One of color, crop, cutout, flip, scale and rotate is drawn for a batch. Matching gives a real and a
distilled batch the same parameters for every image (siamese: an operation drawn for one image).
Training on distilled images gives every image its own, as continual learning does. Images are
normalised, so the zeros that crop, cutout, scale and rotate bring in are the data set's mean
colour. All operations are differentiable in the images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cda.method.augment import Floats, Views, cutmix, draw_views, resample, resampling, to_device

BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5  # DSA's published parameters, as all below
CROP_PAD, CUTOUT, FLIP = 0.125, 0.5, 0.5
SCALE, ROTATE = 1.2, 15.0  # largest ratio, largest angle in degrees


def color(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Add `brightness` [N], then scale each pixel's distance to its grey by `saturation` [N].

    Last, scale each pixel's distance to the image's mean by `contrast` [N].
    """
    add, saturate, stretch = (
        value.view(-1, 1, 1, 1) for value in (brightness, saturation, contrast)
    )
    images = images + add
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * saturate + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * stretch + mean


def cutout(images: Tensor, start: Tensor, side: int) -> Tensor:
    """Images with zeros in a square of `side` pixels that begins at row and column `start` [N, 2].

    The square may cross the border.
    """
    top, left = start.unbind(dim=1)
    boxes = torch.stack([top, top + side, left, left + side], dim=1)
    return cutmix(images, torch.zeros_like(images), boxes)


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Images whose pixel at (x, y) is the source's at matrix · (x, y): bilinear, zero outside.

    Coordinates are in [-1, 1], matrices [N, 2, 2] or [1, 2, 2].
    """
    affine = F.pad(matrices.to(images), (0, 1)).expand(len(images), -1, -1)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _pixels(ratio: float, size: int) -> int:
    return int(size * ratio + 0.5)


def _on(images: Tensor, values: NDArray[Any]) -> Tensor:
    tensor = to_device(values, images.device)
    return tensor.to(images.dtype) if tensor.is_floating_point() else tensor


def _draw_color(draws: np.random.Generator, count: int, _size: int) -> Floats:
    return draws.random((3, count)).T


def _draw_crop(draws: np.random.Generator, count: int, size: int) -> Floats:
    padding = _pixels(CROP_PAD, size)
    views = draw_views(draws, count, size, crop="pad_crop", padding=padding, flip=0.0)
    return views.boxes.astype(np.float64)


def _draw_one(draws: np.random.Generator, count: int, _size: int) -> Floats:
    return draws.random((count, 1))


def _draw_two(draws: np.random.Generator, count: int, _size: int) -> Floats:
    return draws.random((count, 2))


def _color(images: Tensor, values: Floats) -> Tensor:
    uniform = _on(images, values.T)
    return color(
        images, (uniform[0] - 0.5) * BRIGHTNESS, uniform[1] * SATURATION, uniform[2] + CONTRAST
    )


def _crop(images: Tensor, values: Floats) -> Tensor:
    boxes = values.astype(np.int64)
    views = Views(boxes, np.zeros(len(boxes), bool), np.zeros((len(boxes), 2), np.int64))
    return resample(images, resampling(views, images.shape[-1], images.device, images.dtype))


def _cutout(images: Tensor, values: Floats) -> Tensor:
    size = images.shape[-1]
    side = _pixels(CUTOUT, size)
    centres = np.floor(values[:, :2] * (size + 1 - side % 2)).astype(np.int64)
    return cutout(images, _on(images, centres - side // 2), side)


def _flip(images: Tensor, values: Floats) -> Tensor:
    flipped = _on(images, values[:, 0] < FLIP)
    return torch.where(flipped[:, None, None, None], images.flip(3), images)


def _scale(images: Tensor, values: Floats) -> Tensor:
    ratios = 1 / SCALE + values[:, :2] * (SCALE - 1 / SCALE)
    return warp(images, _on(images, ratios[:, :, None] * np.eye(2)))


def _rotate(images: Tensor, values: Floats) -> Tensor:
    angles: Floats = np.deg2rad((values[:, 0] - 0.5) * 2 * ROTATE)
    cosine, sine = np.cos(angles), np.sin(angles)
    matrices = np.stack([cosine, -sine, sine, cosine], axis=1).reshape(-1, 2, 2)
    return warp(images, _on(images, matrices))


Drawing = Callable[[np.random.Generator, int, int], Floats]
OPERATIONS: dict[str, tuple[Drawing, Callable[[Tensor, Floats], Tensor]]] = {
    "color": (_draw_color, _color),
    "crop": (_draw_crop, _crop),
    "cutout": (_draw_two, _cutout),
    "flip": (_draw_one, _flip),
    "scale": (_draw_two, _scale),
    "rotate": (_draw_one, _rotate),
}


class Operation(NamedTuple):
    """One of OPERATIONS, and the numbers [N, 1 to 4] of each of N images, or [1, …] of all."""

    name: str
    values: Floats


def draw(draws: np.random.Generator, count: int, size: int) -> Operation:
    """An operation for `count` images of `size` pixels, or with a count of 1 for a siamese pair.

    Draws are made on the CPU, so they are the same on any device.
    """
    name = list(OPERATIONS)[int(draws.integers(len(OPERATIONS)))]
    return Operation(name, OPERATIONS[name][0](draws, count, size))


def apply(images: Tensor, operation: Operation) -> Tensor:
    """Normalised images [N, 3, R, R] under an operation: a pure function of both."""
    return OPERATIONS[operation.name][1](images, operation.values)


def augment(images: Tensor, draws: np.random.Generator) -> Tensor:
    """Normalised images [N, 3, R, R] under one drawn operation, with parameters per image."""
    return apply(images, draw(draws, len(images), images.shape[-1]))
