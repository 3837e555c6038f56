"""The common part of every layout of a real data set: checks, errors of one line, resizing."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import numpy as np
from PIL import Image

from cda.data.pixels import resize_and_crop
from cda.errors import DataError
from cda.text import list_some

if TYPE_CHECKING:
    from cda.config.settings import Dataset

Split = Literal["train", "val"]

# What systems and programs leave in folders, in lower case; names with a leading dot are too.
LITTER = {
    *("@eadir", "@recycle", "@tmp", "#recycle", "#snapshot", "~snapshot", "$recycle.bin"),
    *("lost+found", "system volume information", "__macosx", "__pycache__"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
}


class Source(ABC):
    """A data set in one layout: `probe` checks a split without reading an image, `read` loads it.

    By default `labels` and `select` read the complete split, since some layouts store it as one
    file. Layouts with one file per image read only the chosen images.
    """

    def __init__(self, dataset: Dataset, root: Path) -> None:
        self.dataset, self.root = dataset, root

    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their labels."""

    @abstractmethod
    def probe(self, split: Split) -> None:
        """Raise DataError unless the split is complete as far as its list of files shows."""

    @abstractmethod
    def read(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [N, R, R, 3] and labels [N] of a split."""

    def labels(self, split: Split) -> np.ndarray:
        """Labels [N] of a split, in the order of `read`."""
        return self.read(split)[1]

    def select(self, split: Split, chosen: np.ndarray) -> Iterator[np.ndarray]:
        """Yield images `chosen` [n] of a split in their order, uint8 [R, R, 3] each."""
        yield from self.read(split)[0][chosen]

    def checked_classes(self) -> tuple[str, ...]:
        """The class names; raises DataError unless their number is the declared one."""
        names = self.classes()
        if len(names) != self.dataset.classes:
            self.fail(
                self.root, f"{self.dataset.classes} classes", f"{len(names)} ({list_some(names)})"
            )
        return names

    def expected(self, split: Split) -> int | None:
        """The declared number of images, if any."""
        return self.dataset.train_images if split == "train" else self.dataset.val_images

    def expect_images(self, path: Path, split: Split, found: int) -> None:
        """Raise DataError unless `found` is the declared number of images."""
        expected = self.expected(split)
        if found == 0 if expected is None else found != expected:
            wanted = "some" if expected is None else expected
            self.fail(path, f"{wanted} {split} images", str(found))

    def text(self, path: Path) -> str:
        """The text of a file; raises DataError."""
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            self.fail(path, "a text file", error)

    def entries(self, folder: Path | str) -> list[os.DirEntry[str]]:
        """The entries of a folder by name, without litter; raises DataError."""
        try:
            with os.scandir(folder) as found:
                entries = [entry for entry in found if not is_litter(entry.name)]
            return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self.fail(folder, "a readable folder", error)

    def fail(
        self, path: Path | str, expected: str, found: str | Exception | None = None
    ) -> NoReturn:
        """Raise DataError; `found` is by default a description of what is at `path`."""
        if isinstance(found, Exception):
            found = f"{type(found).__name__} ({found})"
        found = _describe(Path(path)) if found is None else found
        line = f"{path}: {self.dataset.name} needs {expected}, found {found}; {self.dataset.get}"
        raise DataError(" ".join(line.split("\n")).strip())


def is_litter(name: str) -> bool:
    """Whether a file or folder is none of the data's, but left by a system or a program.

    >>> is_litter("@eaDir"), is_litter("._cat.png"), is_litter("cat.png")
    (True, True, False)
    """
    return name.startswith(".") or name.lower() in LITTER


def fit(image: Image.Image, dataset: Dataset) -> np.ndarray:
    """An RGB image as uint8 [R, R, 3], resized and centre-cropped as torchvision does.

    `fit: squash` resizes both sides to R instead.
    """
    size = dataset.resolution
    if dataset.fit == "squash":
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    elif dataset.fit == "crop" or image.size != (size, size):
        side = dataset.resize or size
        assert side >= size, f"{dataset.name}: resize {side} is below the resolution {size}"
        image = resize_and_crop(image, side, size)
    return np.asarray(image)


def _describe(path: Path) -> str:
    if os.path.islink(path) and not os.path.exists(path):
        return f"a link to {os.readlink(path)}, which leads nowhere"
    if os.path.isdir(path):  # Path's own raise for a name that is too long
        return f"a folder with {list_some(sorted(os.listdir(path)))}"
    return f"a file of {path.stat().st_size} bytes" if os.path.isfile(path) else "nothing"
