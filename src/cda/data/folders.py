"""Images in folders: a folder per class, and Tiny-ImageNet-200's official layout."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cda.data.base import DAMAGED, FORMATS, Source, Split, fit
from cda.progress import track
from cda.text import list_some

if TYPE_CHECKING:
    from cda.config.settings import Dataset

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_CHUNK = 64  # files that a thread reads at once
_AHEAD = 1024  # files read ahead of the array, which bounds the memory


class Folders(Source):
    """`train/<class>/**`, and a folder of held-out images in the same shape: one file per image."""

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
        """The path of each class folder of a split, by class name."""
        return {
            entry.name: entry.path for entry in self.entries(self.folder(split)) if entry.is_dir()
        }

    def by_class(self, split: Split) -> dict[str, list[str]]:
        """The image files of each class of a split, sorted."""
        return {name: sorted(self.images_under(path)) for name, path in self.by_name(split).items()}

    def images_under(self, folder: str) -> list[str]:
        """The image files below a folder, at any depth."""
        paths = []
        for entry in self.entries(folder):
            if entry.is_dir():
                paths += self.images_under(entry.path)
            elif entry.name.lower().endswith(EXTENSIONS):
                paths.append(entry.path)
        return paths

    def listing(self, split: Split) -> tuple[list[str], np.ndarray]:
        """Paths and labels [N] of a split in order.

        Raises DataError for an unknown or empty class or a wrong count.
        """
        folder, classes, files = self.folder(split), self.checked_classes(), self.by_class(split)
        unknown = sorted(name for name in files.keys() - set(classes) if files[name])
        if unknown:
            self.fail(
                folder, "only known classes", f"{len(unknown)} unknown ({list_some(unknown)})"
            )
        empty = [name for name in classes if not files.get(name)]
        if empty:
            self.fail(folder, "images of every class", f"none of {len(empty)} ({list_some(empty)})")
        paths = [path for name in classes for path in files[name]]
        self.expect_images(folder, split, len(paths))
        counts = [len(files[name]) for name in classes]
        return paths, np.repeat(np.arange(len(classes), dtype=np.int64), counts)

    def probe(self, split: Split) -> None:
        """Raise DataError unless the split is complete as far as its list of files shows."""
        self.listing(split)

    def read(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [N, R, R, 3] and labels [N] of a split."""
        paths, labels = self.listing(split)
        size = self.dataset.resolution
        images = np.empty((len(paths), size, size, 3), dtype=np.uint8)
        label = f"{self.dataset.name} {split}"
        progress = track(self.decoded(paths), total=len(paths), label=label, unit="images")
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
        """Yield each image as uint8 [R, R, 3]. Threads hide the latency of the disk.

        Threads also decode large images. Small ones are decoded by this thread alone: they spend
        so little time outside the GIL that two threads are slower than one (measured on 32 and 64
        pixels: 1.3 to 1.5 times), while two decode photographs 1.35 times as fast.
        """
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
            for start in range(0, len(paths), _AHEAD):
                ahead = paths[start : start + _AHEAD]
                parts = [ahead[i : i + _CHUNK] for i in range(0, len(ahead), _CHUNK)]
                if self.dataset.resolution > 64:
                    images = pool.map(lambda part: self.decode_all(self.contents(part)), parts)
                else:
                    images = map(self.decode_all, pool.map(self.contents, parts))
                yield from chain.from_iterable(images)

    def contents(self, paths: Sequence[str]) -> list[tuple[str, bytes]]:
        """Each path with its file's bytes."""
        return [(path, self.content(path)) for path in paths]

    def content(self, path: str) -> bytes:
        """The bytes of a file; raises DataError."""
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            self.fail(path, "a readable image", error)

    def decode_all(self, contents: list[tuple[str, bytes]]) -> list[np.ndarray]:
        """Each image as uint8 [R, R, 3]; raises DataError for a damaged one."""
        return [fit(self.opened(path, content), self.dataset) for path, content in contents]

    def opened(self, path: str, content: bytes) -> Image.Image:
        """An image in RGB at the size of its file; raises DataError if it is damaged."""
        try:
            with Image.open(BytesIO(content), formats=FORMATS) as image:
                return image.convert("RGB")
        except DAMAGED:
            self.fail(path, "a complete image", f"{len(content)} bytes that do not decode")


class TinyImageNet(Folders):
    """Tiny-ImageNet-200: `wnids.txt`, `train/<wnid>/images/`, `val/images/`.

    `val/val_annotations.txt` names the class of each held-out image. Many copies have moved their
    held-out images to `val/<wnid>/`; those work too, and give the same order.
    """

    held_out = ("val",)

    def __init__(self, dataset: Dataset, root: Path) -> None:
        nested = root / "tiny-imagenet-200"
        super().__init__(dataset, nested if nested.is_dir() else root)

    def classes(self) -> tuple[str, ...]:
        """Sorted class names."""
        wnids = self.root / "wnids.txt"
        if not wnids.is_file():
            return super().classes()
        return tuple(sorted(set(self.text(wnids).split())))

    def by_class(self, split: Split) -> dict[str, list[str]]:
        """The image files of each class of a split, sorted."""
        folder = self.folder(split) / "images"
        official = split == "val" and folder.is_dir()
        present = {entry.name for entry in self.entries(folder)} if official else set()
        if not present:
            return super().by_class(split)
        table, files = folder.parent / "val_annotations.txt", dict[str, list[str]]()
        for number, line in enumerate(self.text(table).splitlines(), start=1):
            name, wnid, *_ = [*line.split("\t"), ""]
            if not wnid:
                expected = "a file, a tab and its class in each line"
                self.fail(table, expected, f"none in line {number}")
            if name not in present:
                self.fail(folder / name, f"the image that line {number} of {table.name} names")
            files.setdefault(wnid, []).append(str(folder / name))
        return {name: sorted(paths) for name, paths in files.items()}
