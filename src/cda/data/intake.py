"""A user's own folder of images: linked to where data sets lie, split if it is not, and measured.

Nothing is copied, and the user's folder is only read. A folder that has no held-out images is
split: every fifth image of a class, by name, is linked into `val/<class>/`, the others into
`train/<class>/`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from cda.data import sources
from cda.data.base import fit
from cda.data.folders import Folders
from cda.data.pixels import BadImageError, decode_image, image_size, read_bytes
from cda.errors import ConfigError, DataError
from cda.progress import log, track
from cda.text import list_some

if TYPE_CHECKING:
    from cda.config.settings import Dataset

SAMPLE = 5000  # images that sizes, mean and deviation are of; the mean's error is below 0.004
T = TypeVar("T")
Placed = Literal["", "link", "split"]
HELD_OUT = 5  # one image of so many
SMALLEST = 8  # pixels of a side


@dataclass(frozen=True)
class Survey:
    """What a folder holds, by its list of files; sizes are of a sample of its training images."""

    classes: int
    train_images: int
    val_images: int
    smallest_class: int  # training images of the class that has the fewest
    sample: Sequence[str]  # paths
    sizes: Sequence[tuple[int, int]]  # width and height in pixels of each image of the sample


class _Unsplit(Folders):
    """`<class>/**` without train and val."""

    training = ("",)


def place(dataset: Dataset, path: Path, root: Path) -> Placed:
    """Link the folder `path` to `root`, or its images into train and val below `root`.

    Returns what was made; nothing is if `root` leads to `path` already. Raises ConfigError if
    `root` is something else, DataError if `path` is no folder or has no classes.
    """
    if not path.is_dir():
        found = "is a file" if path.exists() else "does not exist"
        raise DataError(f"--data {path}: {found}; it must be the folder that holds the images")
    if os.path.realpath(path) == os.path.realpath(root):
        return ""
    if os.path.lexists(root):
        raise ConfigError(
            f"{root}: exists and is not {path}; choose another name, or drop --data to use it"
        )
    unsplit = _unsplit_folder(dataset, path)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        if unsplit is None:
            root.symlink_to(path.resolve(), target_is_directory=True)
        else:
            _link_splits(_Unsplit(dataset, unsplit), root)
    except OSError as error:
        fix = "allow writing, or set data_paths in config/config.yaml"
        raise ConfigError(f"{root}: cannot be made ({error.strerror}); {fix}") from None
    return "split" if unsplit else "link"


def remove(root: Path) -> None:
    """Remove what `place` made; the user's images are behind links and stay."""
    root.unlink() if root.is_symlink() else shutil.rmtree(root)


def _unsplit_folder(dataset: Dataset, path: Path) -> Path | None:
    """The folder of the classes if `path` has no held-out images; None if it needs no split."""
    if dataset.layout != "image_folder" or any((path / name).is_dir() for name in Folders.held_out):
        return None
    return path / "train" if (path / "train").is_dir() else path


def _link_splits(source: Folders, root: Path) -> None:
    """Links to the images of each class in `root`/train and `root`/val; raises DataError."""
    files = source.by_class("train")
    if len(files) < 2:
        source.fail(source.root, "a folder for each of 2 or more classes")
    few = sorted(name for name, paths in files.items() if len(paths) < 2)
    if few:
        found = f"fewer in {len(few)} ({list_some(few)})"
        source.fail(source.root, "2 or more images of every class", found)
    temporary = root.with_name(f".{root.name}.{os.getpid()}.tmp")
    try:
        for name, paths in files.items():
            held_out = set(paths[HELD_OUT - 1 :: HELD_OUT] or paths[-1:])
            for path in paths:
                split = "val" if path in held_out else "train"
                relative = os.path.relpath(path, source.folder("train") / name)
                link = temporary / split / name / relative
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(os.path.abspath(path))
        temporary.rename(root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def survey(dataset: Dataset, root: Path) -> Survey:
    """Count the classes and images of a folder, and read the sizes of a sample; logs progress.

    Of `dataset` only the name, the layout and the sentence on how to get it count. Raises DataError
    for a folder that is no such data set, and for images that are too small.
    """
    source = sources.files(dataset, root)
    classes = len(source.classes())
    if classes < 2:
        source.fail(source.root, "2 or more classes", str(classes))
    source = sources.files(dataset.model_copy(update={"classes": classes}), root)
    (paths, labels), (held_out, _) = source.listing("train"), source.listing("val")
    chosen = np.linspace(0, len(paths) - 1, min(len(paths), SAMPLE)).round().astype(int)
    sample = [paths[index] for index in chosen]
    sizes = list(_read(_size, sample, f"{dataset.name} sizes"))
    if (largest := max(map(min, sizes), default=0)) < SMALLEST:
        found = f"{largest} at most" if sizes else "none that can be read"
        source.fail(source.root, f"images of at least {SMALLEST}×{SMALLEST} pixels", found)
    smallest = int(np.bincount(labels).min())
    return Survey(classes, len(paths), len(held_out), smallest, sample, sizes)


def _size(path: str) -> tuple[int, int] | None:
    try:
        return image_size(path)
    except BadImageError:
        return None


def _read(function: Callable[[str], T | None], paths: Sequence[str], label: str) -> Iterator[T]:
    """The results of a function of some images; logs progress, and how many are None."""
    found = 0
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        results = pool.map(function, paths)
        for result in track(results, total=len(paths), label=label, unit="images"):
            if result is not None:
                found += 1
                yield result
    if found < len(paths):
        lists = "`cda check --deep` of the table lists all such"
        log(f"{label}: {len(paths) - found} of {len(paths):,} images cannot be read; {lists}")


def pixel_statistics(
    dataset: Dataset, root: Path, sample: Sequence[str]
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, in [0, 1], over the pixels of some images.

    The images are brought to the data set's resolution first; damaged ones do not count. Logs
    progress. Raises DataError if all are damaged.
    """

    def moments(path: str) -> np.ndarray | None:
        try:
            pixels = fit(decode_image(read_bytes(path)), dataset).reshape(-1, 3) / 255.0
        except (BadImageError, OSError):
            return None
        return np.stack([pixels.mean(axis=0), (pixels**2).mean(axis=0)])

    found = list(_read(moments, sample, f"{dataset.name} mean and deviation"))
    if not found:
        raise DataError(f"{root}: {dataset.name} needs images, found none that can be read")
    mean, square = np.mean(found, axis=0)
    deviation = np.sqrt(np.maximum(square - mean**2, 1e-6))  # of one colour: a thousandth
    return mean.round(4).tolist(), deviation.round(4).tolist()
