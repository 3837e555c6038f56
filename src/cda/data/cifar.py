"""CIFAR-100 as its authors publish it: pickles, read without running any code.

The unpickler can build nothing but plain values and uint8 arrays.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cda.data.base import Source, Split, fit
from cda.text import list_some

_PIXELS = 3 * 32 * 32


class CifarPickles(Source):
    """The official python layout: pickled dictionaries `train`, `test` and `meta`."""

    def classes(self) -> tuple[str, ...]:
        """Sorted class names."""
        path = self.root / "meta"
        names = self.column(path, self.unpickle(path), "fine_label_names", str)
        if names != sorted(names):
            self.fail(path, "sorted fine_label_names", list_some(names))
        return tuple(names)

    def file(self, split: Split) -> Path:
        """The pickle of a split."""
        return self.root / ("train" if split == "train" else "test")

    def probe(self, split: Split) -> None:
        """Raise DataError unless the pickle of a split exists and is large enough."""
        path, least = self.file(split), _PIXELS * (self.expected(split) or 1)
        if not path.is_file():
            self.fail(path, "a pickle")
        if path.stat().st_size < least:
            self.fail(path, f"a pickle of {least} bytes or more")

    def read(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [N, R, R, 3] and labels [N] of a split."""
        self.probe(split)
        path = self.file(split)
        record = self.unpickle(path)
        data = record.get("data")
        labels = self.column(path, record, "fine_labels", int)
        names = self.column(path, record, "filenames", str)
        shape = data.shape if isinstance(data, np.ndarray) else ()
        wanted = (len(labels), _PIXELS)
        if not isinstance(data, np.ndarray) or shape != wanted or len(names) != len(labels):
            expected = f"{len(labels)} filenames and data of [{len(labels)}, {_PIXELS}]"
            self.fail(path, expected, f"{len(names)} and {shape}")
        classes = self.dataset.classes
        if not all(0 <= label < classes for label in labels):
            self.fail(path, f"labels below {classes}", f"{min(labels)} to {max(labels)}")
        order = sorted(range(len(labels)), key=lambda i: (labels[i], names[i]))
        images = np.ascontiguousarray(data[order].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        if images.size and self.dataset.resolution != 32:
            images = np.stack([fit(Image.fromarray(image), self.dataset) for image in images])
        return images, np.array(labels, dtype=np.int64)[order]

    def column(self, path: Path, record: dict[str, Any], key: str, kind: type) -> list[Any]:
        """The list under `key`; raises DataError unless it holds only `kind`."""
        values = record.get(key)
        if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
            self.fail(path, f"a list {key} of {kind.__name__}", type(values).__name__)
        return values

    def unpickle(self, path: Path) -> dict[str, Any]:
        """The dictionary in a pickle; raises DataError."""
        try:
            with path.open("rb") as file:
                record = _decode_text(_ArrayUnpickler(file, encoding="bytes").load())
        except Exception as error:  # a damaged pickle can raise nearly anything
            self.fail(path, "a pickle of plain values and uint8 arrays", error)
        if not isinstance(record, dict):
            self.fail(path, "a pickled dictionary", type(record).__name__)
        return record


class _ArrayUnpickler(pickle._Unpickler):
    """Builds plain values and uint8 arrays.

    Such a pickle uses a few names, which have stand-ins here; any other name is refused. This is
    pickle's own Python version: the one in C fills gigabytes at the word of one damaged byte.
    """

    def find_class(self, module: str, name: str) -> Any:
        stand_ins = {
            "_reconstruct": _empty_array,
            "ndarray": None,
            "dtype": _uint8,
            "encode": _latin1,
        }
        modules = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "_codecs")
        if module not in modules or name not in stand_ins:
            raise pickle.UnpicklingError(f"a pickle that uses {module}.{name}, which is refused")
        return stand_ins[name]


def _empty_array(*_: Any) -> np.ndarray:
    # The array's shape and bytes follow through `__setstate__`, which checks them.
    return np.empty(0, dtype=np.uint8)


def _uint8(code: str | bytes, *_: Any) -> np.dtype[Any]:
    if code not in ("u1", b"u1"):
        raise pickle.UnpicklingError(f"an array of {code!r}, which is refused")
    return np.dtype(np.uint8)


def _latin1(text: str, encoding: str | bytes) -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"text in {encoding!r}, which is refused")
    return text.encode("latin1")


def _decode_text(value: Any) -> Any:
    """`value` with its bytes as text, in keys and lists too: Python 2 wrote text as bytes."""
    if isinstance(value, dict):
        return {_decode_text(key): _decode_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decode_text(item) for item in value]
    return value.decode("utf-8") if isinstance(value, bytes) else value
