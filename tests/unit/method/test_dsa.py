"""Each operation of Differentiable Siamese Augmentation against plain loops and torchvision on the
same parameters.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from cda.method import dsa
from cda.rng import generator

torch.set_num_threads(1)

NEARLY_ONE = float(np.nextafter(1.0, 0.0))
SIZES = (8, 9, 64)


def operated(name: str, images: torch.Tensor, draws: np.random.Generator) -> torch.Tensor:
    """The images under an operation with parameters of each."""
    values = dsa.OPERATIONS[name][0](draws, len(images), images.shape[-1])
    return dsa.apply(images, dsa.Operation(name, values))


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


class Fixed:
    """A generator whose every uniform draw is the same."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self, shape: Any) -> np.ndarray:
        return np.full(shape, self.value)


def drawn(name: str, images: torch.Tensor, value: float) -> torch.Tensor:
    """An operation with all its draws at `value`, a number in [0, 1)."""
    return operated(name, images, Fixed(value))  # type: ignore[arg-type]


# Equal parameters, equal images
# --------------------------------------------------------------------------------------------------


def test_color_is_brightness_then_saturation_then_contrast():
    images, draws = noise(0, 5, 3, 6, 6), np.random.default_rng(1)
    brightness, saturation, contrast = draws.normal(size=(3, 5))
    out = dsa.color(images, *map(torch.from_numpy, (brightness, saturation, contrast))).numpy()
    for i, image in enumerate(images.numpy()):
        wanted = image + brightness[i]
        for row, column in np.ndindex(6, 6):
            grey = wanted[:, row, column].sum() / 3
            wanted[:, row, column] = grey + saturation[i] * (wanted[:, row, column] - grey)
        wanted = wanted.mean() + contrast[i] * (wanted - wanted.mean())
        np.testing.assert_allclose(out[i], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("size", "side"), [(8, 4), (9, 5), (6, 1)])
def test_cutout_zeroes_the_part_of_the_square_that_lies_inside(size, side):
    starts = np.array(
        [(row, column) for row in range(-side, size + 1) for column in (-side, -1, 0, size - 1)]
    )
    images = noise(2, len(starts), 3, size, size)
    out = dsa.cutout(images, torch.from_numpy(starts), side).numpy()
    for i, (top, left) in enumerate(starts):
        wanted = images[i].numpy().copy()
        for row, column in np.ndindex(size, size):
            if top <= row < top + side and left <= column < left + side:
                wanted[:, row, column] = 0
        np.testing.assert_array_equal(out[i], wanted)


def sampled(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """A plain bilinear warp of [C, R, R] with zeros outside.

    `matrix` maps (x, y) of the output to the source.
    """
    size = image.shape[-1]
    out = np.zeros_like(image)
    for row, column in np.ndindex(size, size):
        x, y = matrix @ np.array([(2 * column + 1) / size - 1, (2 * row + 1) / size - 1])
        across, down = ((x + 1) * size - 1) / 2, ((y + 1) * size - 1) / 2
        left, top = math.floor(across), math.floor(down)
        for r, c in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            if 0 <= r < size and 0 <= c < size:
                out[:, row, column] += (1 - abs(down - r)) * (1 - abs(across - c)) * image[:, r, c]
    return out


def test_warp_is_a_plain_bilinear_one():
    images, matrices = (
        noise(3, 6, 3, 9, 9),
        np.eye(2) + 0.3 * np.random.default_rng(4).normal(size=(6, 2, 2)),
    )
    out = dsa.warp(images, torch.from_numpy(matrices)).numpy()
    for i in range(6):
        np.testing.assert_allclose(
            out[i], sampled(images[i].numpy(), matrices[i]), rtol=0, atol=1e-12
        )


# Published parameters: the ends of every range
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("value", "angle"), [(0.0, -15.0), (0.5, 0.0), (NEARLY_ONE, 15.0)])
def test_rotation_is_torchvisions_by_up_to_fifteen_degrees(size, value, angle):
    images = noise(5, 2, 3, size, size).float()
    wanted = tv.rotate(images, angle, InterpolationMode.BILINEAR)
    torch.testing.assert_close(drawn("rotate", images, value), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("value", "ratio"), [(0.0, 1 / 1.2), (NEARLY_ONE, 1.2)])
def test_scale_reads_a_window_a_fifth_smaller_or_larger(size, value, ratio):
    images = noise(6, 2, 3, size, size)
    wanted = np.stack([sampled(image, ratio * np.eye(2)) for image in images.numpy()])
    np.testing.assert_allclose(drawn("scale", images, value).numpy(), wanted, rtol=0, atol=1e-12)


