"""Distilled images on disk: a shard is a tar of one IPC index over all classes, as in WebDataset.

`ipc-007.tar` holds `00042_007.png` (or `.jpg`, by `recover.image`) and `00042_007.cls` for class
42, and `__shard.json__` with the class names, the run and a digest of the pixels. Everything inside
is a function of the run, so equal runs give equal bytes; times and losses are in `ipc-007.json`.

Images of the matching methods are numbers beyond [0, 1], which PNG cannot hold. Their shards
(format 2) have `00042_007.npy` too, float32 [R, R, 3], where 0 is black and 1 white; those count,
and the PNGs, clipped and rounded, are for people.

Reading trusts nothing: it takes plain members under these names, each once, into memory, and never
extracts them. Images are PNG or JPEG of one size, which is checked before they are decoded.

    from cda.data.shards import DistilledDataset
    dataset = DistilledDataset("artifacts/recover/cifar100/<run>", ipc=10, transform=...)
    image, label = dataset[0]
"""

from __future__ import annotations

import io
import json
import re
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cda.errors import ArtifactError
from cda.files import atomic_write, digest

FORMAT = "cda-shard/1"  # images uint8
FLOATS = "cda-shard/2"  # images float32
META = "__shard.json__"
DIGESTED = ("run", "dataset", "ipc", "classes")
MEMBER = re.compile(r"(\d{5})_(\d{3,})\.(png|jpg|npy|cls)")
# PIL's formats by file name; PIL knows others, some of which run programs.
FORMATS = {"png": "PNG", "jpg": "JPEG"}
JPEG_QUALITY = 75  # the authors' code (fidelity 9)
LARGEST_MEMBER = 2**26  # bytes
LARGEST_SIDE = 4096  # pixels

Pixels = NDArray[np.uint8]
Values = NDArray[np.uint8] | NDArray[np.float32]


def shard_name(ipc: int) -> str:
    """File name of the shard with IPC index `ipc`.

    >>> shard_name(7)
    'ipc-007.tar'
    """
    return f"ipc-{ipc:03d}.tar"


def _encoded(pixels: Pixels, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, FORMATS[kind], quality=JPEG_QUALITY)
    return buffer.getvalue()


def _decoded(content: bytes, kind: str, size: int | None = None) -> Pixels:
    """Pixels [R, R, 3] of an image file.

    Raises PIL's exceptions, and ValueError unless R is `size` (by default at most LARGEST_SIDE).
    """
    with Image.open(io.BytesIO(content), formats=[FORMATS[kind]]) as image:
        side = size or min(image.width, LARGEST_SIDE)
        if image.size != (side, side):
            raise ValueError(
                f"an image of {image.width}×{image.height} pixels, where {side}×{side} belong"
            )
        return np.asarray(image.convert("RGB"))


def _array(values: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def _values(content: bytes, size: int) -> NDArray[np.float32]:
    """The array float32 [R, R, 3] of an `.npy` member; ValueError for anything else."""
    array = np.empty((size, size, 3), np.float32)
    header = _array(array)[: -array.nbytes]
    if not content.startswith(header) or len(content) != len(header) + array.nbytes:
        raise ValueError(f"no float32 array of {size}×{size} pixels")
    array = np.frombuffer(content, np.float32, offset=len(header)).reshape(array.shape)
    if not np.isfinite(array).all():
        raise ValueError("a number that is not finite")
    return array


def to_pixels(images: Values) -> Pixels:
    """Images as people see them: float32 ones clipped to [0, 1] and rounded, uint8."""
    if images.dtype == np.uint8:
        return images  # type: ignore[return-value]
    return np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)


