"""Real data sets as arrays: the handwritten digits, CIFAR-100, Tiny-ImageNet-200, and any pair of image folders.

One rule holds for all layouts: classes are sorted by name and a label is the index of its class; images are ordered by
class, then by file name. So image 17 of a split is the same image whichever of a data set's layouts is at hand.

Nothing on disk is trusted: a data set that is missing, partial or damaged ends in a DataError of one line, which names
the path, what was expected and found, and how to get the data. CIFAR-100 is published as pickles; they are read by an
unpickler that can build nothing but plain values and uint8 arrays. `allow_partial` accepts fewer images, never fewer
classes. No torch here: a workflow checks its data in a second.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
from PIL import Image

from cda.errors import DataError
from cda.progress import track

if TYPE_CHECKING:
    from cda.config import Dataset

Split = Literal["train", "val"]

_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# What PIL raises on a bad file.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_DIGITS_VAL = 0.2
_CHUNK, _AHEAD = 64, 1024  # files a thread takes at once; files read ahead of the array, which bounds the memory


@dataclass(frozen=True)
class ImageSet:
    """One split: `images` uint8 [N, R, R, 3], `labels` int64 [N], and the sorted class names that labels index."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]


def load(dataset: Dataset, split: Split, root: Path) -> ImageSet:
    """Read a whole split into memory. Raises DataError when it is missing, partial or damaged."""
    source = _source(dataset, root)
    classes = source.checked_classes()
    images, labels = source.read(split)
    source.expect_images(source.root, split, len(images))
    return ImageSet(images, labels, classes)


def class_names(dataset: Dataset, root: Path) -> tuple[str, ...]:
    """Sorted class names, from folders or metadata. Raises DataError unless there are `dataset.classes` of them."""
    return _source(dataset, root).checked_classes()


def check(dataset: Dataset, root: Path) -> str | None:
    """None if both splits are at hand and whole as far as listing them tells, else the problem in one line."""
    try:
        source = _source(dataset, root)
        source.checked_classes()
        source.probe("train")
        source.probe("val")
    except DataError as problem:
        return str(problem)
    return None


def _source(dataset: Dataset, root: Path) -> _Source:
    if dataset.layout == "digits":
        return _Digits(dataset, root)
    if dataset.layout == "tiny_imagenet":
        return _TinyImageNet(dataset, root)
    if dataset.layout == "cifar100":
        for base in (root / "cifar-100-python", root):
            if (base / "meta").is_file() or (base / "train").is_file():
                return _CifarPickles(dataset, base)
    folders = _Folders(dataset, root)
    if dataset.layout == "cifar100" and not (root / "train").is_dir():
        folders.fail(root, "cifar-100-python/{train,test,meta}, unpacked, or folders train and test")
    return folders


