"""Zip files of stored members, as packs (`cda.data.packed`) and parcels (`cda.artifacts.parcels`)
are made of.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from pydantic import Field

from cda.errors import ConfigError
from cda.files import atomic_write

ZIP_END = 22 + 76  # bytes after the last entry, those for more than 65,535 members included
# What zipfile raises on a bad file.
ZIP_DAMAGED = (BadZipFile, OSError, ValueError, EOFError, RuntimeError, OverflowError, struct.error)
SHA256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def zip_bytes(name: str) -> int:
    """What a member of that name takes in a zip besides its content."""
    return 30 + 46 + 2 * len(name.encode())


def write_zip(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write names and contents as stored members, alike on every machine and day."""
    with ZipFile(path, "w") as volume:
        for name, content in members:
            info = ZipInfo(name)
            info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            volume.writestr(info, content)


@contextmanager
def filled(folder: Path, last: str) -> Iterator[Path]:
    """A temporary path for the file `last`, which appears after the volumes; after an error none of
    them is left.

    Raises ConfigError unless there is nothing in `folder`.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigError(
            f"--out {folder}: holds something already; name a new folder, or remove it"
        )
    try:
        with atomic_write(folder / last) as aside:
            yield aside
    except BaseException:
        for left in folder.glob("*.zip"):
            left.unlink()
        raise


def opened(path: Path) -> ZipFile:
    """A zip whose members are plain and stored, each there once.

    Raises ValueError that says what is wrong with it.
    """
    try:
        volume = ZipFile(path)
    except ZIP_DAMAGED as error:
        raise ValueError(f"no whole zip ({error})") from None
    infos = volume.infolist()
    for info in infos:
        if info.orig_filename != info.filename or stat.S_IFMT(info.external_attr >> 16) not in (
            0,
            stat.S_IFREG,
        ):
            raise ValueError(f"member {info.orig_filename!r}, which is no plain file")
        if (
            info.compress_type != ZIP_STORED
            or info.file_size != info.compress_size
            or info.flag_bits & 1
        ):
            raise ValueError(f"member {info.filename!r}, which is not stored as it is")
    if len(volume.NameToInfo) < len(infos):
        raise ValueError("a member that is there twice")
    if sum(info.file_size for info in infos) > path.stat().st_size:
        raise ValueError("members that claim more bytes than it has")
    return volume
