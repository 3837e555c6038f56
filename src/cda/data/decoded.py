"""Validation images of a streamed data set, decoded once into a memory-mapped array.

`val.npy` is uint8 [N, R, R, 3]; `val.json` describes it. Images are ordered by class
(`sources.py`), so the description holds the number of images of each class in place of all labels.
Hundreds of gigabytes cannot be read for a check, so the digest covers evenly spaced images.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cda.data.memmap import open_map
from cda.data.sources import ImageSet
from cda.errors import ArtifactError
from cda.files import read_json

FORMAT = "cda-decoded/1"
SAMPLED = 256  # images that the digest covers


def description_of(path: Path) -> Path:
    """The path of the description of the images at `path`."""
    return path.with_name("val.json")


def digest_of(images: NDArray[np.uint8]) -> str:
    """SHA-256, as hex, of the shape and of `SAMPLED` evenly spaced images (first and last too)."""
    sha = hashlib.sha256(repr(tuple(images.shape)).encode())
    for index in np.unique(np.linspace(0, len(images) - 1, SAMPLED).astype(np.int64)):
        sha.update(np.ascontiguousarray(images[index]).tobytes())
    return sha.hexdigest()


def described(
    images: NDArray[np.uint8], labels: NDArray[np.int64], classes: tuple[str, ...]
) -> dict[str, Any]:
    """A description's part on the images themselves; `labels` [N] are sorted."""
    counts = np.bincount(labels, minlength=len(classes)).tolist()
    own = {"format": FORMAT, "shape": list(images.shape), "sampled_sha256": digest_of(images)}
    return own | {"classes": list(classes), "images_per_class": counts}


def read_decoded(path: Path, run: str, resolution: int) -> ImageSet:
    """The images of decode run `run` as a memory map, with labels and classes.

    Raises ArtifactError if they are missing, another run's, or differ from their description.
    """
    where = description_of(path)
    fix = f"delete {path} and decode again"
    record = read_json(where, "the description of the decoded validation images", fix)
    if record.get("run") != run or record.get("format") != FORMAT:
        raise ArtifactError(f"{where}: describes run {record.get('run')}, not {run}; {fix}")
    classes, counts = _classes(record, where)
    shape = (sum(counts), resolution, resolution, 3)
    images = open_map(path, "or missing images", fix)
    if images.shape != shape or images.dtype != np.uint8:
        raise ArtifactError(
            f"{path}: holds {images.dtype} {images.shape}, {where.name} has {shape}; {fix}"
        )
    if digest_of(images) != record.get("sampled_sha256"):
        raise ArtifactError(f"{path}: differs from the digest in {where.name}; {fix}")
    return ImageSet(images, np.repeat(np.arange(len(classes), dtype=np.int64), counts), classes)


def _classes(record: dict[str, Any], where: Path) -> tuple[tuple[str, ...], list[int]]:
    """The class names of a description, and each one's number of images.

    Raises ArtifactError if they do not fit.
    """
    names: Any = record.get("classes")
    counts: Any = record.get("images_per_class")
    named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    counted = isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts)
    if not (named and counted and len(names) == len(counts) and any(counts)):
        raise ArtifactError(
            f"{where}: classes and images_per_class do not fit; delete the images beside it and "
            "decode again"
        )
    return tuple(names), counts