class _Source(ABC):
    """A data set in one layout: `probe` checks a split without reading an image, `read` returns images and labels."""

    def __init__(self, dataset: Dataset, root: Path) -> None:
        self.dataset, self.root = dataset, root

    @abstractmethod
    def classes(self) -> tuple[str, ...]: ...

    @abstractmethod
    def probe(self, split: Split) -> None: ...

    @abstractmethod
    def read(self, split: Split) -> tuple[np.ndarray, np.ndarray]: ...

    def checked_classes(self) -> tuple[str, ...]:
        names = self.classes()
        if len(names) != self.dataset.classes:
            self.fail(self.root, f"{self.dataset.classes} classes", f"{len(names)} ({_some(names)})")
        return names

    def expected(self, split: Split) -> int | None:
        return self.dataset.train_images if split == "train" else self.dataset.val_images

    def expect_images(self, path: Path, split: Split, found: int) -> None:
        expected = self.expected(split)
        missing = found < (1 if expected is None or self.dataset.allow_partial else expected)
        if missing or (expected is not None and found > expected):
            self.fail(path, f"{'some' if expected is None else expected} {split} images", str(found))

    def text(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            self.fail(path, "a text file", error)

    def entries(self, folder: Path | str) -> list[os.DirEntry[str]]:
        """List a folder by name; names with a leading dot (of editors and of macOS archives) are no data."""
        try:
            with os.scandir(folder) as found:
                return sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            self.fail(folder, "a readable folder", error)

    def fail(self, path: Path | str, expected: str, found: str | Exception | None = None) -> NoReturn:
        """Raise DataError; `found` is by default what lies at `path`."""
        if isinstance(found, Exception):
            found = f"{type(found).__name__} ({found})"
        found = _what_is(Path(path)) if found is None else found
        line = f"{path}: {self.dataset.name} needs {expected}, found {found}. {self.dataset.get}"
        raise DataError(" ".join(line.split("\n")).strip())


class _Digits(_Source):
    """The 1,797 handwritten digits inside scikit-learn: 8x8, 17 grey levels, here scaled to bytes, enlarged bilinearly.

    They have no official split. Ours holds out a fifth of each class, drawn once and for all: the rows with the
    smallest values of `Philox(key=digit).random_raw`, a stream that numpy promises to keep (its `permutation` may
    change).
    """

    def __init__(self, dataset: Dataset, root: Path) -> None:
        # Found, not imported: importing sklearn costs seconds.
        package = importlib.util.find_spec("sklearn")
        folder = Path(package.origin).parent if package and package.origin else root
        super().__init__(dataset, folder / "datasets" / "data" / "digits.csv.gz")

    def classes(self) -> tuple[str, ...]:
        return tuple("0123456789")

    def probe(self, split: Split) -> None:
        if not self.root.is_file():
            self.fail(self.root, "the digits of the scikit-learn package")

    def read(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        self.probe(split)
        try:
            table = np.loadtxt(self.root, delimiter=",", dtype=np.int64, ndmin=2)  # 64 pixels and the digit
            pixels, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1]
        except (OSError, ValueError, EOFError) as error:
            self.fail(self.root, "a table of digits", error)
        rows = np.concatenate([_digit_rows(labels, digit, split) for digit in range(10)])
        grey = ((pixels[rows] * 255 + 8) // 16).astype(np.uint8)
        size = (self.dataset.resolution, self.dataset.resolution)
        large = np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)) for image in grey])
        return np.repeat(large[..., None], 3, axis=3), labels[rows]


