"""Images in folders: a folder per class, and Tiny-ImageNet-200's official layout."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cda.data.base import Source, Split, fit
from cda.data.class_order import is_legible, normal_form, sort_classes
from cda.data.pixels import BadImageError, decode_image, read_bytes
from cda.data.scan import FolderScan
from cda.progress import track
from cda.text import list_some

if TYPE_CHECKING:
    from cda.config.settings import Dataset

_CHUNK = 64  # files that a thread reads at once
_AHEAD = 1024  # files read ahead of the array, which bounds the memory
_LARGE = 2**16  # bytes of a file that is decoded at once instead of waiting in memory


class Folders(Source):
    """`train/<class>/**`, and a folder of held-out images in the same shape: one file per image.

    Images that the data set's `exclude` names are not part of it. Paths there are relative to the
    folder that holds `train`.
    """

    training: tuple[str, ...] = ("train",)
    held_out: tuple[str, ...] = ("val", "validation", "test")
    no_images: tuple[str, ...] = ()  # ends of the names of the data set's other files

    def __init__(self, dataset: Dataset, root: Path) -> None:
        super().__init__(dataset, root)
        self.scan = FolderScan(root, self.fail, self.no_images)

    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their labels: of `class_map`, else of `sort_classes`."""
        names = sort_classes(self.class_folders())
        if not self.dataset.class_map:
            return tuple(names)
        order = tuple(self.dataset.published_names())
        if wrong := sorted(set(order) ^ set(names)):
            self.fail(self.root, "the class folders that class_map names", _differing(wrong, names))
        return order

    def class_folders(self) -> Sequence[str]:
        """The class names, in any order."""
        return list(self.by_name("train"))

    def folder(self, split: Split) -> Path:
        """The folder of a split; raises DataError."""
        names = self.training if split == "train" else self.held_out
        for name in names:
            if (self.root / name).is_dir():
                return self.root / name
        self.fail(self.root, f"a folder {' or '.join(names)} in it")

    def by_name(self, split: Split) -> dict[str, str]:
        """The path of each class folder of a split, by class name."""
        folder, found = str(self.folder(split)), dict[str, str]()
        for entry in self.entries(folder):
            if self.scan.kind(entry) != "folder":
                continue
            name = normal_form(entry.name)
            self.scan.enter(folder, entry, ())
            if not is_legible(name):
                self.fail(entry.path, "class folders with names in UTF-8", ascii(name))
            if name in found:
                self.fail(
                    entry.path, "each class once", "the same name in other Unicode characters"
                )
            found[name] = entry.path
        return found

    def by_class(self, split: Split) -> dict[str, list[str]]:
        """The image files of each class of a split, sorted."""
        return {
            name: sorted(self.scan.images_under(path)) for name, path in self.by_name(split).items()
        }

    def listing(self, split: Split, count: bool = True) -> tuple[list[str], np.ndarray]:
        """Paths and labels [N] of a split in order.

        Raises DataError for an unknown or empty class or, if they `count`, a wrong number.
        """
        folder, classes = self.folder(split), self.checked_classes()
        self.scan = FolderScan(self.root, self.fail, self.no_images)
        files = self.included(split)
        self.scan.log_notes(folder)
        unknown = sorted(name for name in files.keys() - set(classes) if files[name])
        if unknown:
            self.fail(folder, "only known classes", _differing(unknown, classes))
        empty = [name for name in classes if not files.get(name)]
        if empty:
            self.fail(folder, "images of every class", f"none of {len(empty)} ({list_some(empty)})")
        paths = [path for name in classes for path in files[name]]
        if count:
            self.expect_images(folder, split, len(paths))
        counts = [len(files[name]) for name in classes]
        return paths, np.repeat(np.arange(len(classes), dtype=np.int64), counts)

    def included(self, split: Split) -> dict[str, list[str]]:
        """`by_class` without the images that `exclude` names."""
        files, excluded = self.by_class(split), self.excluded(split)
        if not excluded:
            return files
        return {
            name: [path for path in paths if path not in excluded] for name, paths in files.items()
        }

    def excluded(self, split: Split) -> set[str]:
        """The paths of a split that `exclude` names; raises DataError for a line of no split."""
        if not self.dataset.exclude:
            return set()
        folder, found = self.folder(split), set[str]()
        others = self.held_out if split == "train" else self.training
        for line in self.dataset.exclude:
            top, _, rest = line.partition("/")
            if rest and top == folder.name:
                found.add(f"{folder}/{rest}")
            elif not rest or top not in others:
                self.fail(self.root, f"lines of exclude that begin with {folder.name}/", line)
        return found

    def expected(self, split: Split) -> int | None:
        """The declared number of images, if any, less the excluded ones."""
        declared = super().expected(split)
        return declared if declared is None else declared - len(self.excluded(split))

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
                for path, read in chain.from_iterable(pool.map(self._read_part, parts)):
                    yield read if isinstance(read, np.ndarray) else self.decode(path, read)

    def _read_part(self, paths: Sequence[str]) -> list[tuple[str, bytes | np.ndarray]]:
        """Each path with its image if it is large, else with its file's bytes."""
        parts = list[tuple[str, bytes | np.ndarray]]()
        for path in paths:
            content = self.content(path)
            large = self.dataset.resolution > 64 or len(content) > _LARGE
            parts.append((path, self.decode(path, content) if large else content))
        return parts

    def content(self, path: str) -> bytes:
        """The bytes of a file; raises DataError."""
        try:
            return read_bytes(path)
        except BadImageError as error:
            self.fail(path, "a readable image", str(error))
        except OSError as error:
            self.fail(path, "a readable image", error)

    def decode(self, path: str, content: bytes) -> np.ndarray:
        """An image as uint8 [R, R, 3]; raises DataError if it is damaged."""
        return fit(self.opened(path, content), self.dataset)

    def opened(self, path: str, content: bytes) -> Image.Image:
        """An image in RGB at the size of its file; raises DataError if it is damaged."""
        try:
            return decode_image(content)
        except BadImageError as error:
            self.fail(path, "a complete image", f"{error} (`cda check --deep` lists all such)")


