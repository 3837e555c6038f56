"""Real data sets as arrays: the digits, CIFAR-100, the ImageNets, and any pair of image folders.

One rule holds for all layouts: classes are sorted by name, numbers by value, unless `class_map`
states their order (`class_order.py`), and a label is the index of its class;
images are ordered by class, then by file name. So image 17 of a split is the same image in every
layout of a data set.

Nothing on disk is trusted: a data set that is missing, partial or damaged ends in a DataError of
one line, which names the path, what was expected and found, and how to get the data. CIFAR-100's
pickles go through an unpickler that can build nothing but plain values and uint8 arrays.
This module imports no torch: a check of the data takes a second.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cda.data.base import Source, Split
from cda.data.cifar import CifarPickles
from cda.data.folders import Folders, TinyImageNet
from cda.data.imagenet import ImageNet1K, ImageNet21K
from cda.data.inspection import damaged_images
from cda.errors import ConfigError, DataError

if TYPE_CHECKING:
    from cda.config.settings import Dataset

_DIGITS_HELD_OUT = 0.2  # share of each class


@dataclass(frozen=True)
class ImageSet:
    """One split: `images` uint8 [N, R, R, 3], `labels` int64 [N], and the sorted class names."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]


def load(dataset: Dataset, split: Split, root: Path) -> ImageSet:
    """Read a split into memory. Raises DataError when it is missing, partial or damaged."""
    source = _source(dataset, root)
    classes = source.checked_classes()
    images, labels = source.read(split)
    source.expect_images(source.root, split, len(images))
    return ImageSet(images, labels, classes)


def labels_of(dataset: Dataset, split: Split, root: Path) -> np.ndarray:
    """Labels [N] of a split, from the file names alone where images lie in folders.

    Raises DataError.
    """
    return _source(dataset, root).labels(split)


def select(dataset: Dataset, split: Split, root: Path, chosen: np.ndarray) -> Iterator[np.ndarray]:
    """Yield images `chosen` [n] of a split, uint8 [R, R, 3] each.

    Where images lie in folders, only the chosen files are read. Raises DataError.
    """
    return _source(dataset, root).select(split, chosen)


def files(dataset: Dataset, root: Path) -> Folders:
    """A data set with one file per image, to be decoded one by one.

    Raises ConfigError for any other layout.
    """
    source = _source(dataset, root)
    if not isinstance(source, Folders):
        raise ConfigError(
            f"data set {dataset.name}: stream needs one file per image, which it lacks; drop stream"
        )
    return source


def class_names(dataset: Dataset, root: Path) -> tuple[str, ...]:
    """Class names in the order of their labels, from folders or metadata.

    Raises DataError unless there are `dataset.classes` of them.
    """
    return _source(dataset, root).checked_classes()


def check(dataset: Dataset, root: Path) -> str | None:
    """The problem of the data set in one line, or None if both splits are complete.

    No image is read: the check covers what a list of the files shows.
    """
    try:
        source = _source(dataset, root)
        source.checked_classes()
        source.probe("train")
        source.probe("val")
    except DataError as problem:
        return str(problem)
    return None


def inspect(dataset: Dataset, root: Path) -> tuple[dict[Split, int], list[tuple[str, str]]]:
    """Decode every image of a data set; logs progress.

    Returns the number of images of each split, and of each damaged one its path as `exclude` has
    it, with what is wrong. Raises DataError where a list of the files shows a problem, if all of
    them decode; a layout without image files is read.
    """
    source = _source(dataset, root)
    splits: tuple[Split, ...] = ("train", "val")
    if not isinstance(source, Folders):
        return {split: len(load(dataset, split, root).labels) for split in splits}, []
    counts, damaged = dict[Split, int](), list[tuple[str, str]]()
    for split in splits:
        paths, folder = source.listing(split, count=False)[0], source.folder(split)
        counts[split] = len(paths)
        for path, problem in damaged_images(paths, f"{dataset.name} {split}"):
            damaged.append((folder.name + path[len(str(folder)) :], problem))
    if not damaged:
        for split, count in counts.items():
            source.expect_images(source.folder(split), split, count)
    return counts, damaged


def _source(dataset: Dataset, root: Path) -> Source:
    if dataset.layout == "digits":
        return _Digits(dataset, root)
    if dataset.layout == "no_images":
        return _Named(dataset, root)
    layouts = {"tiny_imagenet": TinyImageNet, "imagenet1k": ImageNet1K, "imagenet21k": ImageNet21K}
    if dataset.layout in layouts:
        return layouts[dataset.layout](dataset, root)
    if dataset.layout == "cifar100":
        for base in (root / "cifar-100-python", root):
            if (base / "meta").is_file() or (base / "train").is_file():
                return CifarPickles(dataset, base)
    folders = Folders(dataset, root)
    if dataset.layout == "cifar100" and not (root / "train").is_dir():
        folders.fail(
            root, "cifar-100-python/{train,test,meta}, unpacked, or folders train and test"
        )
    return folders


class _Named(Source):
    """Class names without images: enough to distill from published weights."""

    def classes(self) -> tuple[str, ...]:
        """Sorted class names."""
        return self.dataset.class_names

    def probe(self, split: Split) -> None:
        """Nothing is needed."""

    def read(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Raise DataError."""
        raise DataError(
            f"{self.dataset.name} has no {split} images (layout: no_images); only figures and "
            "scores do without"
        )


class _Digits(Source):
    """The 1,797 handwritten digits inside scikit-learn: 8×8 pixels, 17 grey levels.

    Here they are scaled to bytes and enlarged bilinearly. They have no official split; this one
    holds out a fifth of each class, the same in every run: the rows with the smallest values of
    `Philox(key=digit).random_raw`, a stream that numpy promises not to change (it may change its
    `permutation`).
    """

    def __init__(self, dataset: Dataset, root: Path) -> None:
        # The package is located but not imported: importing sklearn takes seconds.
        package = importlib.util.find_spec("sklearn")
        folder = Path(package.origin).parent if package and package.origin else root
        super().__init__(dataset, folder / "datasets" / "data" / "digits.csv.gz")

    def classes(self) -> tuple[str, ...]:
        """Sorted class names."""
        return tuple("0123456789")

    def probe(self, split: Split) -> None:
        """Raise DataError unless scikit-learn's file of digits exists."""
        if not self.root.is_file():
            self.fail(self.root, "the digits of the scikit-learn package")

    def read(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [N, R, R, 3] and labels [N] of a split."""
        self.probe(split)
        try:
            # A row is 64 pixels and the digit.
            table = np.loadtxt(self.root, delimiter=",", dtype=np.int64, ndmin=2)
            pixels, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1]
        except (OSError, ValueError, EOFError) as error:
            self.fail(self.root, "a table of digits", error)
        rows = np.concatenate([_digit_rows(labels, digit, split) for digit in range(10)])
        grey = ((pixels[rows] * 255 + 8) // 16).astype(np.uint8)
        size = (self.dataset.resolution, self.dataset.resolution)
        bilinear = Image.Resampling.BILINEAR
        large = np.stack(
            [np.asarray(Image.fromarray(image).resize(size, bilinear)) for image in grey]
        )
        return np.repeat(large[..., None], 3, axis=3), labels[rows]


def _digit_rows(labels: np.ndarray, digit: int, split: Split) -> np.ndarray:
    rows = np.flatnonzero(labels == digit)
    shuffled = rows[np.argsort(np.random.Philox(key=digit).random_raw(len(rows)), kind="stable")]
    held_out = round(_DIGITS_HELD_OUT * len(rows))
    return np.sort(shuffled[:held_out] if split == "val" else shuffled[held_out:])
