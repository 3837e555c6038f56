"""Atomic outputs: written under a temporary name, synced to the disk, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cda.errors import ArtifactError

JSON_END = b"\n}\n"  # of `write_json`: only the outermost brace is not indented


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: OSError) -> ArtifactError:
    """The error for a file system that refuses `path`."""
    return ArtifactError(
        f"{path}: cannot be written ({error.strerror}); make room or allow writing, then "
        "start again: it goes on"
    )


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path to write, renamed to `path` at the end and removed after an error.

    Raises ArtifactError if the disk refuses.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path)
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _clear(path: Path) -> None:
    """Remove the temporary files of killed writers of `path`."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a small JSON file atomically, indented, keys in their order."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def is_complete_json(path: Path) -> bool:
    """Whether `path` is a JSON object to its end; a truncated or empty file is none.

    The last bytes that `write_json` writes are found at no other place in its files.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - len(JSON_END)))
            if file.read() == JSON_END:
                return True
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError, RecursionError):
        return False


def read_json(path: Path, what: str, fix: str = "") -> dict[str, Any]:
    """The JSON object at `path`; raises ArtifactError, whose message calls the file `what`.

    It ends with `fix`, by default to delete the file. A file that is one of several outputs needs
    another: Snakemake makes none of them again while the one that others read exists.
    """
    again = fix or "delete it and make it again"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        first = fix or "make or pull it first"
        raise ArtifactError(f"{path}: {what} cannot be read ({error.strerror}); {first}") from None
    except (ValueError, RecursionError):
        raise ArtifactError(f"{path}: {what} is damaged (not JSON); {again}") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: {what} is damaged (no JSON object); {again}")
    return value


def publish(folder: Path, output: Path) -> None:
    """Move a finished folder to `output` atomically, replacing an older one."""
    try:
        for file in folder.rglob("*"):
            if file.is_file():
                _sync(file)
        output.parent.mkdir(parents=True, exist_ok=True)
        _clear(output)
        temporary = _temporary(output)
        shutil.move(folder, temporary)  # a copy across file systems; only the rename is atomic
        if output.exists():
            shutil.rmtree(output)
        os.rename(temporary, output)
        _sync(output.parent)
    except OSError as error:
        raise cannot_write(output, error) from None


def publish_into(folder: Path, output: Path) -> None:
    """Move a finished folder's files into the folder `output`, each atomically, tars last."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for file in sorted(files, key=lambda path: path.suffix == ".tar" and path.parent == folder):
        with atomic_write(output / file.relative_to(folder)) as temporary:
            shutil.copyfile(file, temporary)


def digest(*chunks: bytes) -> str:
    """SHA-256 of the chunks, as hex."""
    sha = hashlib.sha256()
    for chunk in chunks:
        sha.update(chunk)
    return sha.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
