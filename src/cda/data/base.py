"""What every layout of a real data set has in common.

Checks, errors of one line, and how an image is made to fit.
"""

from __future__ import annotations

import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import numpy as np
from PIL import Image

from cda.errors import DataError

if TYPE_CHECKING:
    from cda.config.settings import Dataset

Split = Literal["train", "val"]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # of PIL's, which for others (EPS) runs programs
# What PIL raises on a bad file.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


class Source(ABC):
    """A data set in one layout: `probe` checks a split without reading an image, `read` returns
    images and labels.

    `labels` and `select` read all that is stored as one file; layouts of an image a file read the
    chosen images alone.
    """

    def __init__(self, dataset: Dataset, root: Path) -> None:
        self.dataset, self.root = dataset, root

    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Sorted class names."""

    @abstractmethod
    def probe(self, split: Split) -> None:
        """Raise DataError unless the split is whole, as far as listing it tells."""

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
        """The class names; raises DataError unless there are as many as declared."""
        names = self.classes()
        if len(names) != self.dataset.classes:
            self.fail(self.root, f"{self.dataset.classes} classes", f"{len(names)} ({some(names)})")
        return names

    def expected(self, split: Split) -> int | None:
        """The declared number of images, if any."""
        return self.dataset.train_images if split == "train" else self.dataset.val_images

    def expect_images(self, path: Path, split: Split, found: int) -> None:
        """Raise DataError unless `found` is the declared number of images."""
        expected = self.expected(split)
        missing = found < (1 if expected is None else expected)
        if missing or (expected is not None and found > expected):
            self.fail(
                path, f"{'some' if expected is None else expected} {split} images", str(found)
            )

    def text(self, path: Path) -> str:
        """The text of a file; raises DataError."""
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            self.fail(path, "a text file", error)

    def entries(self, folder: Path | str) -> list[os.DirEntry[str]]:
        """List a folder by name; names with a leading dot (of editors and of macOS archives) are no
        data.
        """
        try:
            with os.scandir(folder) as found:
                return sorted(
                    (e for e in found if not e.name.startswith(".")), key=lambda e: e.name
                )
        except OSError as error:
            self.fail(folder, "a readable folder", error)

    def fail(
        self, path: Path | str, expected: str, found: str | Exception | None = None
    ) -> NoReturn:
        """Raise DataError; `found` is by default what lies at `path`."""
        if isinstance(found, Exception):
            found = f"{type(found).__name__} ({found})"
        found = what_is(Path(path)) if found is None else found
        line = f"{path}: {self.dataset.name} needs {expected}, found {found}; {self.dataset.get}"
        raise DataError(" ".join(line.split("\n")).strip())


def fit(image: Image.Image, dataset: Dataset) -> np.ndarray:
    """Turn an RGB image into uint8 [R, R, 3].

    If it has another size, resize and centre-crop it as torchvision does.
    """
    size = dataset.resolution
    if image.size != (size, size):
        side = dataset.resize or size
        assert side >= size, f"{dataset.name}: resize {side} is below the resolution {size}"
        short = min(image.size)
        width, height = (side if edge == short else int(side * edge / short) for edge in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - size) / 2), round((height - size) / 2)
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image)


def what_is(path: Path) -> str:
    """What lies at a path, in a few words."""
    if path.is_dir():
        return f"a folder with {some(sorted(os.listdir(path)))}"
    return f"a file of {path.stat().st_size} bytes" if path.is_file() else "nothing"


def some(names: Sequence[str]) -> str:
    """The first names of a list, for a message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "nothing in it"
