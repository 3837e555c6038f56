"""Images in folders: a folder a class, and Tiny-ImageNet-200's official layout."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cda.data.base import DAMAGED, FORMATS, Source, Split, fit, some
from cda.progress import track

if TYPE_CHECKING:
    from cda.config.settings import Dataset

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_CHUNK, _AHEAD = (
    64,
    1024,
)  # files a thread takes at once; files read ahead of the array, which bounds the memory


class ImageFiles(Source):
    """Images of a file each: what folders of them and packs of them (`packed.py`) have in common."""

    @abstractmethod
    def folder(self, split: Split) -> Path:
        """Where a split lies; raises DataError."""

    @abstractmethod
    def by_class(self, split: Split) -> dict[str, list[str]]:
        """The image files of each class of a split, sorted."""

    @abstractmethod
    def content(self, path: str) -> bytes:
        """The bytes of a file; raises DataError."""

    def listing(self, split: Split) -> tuple[list[str], np.ndarray]:
        """Paths and labels of a split in order.

        Raises DataError for an unknown or empty class or a wrong count.
        """
        folder, classes, files = self.folder(split), self.checked_classes(), self.by_class(split)
        unknown = sorted(name for name in files.keys() - set(classes) if files[name])
        if unknown:
            self.fail(folder, "only known classes", f"{len(unknown)} unknown ({some(unknown)})")
        empty = [name for name in classes if not files.get(name)]
        if empty:
            self.fail(folder, "images of every class", f"none of {len(empty)} ({some(empty)})")
        paths = [path for name in classes for path in files.get(name, [])]
        self.expect_images(folder, split, len(paths))
        return paths, np.repeat(
            np.arange(len(classes), dtype=np.int64), [len(files.get(name, [])) for name in classes]
        )

    def probe(self, split: Split) -> None:
        """Raise DataError unless the split is whole, as far as listing it tells."""
        self.listing(split)

    def read(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [N, R, R, 3] and labels [N] of a split."""
        paths, labels = self.listing(split)
        size = self.dataset.resolution
        images = np.empty((len(paths), size, size, 3), dtype=np.uint8)
        progress = track(
            self.decoded(paths),
            total=len(paths),
            label=f"{self.dataset.name} {split}",
            unit="images",
        )
        for i, image in enumerate(progress):
            images[i] = image
        return images, labels

    def labels(self, split: Split) -> np.ndarray:
        """Labels [N] of a split, in the order of `read`."""
        return self.listing(split)[1]

    def select(self, split: Split, chosen: np.ndarray) -> Iterator[np.ndarray]:
        """Yield images `chosen` [n] of a split in their order, uint8 [R, R, 3] each."""
        paths = self.listing(split)[0]
        yield from self.decoded([paths[index] for index in chosen])

    def decoded(self, paths: Sequence[str]) -> Iterator[np.ndarray]:
        """Yield each image as uint8 [R, R, 3]. Threads hide the latency of the disk, and decode
        what is large.

        Small images stay with one decoder: they spend so little time outside the GIL that two
        threads are slower than one (measured on 32 and 64 pixels: 1.3 to 1.5 times), while two
        decode photographs 1.35 times as fast.
        """
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
            for start in range(0, len(paths), _AHEAD):
                ahead = paths[start : start + _AHEAD]
                parts = [ahead[i : i + _CHUNK] for i in range(0, len(ahead), _CHUNK)]
                if self.dataset.resolution > 64:
                    yield from chain.from_iterable(
                        pool.map(lambda part: self.decode_all(self.contents(part)), parts)
                    )
                else:
                    yield from chain.from_iterable(
                        map(self.decode_all, pool.map(self.contents, parts))
                    )

    def contents(self, paths: Sequence[str]) -> list[tuple[str, bytes]]:
        """Each file with its bytes."""
        return [(path, self.content(path)) for path in paths]

    def decode_all(self, contents: list[tuple[str, bytes]]) -> list[np.ndarray]:
        """Several images, decoded."""
        return [self.decode(path, content) for path, content in contents]

    def decode(self, path: str, content: bytes) -> np.ndarray:
        """One image as uint8 [R, R, 3]; raises DataError if it is damaged."""
        return fit(self.opened(path, content), self.dataset)

    def opened(self, path: str, content: bytes) -> Image.Image:
        """One image in RGB as large as it is; raises DataError if it is damaged."""
        try:
            with Image.open(BytesIO(content), formats=FORMATS) as image:
                return image.convert("RGB")
        except DAMAGED:
            self.fail(path, "a whole image", f"{len(content)} bytes that do not decode")


class Folders(ImageFiles):
    """`train/<class>/**` and a folder of held-out images in the same shape."""

    training: tuple[str, ...] = ("train",)
    held_out: tuple[str, ...] = ("val", "validation", "test")

    def classes(self) -> tuple[str, ...]:
        """Sorted class names."""
        return tuple(self.by_name("train"))

    def folder(self, split: Split) -> Path:
        """The folder of a split; raises DataError."""
        names = self.training if split == "train" else self.held_out
        for name in names:
            if (self.root / name).is_dir():
                return self.root / name
        self.fail(self.root, f"a folder {' or '.join(names)} in it")

    def by_name(self, split: Split) -> dict[str, str]:
        """The class folders of a split."""
        return {
            entry.name: entry.path for entry in self.entries(self.folder(split)) if entry.is_dir()
        }

    def by_class(self, split: Split) -> dict[str, list[str]]:
        """The image files of each class of a split, sorted."""
        return {name: sorted(self.images_under(path)) for name, path in self.by_name(split).items()}

    def images_under(self, folder: str) -> list[str]:
        """The image files below a folder."""
        paths = []
        for entry in self.entries(folder):
            if entry.is_dir():
                paths += self.images_under(entry.path)
            elif entry.name.lower().endswith(EXTENSIONS):
                paths.append(entry.path)
        return paths

    def content(self, path: str) -> bytes:
        """The bytes of a file; raises DataError."""
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            self.fail(path, "a readable image", error)


class TinyImageNet(Folders):
    """The official layout: `wnids.txt`, `train/<wnid>/images/`, `val/images/` with
    `val/val_annotations.txt`.

    Many copies have their held-out images already moved to `val/<wnid>/`; those work too, and give
    the same order.
    """

    held_out = ("val",)

    def __init__(self, dataset: Dataset, root: Path) -> None:
        nested = root / "tiny-imagenet-200"
        super().__init__(dataset, nested if nested.is_dir() else root)

    def classes(self) -> tuple[str, ...]:
        """Sorted class names."""
        wnids = self.root / "wnids.txt"
        return (
            tuple(sorted(set(self.text(wnids).split()))) if wnids.is_file() else super().classes()
        )

    def by_class(self, split: Split) -> dict[str, list[str]]:
        """The image files of each class of a split, sorted."""
        folder = self.folder(split) / "images"
        present = (
            {entry.name for entry in self.entries(folder)}
            if split == "val" and folder.is_dir()
            else set()
        )
        if not present:
            return super().by_class(split)
        table, files = folder.parent / "val_annotations.txt", dict[str, list[str]]()
        for number, line in enumerate(self.text(table).splitlines(), start=1):
            name, wnid, *_ = [*line.split("\t"), ""]
            if not wnid:
                self.fail(
                    table, "a file, a tab and its class in each line", f"none in line {number}"
                )
            if name in present:
                files.setdefault(wnid, []).append(str(folder / name))
            else:
                self.fail(folder / name, f"the image that line {number} of {table.name} names")
        return {name: sorted(paths) for name, paths in files.items()}