def _differing(names: Sequence[str], others: Sequence[str]) -> str:
    """Names that are not among others, and how the first differs from one that is."""
    alike = {other.casefold(): other for other in others}
    near = alike.get(names[0].casefold(), names[0])
    case = f"; {names[0]} and {near} differ in case" if near != names[0] else ""
    return f"{len(names)} unknown ({list_some(names)}){case}"


class TinyImageNet(Folders):
    """Tiny-ImageNet-200: `wnids.txt`, `train/<wnid>/images/`, `val/images/`.

    `val/val_annotations.txt` names the class of each held-out image. Many copies have moved their
    held-out images to `val/<wnid>/`; those work too, and give the same order.
    """

    held_out = ("val",)
    no_images = ("_boxes.txt",)

    def __init__(self, dataset: Dataset, root: Path) -> None:
        nested = root / "tiny-imagenet-200"
        super().__init__(dataset, nested if nested.is_dir() else root)

    def class_folders(self) -> Sequence[str]:
        """The class names, in any order."""
        wnids = self.root / "wnids.txt"
        if not wnids.is_file():
            return super().class_folders()
        return sorted(set(self.text(wnids).split()))

    def by_class(self, split: Split) -> dict[str, list[str]]:
        """The image files of each class of a split, sorted."""
        folder = self.folder(split) / "images"
        official = split == "val" and folder.is_dir()
        present = {entry.name for entry in self.entries(folder)} if official else set()
        if not present:
            return super().by_class(split)
        table, files = folder.parent / "val_annotations.txt", dict[str, list[str]]()
        excluded = self.excluded(split)
        for number, line in enumerate(self.text(table).splitlines(), start=1):
            name, wnid, *_ = [*line.split("\t"), ""]
            if not wnid:
                expected = "a file, a tab and its class in each line"
                self.fail(table, expected, f"none in line {number}")
            if name not in present and str(folder / name) not in excluded:
                self.fail(folder / name, f"the image that line {number} of {table.name} names")
            files.setdefault(wnid, []).append(str(folder / name))
        return {name: sorted(paths) for name, paths in files.items()}
