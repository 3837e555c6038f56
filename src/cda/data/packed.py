"""A data set as a few zip files that are read as they are: volumes `pack-000.zip`, … and
`pack.json`, which lists them.

Members are `train/<class>/<file>` and `val/<class>/<file>` in the order of reading, stored and not
deflated, under one fixed date: equal images give equal volumes. An image file's bytes are kept;
images that are stored otherwise become PNG, as large as their authors store them.

Reading trusts nothing. A volume has the size that `pack.json` says and plain members under these
names alone, each once, no larger together than the volume; its SHA-256 is checked before the first
of its images is decoded.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterable, Iterator
from functools import cached_property
from io import BytesIO
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from zipfile import ZipFile

import numpy as np
from PIL import Image
from pydantic import Field

from cda.config.types import Natural, Strict, parse
from cda.data.base import Source, Split
from cda.data.folders import EXTENSIONS, ImageFiles
from cda.data.zips import SHA256, ZIP_DAMAGED, ZIP_END, filled, opened, write_zip, zip_bytes
from cda.errors import ConfigError, DataError
from cda.files import atomic_write, file_digest
from cda.progress import track

if TYPE_CHECKING:
    from cda.config.settings import Dataset

FORMAT = "cda-pack/1"
DESCRIPTION = "pack.json"
SPLITS: tuple[Split, ...] = ("train", "val")
_PART = re.compile(r"[^./\\][^/\\]*")  # of a member's name


class Volume(Strict):
    """A zip file of a pack."""

    name: str = Field(pattern=r"^pack-[0-9]{3,}\.zip$")
    bytes: Natural
    sha256: SHA256


class Images(Strict):
    """How many each split has."""

    train: Natural
    val: Natural


class Pack(Strict):
    """What `pack.json` says."""

    format: Literal["cda-pack/1"]
    dataset: str
    images: Images
    volumes: tuple[Volume, ...]


class Packed(ImageFiles):
    """The images of a pack; a path is the volume's and the member's,
    `…/pack-000.zip/train/<class>/<file>`.
    """

    def __init__(self, dataset: Dataset, root: Path, description: Path | None = None) -> None:
        super().__init__(dataset, root)
        self.description = description or root / DESCRIPTION
        self._volumes: dict[str, ZipFile] = {}
        self._digests: dict[str, str] = {}  # expected, of volumes that were not hashed yet
        self._lock = threading.Lock()

    def classes(self) -> tuple[str, ...]:
        """Sorted class names."""
        return tuple(sorted(self._listed["train"]))

    def folder(self, split: Split) -> Path:
        """Where a split lies."""
        return self.description

    def by_class(self, split: Split) -> dict[str, list[str]]:
        """The image files of each class of a split, sorted."""
        return self._listed[split]

    def content(self, path: str) -> bytes:
        """The bytes of an image; raises DataError."""
        volume, member = path.removeprefix(f"{self.root}/").split("/", 1)
        with self._lock:
            self._check(volume)
            try:
                return self._volumes[volume].read(member)
            except ZIP_DAMAGED as error:
                self.fail(path, "a whole member", error)

    @cached_property
    def _listed(self) -> dict[Split, dict[str, list[str]]]:
        """Paths by split and class, in order."""
        told = self._told()
        listed: dict[Split, dict[str, list[str]]] = {split: {} for split in SPLITS}
        for volume in told.volumes:
            for name in self._open(volume):
                split, label, file = self._parts(volume, name)
                listed[split].setdefault(label, []).append(
                    f"{self.root}/{volume.name}/{split}/{label}/{file}"
                )
        for split, classes in listed.items():
            for label, paths in classes.items():
                paths.sort(key=os.path.basename)
                if any(
                    os.path.basename(one) == os.path.basename(next_)
                    for one, next_ in pairwise(paths)
                ):
                    self.fail(self.root, "an image once", f"one of {split}/{label} in two volumes")
            found, expected = sum(map(len, classes.values())), getattr(told.images, split)
            if found != expected:
                self.fail(
                    self.description,
                    f"volumes of the {expected} {split} images that it tells of",
                    str(found),
                )
        return listed

    def _told(self) -> Pack:
        try:
            values = json.loads(self.text(self.description))
            told = parse(Pack, values if isinstance(values, dict) else {}, "there")
        except (ValueError, RecursionError) as error:
            self.fail(self.description, "a description of volumes", str(error)[:200])
        if told.dataset != self.dataset.name:
            self.fail(self.description, "a pack of its own", f"one of {told.dataset[:100]}")
        return told

    def _open(self, volume: Volume) -> list[str]:
        """The members of a volume; it is open from now on."""
        path = self.root / volume.name
        if volume.name in self._volumes:
            self.fail(self.description, "a volume once", f"{volume.name} again")
        if not path.is_file() or path.stat().st_size != volume.bytes:
            self.fail(path, f"the pack's volume of {volume.bytes} bytes")
        try:
            self._volumes[volume.name] = opened(path)
        except ValueError as error:
            self.fail(path, "a volume of a pack", str(error)[:200])
        self._digests[volume.name] = volume.sha256
        return self._volumes[volume.name].namelist()

    def _parts(self, volume: Volume, name: str) -> tuple[Split, str, str]:
        """Split, class and file of a member; raises DataError for one that no pack has."""
        split, *parts = name.split("/")
        if (
            split not in SPLITS
            or len(parts) != 2
            or not all(map(_plain, parts))
            or not _image(parts[1])
        ):
            self.fail(
                self.root / volume.name, "members train/<class>/<image> and val/…", repr(name[:200])
            )
        return split, parts[0], parts[1]

    def _check(self, volume: str) -> None:
        """Raise DataError unless a volume's bytes are those that were packed.

        They are hashed once.
        """
        expected = self._digests.get(volume)
        if expected is None:
            return
        path = self.root / volume
        try:
            found = file_digest(path)
        except OSError as error:
            self.fail(path, "a readable volume", error)
        if found != expected:
            self.fail(
                path, f"the volume that was packed (SHA-256 {expected})", f"{found}: copy it again"
            )
        del self._digests[volume]


def _plain(part: str) -> bool:
    return bool(_PART.fullmatch(part)) and part.isprintable()


def _image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def write_pack(source: Source, folder: Path, limit: int) -> str:
    """Pack both splits of `source` into volumes of at most `limit` bytes in an empty `folder`, and
    read them back.

    Returns a line that says what was made. `pack.json` appears last, once everything was read back.
    Raises DataError for a source that is missing or damaged, ConfigError for a folder that holds
    something or a limit below an image.
    """
    name, counts = source.dataset.name, dict.fromkeys(SPLITS, 0)
    with filled(folder, DESCRIPTION) as aside:
        for index, members in groupby(
            _assigned(_images(source, "pack", counts), limit), key=itemgetter(0)
        ):
            with atomic_write(folder / f"pack-{index:03d}.zip") as beside:
                write_zip(beside, (member[1:] for member in members))
        paths = sorted(folder.glob("pack-*.zip"), key=lambda path: (len(path.name), path.name))
        volumes = [
            {"name": p.name, "bytes": p.stat().st_size, "sha256": file_digest(p)} for p in paths
        ]
        told = {"format": FORMAT, "dataset": name, "images": counts, "volumes": volumes}
        aside.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        _verify(source, Packed(source.dataset, folder, aside))
    size = sum(volume.stat().st_size for volume in paths) / 1e6
    return (
        f"{folder}: {sum(counts.values())} images of {name} packed and verified; volumes: "
        f"{len(paths)}, {size:.1f} MB"
    )


def _images(
    source: Source, doing: str, counts: dict[Split, int] | None = None
) -> Iterator[tuple[str, bytes]]:
    """Member name and bytes of every image in order; `counts` gets how many each split has.

    Raises DataError.
    """
    classes = source.checked_classes()
    for split in SPLITS:
        named, labels, contents = _split(source, split)
        if counts is not None:
            counts[split] = len(labels)
        names = [
            name
            for label, chosen in enumerate(classes)
            for name in _members(
                source, f"{split}/{chosen}", [named[i] for i in np.flatnonzero(labels == label)]
            )
        ]
        pairs = zip(names, contents, strict=True)
        yield from track(
            pairs, total=len(names), label=f"{doing} {source.dataset.name} {split}", unit="images"
        )


def _split(source: Source, split: Split) -> tuple[list[str], np.ndarray, Iterable[bytes]]:
    """File names, labels and bytes of a split's images in order."""
    if isinstance(source, ImageFiles):
        paths, labels = source.listing(split)
        return [os.path.basename(path) for path in paths], labels, map(source.content, paths)
    images, labels = source.read(split)
    source.expect_images(source.root, split, len(images))
    return [f"{index:06d}.png" for index in range(len(images))], labels, map(_png, images)


