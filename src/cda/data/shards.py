"""Distilled images on disk: a shard is one IPC index over all classes, a tar that WebDataset reads too.

`ipc-007.tar` holds `00042_007.png` (or `.jpg`, by `recover.image`) and `00042_007.cls` for class 42, and
`__shard.json__` with the class names, the run and a digest of the pixels. Only what is a function of the run is inside,
so that equal runs give equal bytes; times and losses lie in `ipc-007.json`.

    from cda.data.shards import DistilledDataset
    dataset = DistilledDataset("artifacts/recover/cifar100/<run>", ipc=10, transform=...)
    image, label = dataset[0]
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cda.errors import ArtifactError
from cda.files import digest, whole

FORMAT = "cda-shard/1"
META = "__shard.json__"
SAID = ("run", "dataset", "ipc", "classes")
MEMBER = re.compile(r"(\d{5})_(\d{3,})\.(png|jpg|cls)")
JPEG_QUALITY = 75  # the authors' code (fidelity 9)

Pixels = NDArray[np.uint8]


def shard_name(ipc: int) -> str:
    """File name of the shard with IPC index `ipc`.

    >>> shard_name(7)
    'ipc-007.tar'
    """
    return f"ipc-{ipc:03d}.tar"


def _encoded(pixels: Pixels, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG" if kind == "png" else "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _decoded(content: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def write_shard(
    path: Path, images: Pixels, classes: list[str], ipc: int, run: str, dataset: str, kind: str = "png"
) -> None:
    """Write images uint8 [classes, R, R, 3], one a class in class order, as the shard of IPC index `ipc`.

    `kind` is png, or jpg, which loses a little: what is read later is then what JPEG made of the images.
    """
    assert len(images) == len(classes)
    encoded = [_encoded(pixels, kind) for pixels in images]
    if kind == "jpg":
        images = np.stack([_decoded(content) for content in encoded])
    meta = {
        "format": FORMAT,
        "run": run,
        "dataset": dataset,
        "ipc": ipc,
        "classes": classes,
    }
    meta["pixels"] = digest(json.dumps([meta[key] for key in SAID]).encode(), images.tobytes())
    members = [(META, json.dumps(meta, ensure_ascii=False).encode())]
    for label, content in enumerate(encoded):
        members += [(f"{label:05d}_{ipc:03d}.{kind}", content), (f"{label:05d}_{ipc:03d}.cls", str(label).encode())]
    with whole(path) as aside, tarfile.open(aside, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)  # no time, no owner: equal content gives equal bytes
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def read_shard(path: Path) -> tuple[Pixels, dict[str, Any]]:
    """Images uint8 [classes, R, R, 3] in class order, and the shard's description; raises ArtifactError."""
    remake = "delete its part folder and recover it again, or pull it again"
    try:
        with tarfile.open(path, "r:") as tar:
            content = {member.name: _member(tar, member, path) for member in tar}
        meta = json.loads(content.pop(META))
        images = _images(content, len(meta["classes"]))
        wanted = digest(json.dumps([meta[key] for key in SAID]).encode(), images.tobytes())
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such shard; recover it or pull it") from None
    except ArtifactError:
        raise
    except (tarfile.TarError, OSError, ValueError, KeyError, TypeError, SyntaxError) as error:
        raise ArtifactError(f"{path}: damaged or no shard ({error}); {remake}") from None
    if meta.get("format") != FORMAT:
        raise ArtifactError(f"{path}: not a shard of format {FORMAT}; {remake}")
    if wanted != meta.get("pixels"):
        raise ArtifactError(f"{path}: its pixels differ from the digest it was written with; {remake}")
    return images, meta


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    if not member.isfile() or not (member.name == META or MEMBER.fullmatch(member.name)):
        raise ArtifactError(
            f"{path}: foreign member {member.name!r}; a shard holds only its description, images and classes"
        )
    file = tar.extractfile(member)
    content = file.read() if file else b""
    if len(content) != member.size:
        raise ArtifactError(
            f"{path}: truncated at {member.name}; delete its part folder and recover it again, or pull it again"
        )
    return content


def _images(content: dict[str, bytes], classes: int) -> Pixels:
    """The decoded images in class order; raises KeyError or ValueError if one is missing or labelled otherwise."""
    found: dict[int, Pixels] = {}
    for name, data in content.items():
        match = MEMBER.fullmatch(name)
        if match and match[3] != "cls":
            label = int(match[1])
            if int(content[name[:-3] + "cls"]) != label:
                raise ValueError(f"{name} has another class in its .cls")
            found[label] = _decoded(data)
    if set(found) != set(range(classes)):
        raise ValueError(f"{len(found)} images for {classes} classes")
    return np.stack([found[label] for label in range(classes)])


def shard_paths(folder: Path, ipc: int) -> list[Path]:
    """The first `ipc` shards of a recover run's folder; raises ArtifactError if there are fewer."""
    found = {path.name: path for path in folder.glob("part-*/ipc-*.tar")}
    if ipc < 1:
        raise ArtifactError(f"{folder}: ipc must be at least 1 (found {ipc})")
    wanted = [shard_name(index) for index in range(ipc)]
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ArtifactError(
            f"{folder}: {len(missing)} of {ipc} shards are missing ({missing[0]} first); recover them or pull them"
        )
    return [found[name] for name in wanted]


def load_distilled(
    folder: Path, ipc: int, dataset: str | None = None, run: str | None = None
) -> tuple[Pixels, NDArray[np.int64], list[str], str]:
    """Images uint8 [ipc · classes, R, R, 3] (shard 0, then shard 1, …), labels, class names, and a digest of it all."""
    paths = shard_paths(folder, ipc)
    images = np.empty(0, np.uint8)
    said: list[dict[str, Any]] = []
    for index, path in enumerate(paths):
        own, meta = read_shard(path)
        first = said[0] if said else meta
        neighbours = (first["classes"], first["run"], dataset or first["dataset"])
        if (meta["classes"], meta["run"], meta["dataset"]) != neighbours or meta["ipc"] != index:
            raise ArtifactError(
                f"{path}: belongs to run {meta['run']} on {meta['dataset']}, not to its neighbours'; recover it again"
            )
        if run is not None and meta["run"] != run:
            raise ArtifactError(f"{path}: belongs to run {meta['run']}, not {run}")
        if index == 0:
            images = np.empty((ipc, *own.shape), np.uint8)
        if own.shape != images.shape[1:]:
            raise ArtifactError(f"{path}: has images of another size than {paths[0].name}; recover the run again")
        images[index] = own
        said.append(meta)
    labels = np.tile(np.arange(len(said[0]["classes"]), dtype=np.int64), ipc)
    whole_set = images.reshape(-1, *images.shape[2:])
    return whole_set, labels, said[0]["classes"], digest(*(meta["pixels"].encode() for meta in said))


class DistilledDataset:
    """A map-style PyTorch dataset (PIL image, class) over the first `ipc` shards of a recover run's folder."""

    def __init__(self, folder: str | Path, ipc: int, transform: Callable[[Image.Image], Any] | None = None) -> None:
        self.images, self.targets, self.classes, _ = load_distilled(Path(folder), ipc)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.fromarray(self.images[index])
        return (self.transform(image) if self.transform else image), int(self.targets[index])
