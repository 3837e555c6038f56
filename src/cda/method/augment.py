"""Crop, flip and roll as two small matrices per image, and the draws behind them.

Resizing a crop bilinearly is linear in rows and in columns: `out = Y · image · Xᵀ`, where a row of
Y holds the two weights of an output row's source rows. A flip reverses the rows of X, a roll
rotates the rows of both, a padded crop has rows of zeros. So any of them, and any chain of them, is
one pair of R×R matrices, batched, exact, deterministic in its gradient too, and fast on any device.
The gradient through it is the paper's ReverseRandomResizedCrop (fidelity 8). A crop of an R×R image
resized to R×R always enlarges, so torchvision's antialiasing would change nothing; `stack_views`
asserts that.

Draws are made on the CPU by counter-based generators (`cda.rng`), so that they depend on their
purpose and on nothing that ran before.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
TRIES = 10  # torchvision's RandomResizedCrop takes the full image after ten boxes that do not fit
LOG_RATIO = (float(np.log(3 / 4)), float(np.log(4 / 3)))
DRAWS_PER_IMAGE = 2 * TRIES + 3  # area and ratio of each try, top, left, flip


class Views(NamedTuple):
    """Crops, flips and rolls of N images, in pixels.

    Boxes [N, 4] (top, left, height, width), flips [N], rolls [N, 2] (down, right).
    """

    boxes: NDArray[np.int64]
    flips: NDArray[np.bool_]
    rolls: NDArray[np.int64]

    def of(self, chosen: NDArray[np.int64]) -> Views:
        """The views of the images `chosen`."""
        return Views(self.boxes[chosen], self.flips[chosen], self.rolls[chosen])


class Cutouts(NamedTuple):
    """Squares that cover N images: boxes [N, 4] (top, bottom, left, right), colours [N, 3].

    Colours are in [0, 1].
    """

    boxes: NDArray[np.int64]
    colours: NDArray[np.float32]

    def of(self, chosen: NDArray[np.int64]) -> Cutouts:
        """The squares of the images `chosen`."""
        return Cutouts(self.boxes[chosen], self.colours[chosen])


def crop_boxes(uniform: Floats, size: int, low: float, high: float) -> NDArray[np.int64]:
    """RandomResizedCrop's boxes [N, 4] by torchvision's rules, from uniform draws [N, >= 22].

    Draws are in [0, 1). A box has an area ratio in [low, high] and a log-uniform aspect ratio in
    3/4 to 4/3. The first of ten boxes that fits is taken, else the full image, which is
    torchvision's fall-back for square images.
    """
    area = size * size * (low + (high - low) * uniform[:, :TRIES])
    ratio = np.exp(LOG_RATIO[0] + (LOG_RATIO[1] - LOG_RATIO[0]) * uniform[:, TRIES : 2 * TRIES])
    width = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    height = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (width > 0) & (width <= size) & (height > 0) & (height <= size)
    first = fits.argmax(axis=1)
    rows = np.arange(len(uniform))
    found = fits[rows, first]
    height = np.where(found, height[rows, first], size)
    width = np.where(found, width[rows, first], size)
    top = np.floor(uniform[:, 2 * TRIES] * (size - height + 1)).astype(np.int64)
    left = np.floor(uniform[:, 2 * TRIES + 1] * (size - width + 1)).astype(np.int64)
    return np.stack([top, left, height, width], axis=1)


def draw_views(
    draws: np.random.Generator,
    count: int,
    size: int,
    *,
    crop: str,
    scale: tuple[float, float] = (0.08, 1.0),
    padding: int = 0,
    flip: float = 0.5,
    jitter: int = 0,
) -> Views:
    """Random views of `count` images of `size` pixels.

    `crop` is random_resized_crop (area ratio in `scale`), pad_crop (a window of the zero-padded
    image) or none; ValueError for another. Image i's draws depend on the generator and i, not on
    `count`.
    """
    uniform = draws.random((count, DRAWS_PER_IMAGE + 2))
    boxes = np.tile(np.array([0, 0, size, size], dtype=np.int64), (count, 1))
    if crop == "random_resized_crop":
        boxes = crop_boxes(uniform, size, *scale)
    elif crop == "pad_crop":
        boxes[:, :2] = np.floor(uniform[:, :2] * (2 * padding + 1)).astype(np.int64) - padding
    elif crop != "none":
        raise ValueError(f"unknown crop {crop!r}: random_resized_crop, pad_crop or none")
    flips = uniform[:, DRAWS_PER_IMAGE - 1] < flip
    rolls = np.floor(uniform[:, DRAWS_PER_IMAGE:] * (jitter + 1)).astype(np.int64)
    return Views(boxes, flips, rolls)


def _axis(start: Tensor, length: Tensor, out: Tensor, dtype: torch.dtype) -> Tensor:
    """Resampling matrices [N, R, R] of one axis, for the pixels `out` [N, R] of the resized crop.

    Output pixel o reads source coordinate `start + (o + ½) · length/size − ½`. torchvision crops
    first and resizes then, so the coordinate is clamped to the crop and not to the image.
    """
    size = out.shape[1]
    span = length.to(dtype)[:, None]
    source = ((out.to(dtype) + 0.5) * span / size - 0.5).clamp(min=0.0).minimum(span - 1)
    floor = source.floor()
    weight = (source - floor)[..., None]
    distance = torch.arange(size, device=out.device) - (floor.long() + start[:, None])[..., None]
    # The last source pixel of a crop has no right neighbour; its `weight` is 0.
    return (distance == 0) * (1 - weight) + (distance == 1) * weight


def stack_views(views: Views, size: int, rolls: bool = False) -> NDArray[np.int64]:
    """Views as one array [N, 5] (box, flip), or [N, 7] if any rolls or `rolls`."""
    fits = (views.boxes[:, 2:] <= size).all()
    assert fits, "a crop larger than the image would need antialiasing"
    parts = [
        views.boxes,
        views.flips[:, None],
        *([views.rolls] if rolls or views.rolls.any() else []),
    ]
    return np.concatenate(parts, axis=1, dtype=np.int64)


def matrices(views: Tensor, size: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Matrices (rows [N, R, R], columns [N, R, R]) that crop, then flip, then roll.

    `views` are those of `stack_views`. Flip and roll only permute the pixels of the resized crop,
    so they cost no pass over the matrices.
    """
    down = across = torch.arange(size, device=views.device)[None]
    if views.shape[1] > 5:
        down, across = ((down - views[:, i, None]) % size for i in (5, 6))
    across = torch.where(views[:, 4, None] > 0, size - 1 - across, across)
    rows = _axis(views[:, 0], views[:, 2], down.expand(len(views), size), dtype)
    return rows, _axis(views[:, 1], views[:, 3], across, dtype)