class _Folders(_Source):
    """`train/<class>/**` and a folder of held-out images in the same shape."""

    held_out: tuple[str, ...] = ("val", "validation", "test")

    def classes(self) -> tuple[str, ...]:
        return tuple(self.by_name("train"))

    def folder(self, split: Split) -> Path:
        names = ("train",) if split == "train" else self.held_out
        for name in names:
            if (self.root / name).is_dir():
                return self.root / name
        self.fail(self.root, f"a folder {' or '.join(names)} in it")

    def by_name(self, split: Split) -> dict[str, str]:
        return {entry.name: entry.path for entry in self.entries(self.folder(split)) if entry.is_dir()}

    def by_class(self, split: Split) -> dict[str, list[str]]:
        return {name: sorted(self.images_under(path)) for name, path in self.by_name(split).items()}

    def images_under(self, folder: str) -> list[str]:
        paths = []
        for entry in self.entries(folder):
            if entry.is_dir():
                paths += self.images_under(entry.path)
            elif entry.name.lower().endswith(_EXTENSIONS):
                paths.append(entry.path)
        return paths

    def listing(self, split: Split) -> tuple[list[str], np.ndarray]:
        """Paths and labels of a split in order. Raises DataError for an unknown or empty class or a wrong count."""
        folder, classes, files = self.folder(split), self.checked_classes(), self.by_class(split)
        unknown = sorted(name for name in files.keys() - set(classes) if files[name])
        if unknown:
            self.fail(folder, "only known classes", f"{len(unknown)} unknown ({_some(unknown)})")
        empty = [name for name in classes if not files.get(name)]
        if empty and (split == "train" or not self.dataset.allow_partial):
            self.fail(folder, "images of every class", f"none of {len(empty)} ({_some(empty)})")
        paths = [path for name in classes for path in files.get(name, [])]
        self.expect_images(folder, split, len(paths))
        return paths, np.repeat(np.arange(len(classes), dtype=np.int64), [len(files.get(name, [])) for name in classes])

    def probe(self, split: Split) -> None:
        self.listing(split)

    def read(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        paths, labels = self.listing(split)
        size = self.dataset.resolution
        images = np.empty((len(paths), size, size, 3), dtype=np.uint8)
        progress = track(self.decoded(paths), total=len(paths), label=f"{self.dataset.name} {split}", unit="images")
        for i, image in enumerate(progress):
            images[i] = image
        return images, labels

    def decoded(self, paths: Sequence[str]) -> Iterator[np.ndarray]:
        """Yield each image as uint8 [R, R, 3]. Threads hide the latency of the disk, and decode what is large.

        Small images stay with one decoder: they spend so little time outside the GIL that two threads are slower than
        one (measured on 32 and 64 pixels: 1.3 to 1.5 times), while two decode photographs 1.35 times as fast.
        """
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
            for start in range(0, len(paths), _AHEAD):
                ahead = paths[start : start + _AHEAD]
                parts = [ahead[i : i + _CHUNK] for i in range(0, len(ahead), _CHUNK)]
                if self.dataset.resolution > 64:
                    yield from chain.from_iterable(pool.map(lambda part: self.decode_all(self.contents(part)), parts))
                else:
                    yield from chain.from_iterable(map(self.decode_all, pool.map(self.contents, parts)))

    def contents(self, paths: Sequence[str]) -> list[tuple[str, bytes]]:
        return [(path, self.content(path)) for path in paths]

    def content(self, path: str) -> bytes:
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            self.fail(path, "a readable image", error)

    def decode_all(self, contents: list[tuple[str, bytes]]) -> list[np.ndarray]:
        return [self.decode(path, content) for path, content in contents]

    def decode(self, path: str, content: bytes) -> np.ndarray:
        try:
            with Image.open(BytesIO(content)) as image:
                return _fit(image.convert("RGB"), self.dataset)
        except _DAMAGED:
            self.fail(path, "a whole image", f"{len(content)} bytes that do not decode")


class _TinyImageNet(_Folders):
    """The official layout: `wnids.txt`, `train/<wnid>/images/`, `val/images/` with `val/val_annotations.txt`.

    Many copies have their held-out images already moved to `val/<wnid>/`; those work too, and give the same order.
    """

    held_out = ("val",)

    def __init__(self, dataset: Dataset, root: Path) -> None:
        nested = root / "tiny-imagenet-200"
        super().__init__(dataset, nested if nested.is_dir() else root)

    def classes(self) -> tuple[str, ...]:
        wnids = self.root / "wnids.txt"
        return tuple(sorted(set(self.text(wnids).split()))) if wnids.is_file() else super().classes()

    def by_class(self, split: Split) -> dict[str, list[str]]:
        folder = self.folder(split) / "images"
        present = {entry.name for entry in self.entries(folder)} if split == "val" and folder.is_dir() else set()
        if not present:
            return super().by_class(split)
        table, files = folder.parent / "val_annotations.txt", dict[str, list[str]]()
        for number, line in enumerate(self.text(table).splitlines(), start=1):
            name, wnid, *_ = [*line.split("\t"), ""]
            if not wnid:
                self.fail(table, "a file, a tab and its class in each line", f"none in line {number}")
            if name in present:
                files.setdefault(wnid, []).append(str(folder / name))
            elif not self.dataset.allow_partial:
                self.fail(folder / name, f"the image that line {number} of {table.name} names")
        return {name: sorted(paths) for name, paths in files.items()}


class _CifarPickles(_Source):
    """The official python layout: pickled dictionaries `train`, `test` and `meta`. Its classes are sorted by name."""

    def classes(self) -> tuple[str, ...]:
        names = self.column(self.root / "meta", self.unpickle(self.root / "meta"), "fine_label_names", str)
        if names != sorted(names):
            self.fail(self.root / "meta", "sorted fine_label_names", _some(names))
        return tuple(names)

    def file(self, split: Split) -> Path:
        return self.root / ("train" if split == "train" else "test")

    def probe(self, split: Split) -> None:
        path, least = self.file(split), 3 * 32 * 32 * (self.expected(split) or 1)
        if not path.is_file():
            self.fail(path, "a pickle")
        if path.stat().st_size < least and not self.dataset.allow_partial:
            self.fail(path, f"a pickle of {least} bytes or more")

    def read(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        self.probe(split)
        path = self.file(split)
        record = self.unpickle(path)
        data = record.get("data")
        labels, names = self.column(path, record, "fine_labels", int), self.column(path, record, "filenames", str)
        shape = data.shape if isinstance(data, np.ndarray) else ()
        if not isinstance(data, np.ndarray) or shape != (len(labels), 3 * 32 * 32) or len(names) != len(labels):
            self.fail(path, f"{len(labels)} filenames and data of [{len(labels)}, 3072]", f"{len(names)} and {shape}")
        if not all(0 <= label < self.dataset.classes for label in labels):
            self.fail(path, f"labels below {self.dataset.classes}", f"{min(labels)} to {max(labels)}")
        order = sorted(range(len(labels)), key=lambda i: (labels[i], names[i]))
        images = np.ascontiguousarray(data[order].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        if images.size and self.dataset.resolution != 32:
            images = np.stack([_fit(Image.fromarray(image), self.dataset) for image in images])
        return images, np.array(labels, dtype=np.int64)[order]

    def column(self, path: Path, record: dict[str, Any], key: str, kind: type) -> list[Any]:
        values = record.get(key)
        if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
            self.fail(path, f"a list {key} of {kind.__name__}", type(values).__name__)
        return values

    def unpickle(self, path: Path) -> dict[str, Any]:
        try:
            with path.open("rb") as file:
                record = _text_of(_ArrayUnpickler(file, encoding="bytes").load())
        except Exception as error:  # a damaged pickle can raise nearly anything
            self.fail(path, "a pickle of plain values and uint8 arrays", error)
        if not isinstance(record, dict):
            self.fail(path, "a pickled dictionary", type(record).__name__)
        return record


class _ArrayUnpickler(pickle.Unpickler):
    """Builds plain values and uint8 arrays: the few names such a pickle uses have stand-ins, any other is refused."""

    def find_class(self, module: str, name: str) -> Any:
        stand_ins = {"_reconstruct": _empty_array, "ndarray": None, "dtype": _uint8, "encode": _latin1}
        modules = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "_codecs")
        if module not in modules or name not in stand_ins:
            raise pickle.UnpicklingError(f"a pickle that asks for {module}.{name}, which is refused")
        return stand_ins[name]


def _empty_array(*_: Any) -> np.ndarray:
    return np.empty(0, dtype=np.uint8)  # its shape and bytes follow, by `__setstate__`, which checks them


def _uint8(code: str | bytes, *_: Any) -> np.dtype[Any]:
    if code not in ("u1", b"u1"):
        raise pickle.UnpicklingError(f"an array of {code!r}, which is refused")
    return np.dtype(np.uint8)


def _latin1(text: str, encoding: str | bytes) -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"text in {encoding!r}, which is refused")
    return text.encode("latin1")


def _text_of(value: Any) -> Any:
    """Python 2 wrote text as bytes; here it is text again, in keys and lists."""
    if isinstance(value, dict):
        return {_text_of(key): _text_of(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_text_of(item) for item in value]
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _digit_rows(labels: np.ndarray, digit: int, split: Split) -> np.ndarray:
    rows = np.flatnonzero(labels == digit)
    shuffled = rows[np.argsort(np.random.Philox(key=digit).random_raw(len(rows)), kind="stable")]
    held_out = round(_DIGITS_VAL * len(rows))
    return np.sort(shuffled[:held_out] if split == "val" else shuffled[held_out:])


def _fit(image: Image.Image, dataset: Dataset) -> np.ndarray:
    """Turn an RGB image into uint8 [R, R, 3]; if it has another size, resize and centre-crop it as torchvision does."""
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


def _what_is(path: Path) -> str:
    if path.is_dir():
        return f"a folder with {_some(sorted(os.listdir(path)))}"
    return f"a file of {path.stat().st_size} bytes" if path.is_file() else "nothing"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "nothing in it"
