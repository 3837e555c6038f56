"""Batches of an epoch: their sizes, the recipe's augmentation, and what decides on compiling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cda.config.recipe import Relabel, Squeeze
from cda.config.settings import Dataset, Runtime
from cda.engine import batches as module
from cda.engine.batches import (
    DistilledBatches,
    SqueezeBatches,
    batch_at,
    batch_count,
    batch_sizes,
    split_batch,
)
from cda.engine.device import Device
from cda.engine.images import Images
from cda.method import dsa
from cda.method.augment import draw_views, resample, resampling
from cda.rng import generator

SIZE, COUNT = 16, 10
DATA = Dataset(
    name="toy", layout="digits", classes=2, resolution=SIZE, mean=(0.3,) * 3, std=(0.2,) * 3,
    get="x",
)  # fmt: skip


def images() -> Images:
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)
    device = Device(Runtime(device="cpu"), torch.device("cpu"), None)
    return Images(pixels, np.arange(COUNT, dtype=np.int64), DATA, device)


def squeeze(**values: Any) -> Squeeze:
    usual: dict[str, Any] = {"epochs": 3, "batch_size": 4, "lr": 0.1, "flip": 0.0}
    return Squeeze(**(usual | values))


@pytest.mark.parametrize(
    ("count", "size", "least", "sizes"),
    [
        (9, 4, 1, [4, 4, 1]),
        (9, 4, 2, [4, 5]),
        (10, 4, 2, [4, 4, 2]),
        (8, 4, 2, [4, 4]),
        (1, 4, 2, [1]),  # there is no batch before
        (3, 4, 2, [3]),
    ],
)
def test_a_last_batch_of_fewer_than_the_least_joins_the_one_before(count, size, least, sizes):
    steps = batch_count(count, size, least)
    assert batch_sizes(count, steps, size) == sizes
    places = [batch_at(step, steps, size) for step in range(steps)]
    assert [len(range(count)[place]) for place in places] == sizes


def test_a_last_batch_may_have_a_single_image_by_default():
    assert batch_count(9, 4) == 3
    parts = split_batch(torch.zeros(9, 3, 2, 2), torch.arange(9), 4)
    assert [target.tolist() for _, target in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


def test_an_epoch_begins_with_its_first_batch():
    found = DistilledBatches(images(), Relabel(), 4, 5).epoch(0)
    assert [len(inputs) for inputs, _ in found] == [4, 4, 2]


@pytest.mark.parametrize(
    "values",
    [
        {"augment": "random_resized_crop", "crop_scale": (0.9, 1.0)},
        {"augment": "pad_crop", "padding": 3},
    ],
    ids=lambda values: values["augment"],
)
def test_squeeze_augments_by_the_recipes_values(values):
    """Labels here are the images' indices."""
    recipe = squeeze(**values)
    batches = SqueezeBatches(images(), recipe)
    views = draw_views(
        generator("squeeze", 0, 2, "views"), COUNT, SIZE, crop=recipe.augment,
        scale=recipe.crop_scale, padding=recipe.padding, flip=0.0,
    )  # fmt: skip
    found = list(batches.epoch(2))
    assert [len(index) for _, index in found] == [4, 4, 2]
    for batch, index in found:
        seen = resample(batches.set.at(index), resampling(views.of(index.numpy()), SIZE))
        expected = batches.set.normalised(seen)
        torch.testing.assert_close(batch, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_size", [4, 3, 10])
def test_a_label_batch_shares_an_operation_and_images_have_their_own_numbers(batch_size):
    """The same images in any batch size of training, which may cut label batches."""
    recipe = Relabel(operation="dsa", augment="none", flip=0.0, batch_size=4)
    source, epochs = images(), range(6)
    names = set()
    for epoch in epochs:
        found = DistilledBatches(source, recipe, batch_size, len(epochs))
        batches = list(found.epoch(epoch))
        seen = torch.cat([inputs for inputs, _ in batches])
        order = batches[0][1][1].plan.order
        assert seen.shape == (COUNT, 3, SIZE, SIZE)
        for start in range(0, COUNT, 4):
            block = order[start : start + 4]
            draws = generator("relabel", recipe.seed, epoch, "operation", start // 4)
            operation = dsa.draw(draws, len(block), SIZE)
            names.add(operation.name)
            plain = source.normalised(source.at(torch.from_numpy(block)))
            expected = dsa.apply(plain, operation)
            own = seen[start : start + len(block)]
            torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)
    assert len(names) > 3


def test_all_epochs_decide_whether_augmentation_is_compiled(monkeypatch):
    calls: list[int] = []

    def compiled_on_gpu(function: Any, _device: Device, steps: int) -> Any:
        calls.append(steps)
        return function

    monkeypatch.setattr(module, "compiled_on_gpu", compiled_on_gpu)
    SqueezeBatches(images(), squeeze())
    DistilledBatches(images(), Relabel(), 4, 5)
    assert calls == [3 * 3, 5 * 3]