def to_device(values: NDArray[Any], device: torch.device | str) -> Tensor:
    """`values` as a tensor on `device`; the host does not wait for a copy to a GPU."""
    tensor = torch.from_numpy(values)
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def resampling(
    views: Views, size: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """`matrices` on `device` of drawn views."""
    return matrices(to_device(stack_views(views, size), device), size, dtype)


def resample(images: Tensor, matrices: tuple[Tensor, Tensor]) -> Tensor:
    """Images [N, C, R, R] through the `matrices` of N views, or of N/B views for B images each."""
    rows, columns = matrices
    views, size = len(rows), images.shape[-1]
    with torch.autocast(images.device.type, enabled=False):
        # One product per view: [B·C·R, R] @ [R, R].
        wide = images.reshape(views, -1, size) @ columns.mT
        tall = wide.view(views, -1, size, size).mT.reshape(views, -1, size) @ rows.mT
    return tall.view(views, -1, size, size).mT.reshape(images.shape)


def mixing_boxes(ratio: Floats, centre: Floats, size: int) -> NDArray[np.int64]:
    """CutMix boxes [N, 4] (top, bottom, left, right) for mixing ratios [N] and centres [N, 2].

    Centres are in [0, 1), as shares of the image's side.
    The patch covers a share 1 − ratio of the image before it is clipped at the borders (Yun et al.
    2019, as in the authors' relabelling).
    """
    half = (size * np.sqrt(1.0 - ratio)).astype(np.int64) // 2
    middle = np.floor(centre * size).astype(np.int64)
    low = np.clip(middle - half[:, None], 0, size)
    high = np.clip(middle + half[:, None], 0, size)
    return np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1)


def cutmix(images: Tensor, partners: Tensor, boxes: Tensor) -> Tensor:
    """Images [N, C, R, R], each with its box [N, 4] filled from its partner.

    Boxes are (top, bottom, left, right).
    """
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    top, bottom, left, right = (boxes[:, i, None] for i in range(4))
    inside = ((rows >= top) & (rows < bottom))[:, None, :, None] & (
        (columns >= left) & (columns < right)
    )[:, None, None, :]
    return torch.where(inside, partners, images)


def draw_cutouts(draws: np.random.Generator, count: int, size: int, share: float) -> Cutouts:
    """A square of side `share` · `size` pixels on each of `count` images, clipped at the border.

    Its centre and its single colour are uniform (CutoutPIL of Ridnik et al. 2021, whose side is a
    pixel longer). Image i's draws depend on the generator and i, not on `count`.
    """
    uniform, side = draws.random((count, 5)), round(share * size)
    low = np.floor(uniform[:, :2] * size).astype(np.int64) - side // 2
    high = np.clip(low + side, 0, size)
    low = np.clip(low, 0, size)
    boxes = np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1)
    return Cutouts(boxes, (np.floor(uniform[:, 2:] * 256) / 255).astype(np.float32))


def cutout(images: Tensor, cutouts: Cutouts) -> Tensor:
    """Images [N, C, R, R] of values in [0, 1], each covered by its square."""
    return cover(images, to_device(stack_cutouts(cutouts), images.device))


def stack_cutouts(cutouts: Cutouts) -> NDArray[np.float32]:
    """Squares as one array [N, 7] (box, colour): one copy to a device."""
    return np.concatenate([cutouts.boxes, cutouts.colours], axis=1, dtype=np.float32)


def cover(images: Tensor, squares: Tensor) -> Tensor:
    """Images [N, C, R, R] of values in [0, 1], each under its square of `stack_cutouts` [N, 7]."""
    return cutmix(images, squares[:, 4:, None, None], squares[:, :4])


def mixup(images: Tensor, partners: Tensor, ratio: Tensor) -> Tensor:
    """Ratio · image + (1 − ratio) · partner, with one ratio [N] per image."""
    ratio = ratio.view(-1, 1, 1, 1)
    return ratio * images + (1 - ratio) * partners