def _members(source: Source, place: str, names: list[str]) -> list[str]:
    """Names of a class's images that sort as they do, which those of files in several folders need
    not.
    """
    if not all(one < following for one, following in pairwise(names)):
        names = [f"{index:06d}-{name}" for index, name in enumerate(names)]
    for part in (place.split("/", 1)[1], *names):
        if not _plain(part):
            source.fail(
                source.root,
                "printable names of classes and files, no dot first and no \\ within",
                repr(part),
            )
    return [f"{place}/{name}" for name in names]


def _png(image: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _assigned(images: Iterable[tuple[str, bytes]], limit: int) -> Iterator[tuple[int, str, bytes]]:
    """Volume, name and bytes of each image; no volume gets more than `limit` bytes.

    Raises ConfigError.
    """
    index, used = 0, ZIP_END
    for name, content in images:
        size = zip_bytes(name) + len(content)
        if ZIP_END + size > limit:
            raise ConfigError(
                f"--megabytes: {name} alone takes {ZIP_END + size} bytes of {limit}; raise it"
            )
        if used + size > limit:
            index, used = index + 1, ZIP_END
        used += size
        yield index, name, content


def _verify(source: Source, packed: Packed) -> None:
    """Raise DataError unless the pack gives the images of the source under their names, byte for
    byte.
    """
    paths = [path for split in SPLITS for path in packed.listing(split)[0]]
    for (name, content), path in zip(_images(source, "verify"), paths, strict=True):
        if not path.endswith(f"/{name}") or packed.content(path) != content:
            raise DataError(
                f"{path}: differs from the source once it is written; pack again, on another disk"
            )
