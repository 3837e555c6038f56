"""Large arrays that are written piece by piece and read through a memory map.

Their disk space is allocated before the first piece, and a mark file holds the number of finished
pieces, so that an interrupted stage continues after them.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np

from cda.errors import ArtifactError
from cda.files import read_json

CHUNK = 2**24  # zeros written at a time


def allocate(
    path: Path, shape: tuple[int, ...], dtype: type[np.generic], fresh: bool, fix: str
) -> np.memmap[Any, Any]:
    """A memory map to write into, with its disk space allocated: a map of a full disk would crash.

    `fresh` makes a new file. Raises ArtifactError, which ends with `fix`, if the disk is too full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode: Any = "w+" if fresh else "r+"
        array = np.lib.format.open_memmap(path, mode=mode, dtype=dtype, shape=shape)
        _reserve(path, array.offset if fresh else None)
        return array
    except OSError as error:
        size = np.prod(shape, dtype=float) * np.dtype(dtype).itemsize / 1e9
        raise ArtifactError(
            f"{path}: cannot be written, no room for {size:.3g} GB ({error.strerror}); {fix}"
        ) from None


def _reserve(path: Path, start: int | None) -> None:
    """Allocate a file's disk space; raises OSError.

    macOS has no posix_fallocate, and some file systems and C libraries refuse it. There a new
    file's space is filled with zeros from `start` on (None: it was when the file was new).
    """
    size = path.stat().st_size
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except AttributeError:
            pass
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
        file.seek(size if start is None else start)
        while (left := size - file.tell()) > 0:
            file.write(bytes(min(left, CHUNK)))


def pieces_done(mark: Path, path: Path, key: str) -> int:
    """The number of pieces of `path` that are finished, from the file `mark`.

    0 unless they were made from the same inputs, which `key` identifies.
    """
    if not (mark.is_file() and path.is_file()):
        return 0
    record = read_json(mark, "the mark of finished pieces")
    return int(record.get("done", 0)) if record.get("key") == key else 0


def open_map(path: Path, what: str, fix: str) -> np.memmap[Any, Any]:
    """The array at `path` as a read-only memory map; raises ArtifactError if there is none.

    Whatever its header claims, no more is mapped than the file holds, and nothing is unpickled.
    """
    try:
        if not path.is_file():
            raise ValueError("no such file")
        with np.errstate(over="ignore"):  # a header may claim any shape
            return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy parses the header as Python, which can raise nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(f"{path}: damaged {what} ({reason}); {fix}") from None
