"""Released images, which number their classes, must mean the classes of the data set at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cda.config.settings import Dataset
from cda.data.released import released_images, require_order
from cda.errors import DataError


def data_set(classes: int, **values: Any) -> Dataset:
    shape = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "resolution": 8}
    values = {"name": "toy", "layout": "image_folder", "get": "fetch it.", **shape, **values}
    return Dataset(classes=classes, **values)


def release(folder: Path, classes: int) -> None:
    for label in range(classes):
        path = folder / f"new{label:03d}" / f"class{label:03d}_id000.jpg"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.full((8, 8, 3), label * 10, np.uint8)).save(path)


def refusal(function: Any, *arguments: Any) -> str:
    with pytest.raises(DataError) as caught:
        function(*arguments)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_a_class_order_that_the_release_may_not_have_needs_a_class_map():
    names = sorted(f"class{number}" for number in range(12))
    line = refusal(require_order, data_set(12), names)
    assert line.startswith("toy: a release numbers its classes, and class 2 is 'class10' here")
    assert "config/datasets/toy.classes.txt" in line
    require_order(data_set(12, class_map=names), names)
    require_order(data_set(12), [str(number) for number in range(12)])
    require_order(data_set(2), ["n01440764", "n01443537"])


def test_a_release_of_more_classes_is_of_another_data_set(tmp_path):
    release(tmp_path, 3)
    assert released_images(tmp_path, 0, data_set(3))[:, 0, 0, 0].tolist() == [0, 10, 20]
    line = refusal(released_images, tmp_path, 0, data_set(2))
    assert line.startswith(f"{tmp_path}/new002: the release has more than the 2 classes of toy")


def test_grey_of_16_bits_in_a_release_is_not_clipped(tmp_path):
    release(tmp_path, 2)
    path = tmp_path / "new001/class001_id000.jpg"
    Image.fromarray(np.full((8, 8), 100 * 257, np.uint16)).save(path, "PNG")
    assert released_images(tmp_path, 0, data_set(2))[1, 0, 0].tolist() == [100, 100, 100]