def test_scale_draws_a_ratio_for_each_axis_of_each_image():
    images = noise(13, 4, 3, 8, 8)
    draws, again = np.random.default_rng(14), np.random.default_rng(14)
    ratios = 1 / 1.2 + again.random((4, 2)) * (1.2 - 1 / 1.2)  # of x, then of y
    wanted = np.stack(
        [sampled(one, np.diag(both)) for one, both in zip(images.numpy(), ratios, strict=True)]
    )
    found = operated("scale", images, draws).numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("size", "shift"), [(8, 1), (9, 1), (12, 2), (64, 8)])
def test_crop_shifts_by_up_to_an_eighth_and_brings_in_zeros(size, shift):
    images = noise(7, 2, 3, size, size)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (shift, shift), (shift, shift)))
    for value, corner in ((0.0, 0), (0.5, shift), (NEARLY_ONE, 2 * shift)):
        wanted = padded[..., corner : corner + size, corner : corner + size]
        np.testing.assert_array_equal(drawn("crop", images, value).numpy(), wanted)


@pytest.mark.parametrize("size", SIZES)
def test_cutout_covers_a_half_square_whose_centre_is_anywhere(size):
    images = torch.ones(1, 3, size, size)
    side = int(size / 2 + 0.5)
    first, last = (1 - drawn("cutout", images, value)[0, 0] for value in (0.0, NEARLY_ONE))
    assert first.sum() == (side - side // 2) ** 2, (
        "the square of the lowest centre begins half outside"
    )
    assert first.nonzero().min(dim=0).values.tolist() == [0, 0]
    highest = size - side % 2  # an even side's centre lies between pixels, so the border is one too
    assert last.nonzero().min(dim=0).values.tolist() == [highest - side // 2] * 2
    assert last.nonzero().max(dim=0).values.tolist() == [size - 1] * 2
    middle = 1 - drawn("cutout", images, 0.5)[0, 0]
    assert middle.sum() == side**2


def test_flip_mirrors_half_of_the_images():
    images = noise(8, 4000, 3, 2, 2)
    out = operated("flip", images, np.random.default_rng(9))
    mirrored = (out == torch.from_numpy(images.numpy()[..., ::-1].copy())).flatten(1).all(dim=1)
    assert torch.equal(out[~mirrored], images[~mirrored])
    assert 0.46 < mirrored.double().mean() < 0.54  # five standard deviations


def test_colour_ranges():
    flat, tinted = (
        torch.zeros(1, 3, 2, 2),
        torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2),
    )
    assert [
        drawn("color", flat, value).mean().item() for value in (0.0, NEARLY_ONE)
    ] == pytest.approx([-0.5, 0.5])
    spread = [drawn("color", tinted, value)[0, 0, 0, 0].item() for value in (0.0, 0.5, NEARLY_ONE)]
    assert spread == pytest.approx(
        [-0.5, 1.0, 0.5 + 2.0 * 1.5]
    )  # brightness + saturation · contrast


# One operation a batch, each image its own draw
# --------------------------------------------------------------------------------------------------


def test_every_batch_is_one_operation_and_all_six_are_equally_likely():
    images = noise(10, 4, 3, 8, 8)
    counts = dict.fromkeys(dsa.OPERATIONS, 0)
    for batch in range(600):
        out = dsa.augment(images, generator("dsa", batch))
        draws = generator("dsa", batch)
        name = list(dsa.OPERATIONS)[int(draws.integers(6))]
        assert torch.equal(out, operated(name, images, draws))
        counts[name] += 1
    assert list(counts) == ["color", "crop", "cutout", "flip", "scale", "rotate"]
    assert all(60 <= count <= 140 for count in counts.values()), (
        counts
    )  # 100 ± 4.4 standard deviations


@pytest.mark.parametrize("name", sorted(dsa.OPERATIONS))
def test_equal_images_come_out_differently_and_equal_draws_give_equal_batches(name):
    images = noise(11, 1, 3, 16, 16).float().expand(32, 3, 16, 16)
    before = images.clone()
    out = operated(name, images, generator("draws"))
    assert len(torch.unique(out, dim=0)) > (1 if name == "flip" else 16)
    assert torch.equal(out, operated(name, images, generator("draws")))
    assert torch.equal(images, before), "the input must stay as it is"
    assert (out.shape, out.dtype) == (images.shape, images.dtype)


@pytest.mark.parametrize("name", sorted(dsa.OPERATIONS))
def test_the_gradient_passes(name):
    images = noise(12, 2, 3, 6, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: operated(name, x, generator("gradient")), images)
