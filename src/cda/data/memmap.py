"""Large arrays written piece by piece, and read through a memory map.

Their room is taken first, and a mark says how far an earlier start came.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from cda.errors import ArtifactError
from cda.files import read_json


def allocate(
    path: Path, shape: tuple[int, ...], dtype: type[np.generic], fresh: bool, mend: str
) -> np.memmap[Any, Any]:
    """The memory map to write into, its room taken on the disk beforehand: a map of a full disk
    would end in a crash.

    Raises ArtifactError, which ends with `mend`, if there is not so much room.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.lib.format.open_memmap(
            path, mode="w+" if fresh else "r+", dtype=dtype, shape=shape
        )
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return array
    except OSError as error:
        size = np.prod(shape, dtype=float) * np.dtype(dtype).itemsize / 1e9
        raise ArtifactError(
            f"{path}: cannot be written, no room for {size:.3g} GB ({error.strerror}); {mend}"
        ) from None


def pieces_done(mark: Path, path: Path, key: str) -> int:
    """How many pieces of `path` an earlier start wrote from the same inputs, which `key` tells."""
    if not (mark.is_file() and path.is_file()):
        return 0
    told = read_json(mark, "the mark of what is written")
    return int(told.get("done", 0)) if told.get("key") == key else 0


def open_map(path: Path, what: str, mend: str) -> np.memmap[Any, Any]:
    """The array at `path` as a read-only memory map; raises ArtifactError if it is none.

    Whatever its header claims, no more is mapped than the file holds, and nothing is ever
    unpickled.
    """
    try:
        if not path.is_file():
            raise ValueError("no such file")
        with np.errstate(over="ignore"):  # a header may claim any shape
            return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, TypeError, OverflowError, MemoryError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(f"{path}: damaged {what} ({reason}); {mend}") from None