def write_shard(
    path: Path,
    images: Values,
    classes: list[str],
    ipc: int,
    run: str,
    dataset: str,
    kind: str = "png",
) -> None:
    """Write images [classes, R, R, 3] in class order as the shard of IPC index `ipc`.

    They are uint8, or float32. `kind` is png, or jpg, which is lossy: the digest is then of the
    decoded JPEGs.
    """
    assert len(images) == len(classes)
    encoded = [_encoded(pixels, kind) for pixels in to_pixels(images)]
    floats = images.dtype == np.float32
    if kind == "jpg":
        images = np.stack([_decoded(content, kind) for content in encoded])
    meta = {"format": FLOATS if floats else FORMAT, "run": run, "dataset": dataset, "ipc": ipc}
    meta["classes"] = classes
    meta["pixels"] = digest(json.dumps([meta[key] for key in DIGESTED]).encode(), images.tobytes())
    members = [(META, json.dumps(meta, ensure_ascii=False).encode())]
    for label, content in enumerate(encoded):
        name = f"{label:05d}_{ipc:03d}"
        members += [(f"{name}.npy", _array(images[label]))] if floats else []
        members += [(f"{name}.{kind}", content), (f"{name}.cls", str(label).encode())]
    with (
        atomic_write(path) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, content in members:
            entry = tarfile.TarInfo(name)  # no time, no owner: equal content gives equal bytes
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


class _Plain(tarfile.TarInfo):
    """The header of a plain file; ValueError for a link, device, sparse file or long name."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Plain:
        member = super().frombuf(buf, encoding, errors)
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise ValueError(f"foreign member {member.name!r}, which is no plain file")
        if not 0 <= member.size <= LARGEST_MEMBER:
            raise ValueError(f"member {member.name!r} claims {member.size} bytes")
        return member


def read_shard(path: Path, size: int | None = None) -> tuple[Values, dict[str, Any]]:
    """Images uint8 or float32 [classes, R, R, 3] in class order, and the shard's description.

    Raises ArtifactError; also for images of other than `size` pixels, before any is decoded.
    """
    remake = "delete it, and the same call makes it again, or pull it again"
    if not path.is_file():
        raise ArtifactError(f"{path}: no such shard; recover it or pull it")
    try:
        with tarfile.open(path, "r:", tarinfo=_Plain) as tar:
            content = _members(tar)
        meta = _parse_meta(content.pop(META))
        images = _images(content, len(meta["classes"]), size, floats=meta.get("format") == FLOATS)
        wanted = digest(json.dumps([meta[key] for key in DIGESTED]).encode(), images.tobytes())
    except _DAMAGED as error:
        raise ArtifactError(f"{path}: damaged or no shard ({error}); {remake}") from None
    if meta.get("format") not in (FORMAT, FLOATS):
        raise ArtifactError(f"{path}: not a shard of format {FORMAT} or {FLOATS}; {remake}")
    if wanted != meta.get("pixels"):
        raise ArtifactError(
            f"{path}: its pixels differ from the digest it was written with; {remake}"
        )
    return images, meta


# Exceptions that tarfile, PIL and JSON raise for a bad file.
_DAMAGED = (
    *(tarfile.TarError, OSError, ValueError, KeyError, TypeError, SyntaxError, EOFError),
    *(struct.error, RecursionError, Image.DecompressionBombError),
)


def _members(tar: tarfile.TarFile) -> dict[str, bytes]:
    """Each member's content by name; raises ValueError for a foreign or repeated member."""
    content: dict[str, bytes] = {}
    for member in tar:
        if member.name != META and not MEMBER.fullmatch(member.name):
            raise ValueError(
                f"foreign member {member.name!r}; it holds only its description, images and classes"
            )
        if member.name in content:
            raise ValueError(f"{member.name} is there twice")
        file = tar.extractfile(member)
        content[member.name] = file.read() if file else b""
        if len(content[member.name]) != member.size:
            raise ValueError(f"truncated at {member.name}")
    return content


def _parse_meta(content: bytes) -> dict[str, Any]:
    """The description in a shard; raises ValueError, KeyError or TypeError if it is none."""
    meta: dict[str, Any] = json.loads(content)
    names = meta["classes"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{META}: classes must be a list of names")
    texts = isinstance(meta["run"], str) and isinstance(meta["dataset"], str)
    if not texts or type(meta["ipc"]) is not int:
        raise ValueError(f"{META}: run and dataset must be names, ipc a number")
    return meta


def _images(
    content: dict[str, bytes], classes: int, size: int | None, floats: bool = False
) -> Values:
    """The decoded images in class order; of `floats` the arrays.

    Raises KeyError or ValueError if one is missing, repeated or has another class in its `.cls`.
    """
    found: dict[int, Values] = {}
    for name, data in content.items():
        match = MEMBER.fullmatch(name)
        if match and match[3] not in ("cls", "npy"):
            label = int(match[1])
            if int(content[name[:-3] + "cls"]) != label:
                raise ValueError(f"{name} has another class in its .cls")
            if label in found:
                raise ValueError(f"class {label} has two images")
            decoded = _decoded(data, match[3], size)
            size = len(decoded)
            found[label] = _values(content[name[:-3] + "npy"], size) if floats else decoded
    if set(found) != set(range(classes)):
        raise ValueError(f"{len(found)} images for {classes} classes")
    images: Any = np.stack([found[label] for label in range(classes)])
    return images


def shard_paths(folder: Path, ipc: int) -> list[Path]:
    """The first `ipc` shards of a recover run's folder; raises ArtifactError if there are fewer."""
    present = sorted(folder.glob("part-*/ipc-*.tar"))
    found = {path.name: path for path in present}
    if ipc < 1:
        raise ArtifactError(f"{folder}: ipc must be at least 1 (found {ipc})")
    wanted = [shard_name(index) for index in range(ipc)]
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ArtifactError(
            f"{folder}: {len(missing)} of {ipc} shards are missing ({missing[0]} first); "
            "snakemake or cda run on the table makes them, or pull them"
        )
    for path in present:
        if path.name in wanted and path != found[path.name]:
            raise ArtifactError(
                f"{path}: {found[path.name].parent.name} has it too; delete the part that is "
                "not the run's"
            )
    return [found[name] for name in wanted]


def load_distilled(
    folder: Path,
    ipc: int,
    dataset: str | None = None,
    run: str | None = None,
    size: int | None = None,
) -> tuple[Values, NDArray[np.int64], list[str], str]:
    """The first `ipc` shards of a recover run's folder as one set.

    Returns images uint8 or float32 [ipc · classes, R, R, 3] (shard 0, then shard 1, …), labels,
    class names, and a digest of all. Raises ArtifactError for a damaged shard, for one that differs
    from its neighbours in run, data set, classes or kind of numbers, and for one of another
    `dataset`, `run` or `size` (R).
    """
    images: Values = np.empty(0, np.uint8)
    metas: list[dict[str, Any]] = []
    for index, path in enumerate(shard_paths(folder, ipc)):
        own, meta = read_shard(path, size)
        first = metas[0] if metas else meta
        neighbours = (first["classes"], first["run"], dataset or first["dataset"], first["format"])
        own_keys = (meta["classes"], meta["run"], meta["dataset"], meta["format"])
        if own_keys != neighbours or meta["ipc"] != index:
            raise ArtifactError(
                f"{path}: belongs to run {meta['run']} on {meta['dataset']}, not to its "
                "neighbours'; recover it again"
            )
        if run is not None and meta["run"] != run:
            raise ArtifactError(f"{path}: belongs to run {meta['run']}, not {run}")
        if index == 0:
            images, size = np.empty((ipc, *own.shape), own.dtype), size or own.shape[1]
        images[index] = own
        metas.append(meta)
    classes: list[str] = metas[0]["classes"]
    labels = np.tile(np.arange(len(classes), dtype=np.int64), ipc)
    pixels = digest(*(meta["pixels"].encode() for meta in metas))
    return images.reshape(-1, *images.shape[2:]), labels, classes, pixels


class DistilledDataset:
    """A map-style PyTorch dataset (image, class) of the first `ipc` shards of a run.

    An image is PIL's, or an array float32 [R, R, 3] of a matching method's set.
    """

    def __init__(
        self, folder: str | Path, ipc: int, transform: Callable[[Any], Any] | None = None
    ) -> None:
        self.images, self.targets, self.classes, _ = load_distilled(Path(folder), ipc)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        floats = self.images.dtype == np.float32
        image = self.images[index] if floats else Image.fromarray(self.images[index])
        return (self.transform(image) if self.transform else image), int(self.targets[index])
