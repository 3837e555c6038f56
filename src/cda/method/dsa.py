"""Continual learning's augmentation: Differentiable Siamese Augmentation (Zhao and Bilen 2021).

One of color, crop, cutout, flip, scale and rotate is drawn for a batch, and every image then has
its own parameters: the authors' continual-learning code turns the Siamese sharing of draws off.
Images are normalised, so the zeros that crop, cutout, scale and rotate bring in are the data set's
mean colour. All operations are differentiable in the images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cda.method.augment import Floats, cutmix, draw_views, resample, resampling, to_device

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

    Coordinates are in [-1, 1], matrices [N, 2, 2].
    """
    affine = F.pad(matrices.to(images), (0, 1))
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _pixels(ratio: float, size: int) -> int:
    return int(size * ratio + 0.5)


def _on(images: Tensor, values: NDArray[Any]) -> Tensor:
    tensor = to_device(values, images.device)
    return tensor.to(images.dtype) if tensor.is_floating_point() else tensor


def _color(images: Tensor, draws: np.random.Generator) -> Tensor:
    uniform = _on(images, draws.random((3, len(images))))
    return color(
        images, (uniform[0] - 0.5) * BRIGHTNESS, uniform[1] * SATURATION, uniform[2] + CONTRAST
    )


def _crop(images: Tensor, draws: np.random.Generator) -> Tensor:
    size = images.shape[-1]
    views = draw_views(
        draws, len(images), size, crop="pad_crop", padding=_pixels(CROP_PAD, size), flip=0.0
    )
    return resample(images, resampling(views, size, images.device, images.dtype))


def _cutout(images: Tensor, draws: np.random.Generator) -> Tensor:
    size = images.shape[-1]
    side = _pixels(CUTOUT, size)
    centres = np.floor(draws.random((len(images), 2)) * (size + 1 - side % 2)).astype(np.int64)
    return cutout(images, _on(images, centres - side // 2), side)


def _flip(images: Tensor, draws: np.random.Generator) -> Tensor:
    flipped = _on(images, draws.random(len(images)) < FLIP)
    return torch.where(flipped[:, None, None, None], images.flip(3), images)


def _scale(images: Tensor, draws: np.random.Generator) -> Tensor:
    ratios = 1 / SCALE + draws.random((len(images), 2)) * (SCALE - 1 / SCALE)
    return warp(images, _on(images, ratios[:, :, None] * np.eye(2)))


def _rotate(images: Tensor, draws: np.random.Generator) -> Tensor:
    angles: Floats = np.deg2rad((draws.random(len(images)) - 0.5) * 2 * ROTATE)
    cosine, sine = np.cos(angles), np.sin(angles)
    matrices = np.stack([cosine, -sine, sine, cosine], axis=1).reshape(-1, 2, 2)
    return warp(images, _on(images, matrices))


OPERATIONS: dict[str, Callable[[Tensor, np.random.Generator], Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}


def augment(images: Tensor, draws: np.random.Generator) -> Tensor:
    """Normalised images [N, 3, R, R] under one randomly drawn operation, with parameters per image.

    The result is a pure function of images and draws; draws are made on the CPU, so they are the
    same on any device.
    """
    operation = list(OPERATIONS.values())[int(draws.integers(len(OPERATIONS)))]
    return operation(images, draws)
