"""The authors' released distilled images (`new000/class000_id000.jpg`) as shards of ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from cda.config import Dataset
from cda.errors import DataError


def released_images(folder: Path, ipc: int, data: Dataset) -> NDArray[np.uint8]:
    """Image `ipc` of every class, uint8 [classes, R, R, 3]; raises DataError that names the first file that is amiss.

    Class c lies in `new<c>` with three digits, or with more where the authors' script wrote more (21K has five).
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; unpack the authors' archive there, so that it holds new000/class000_id000.jpg"
        )
    return np.stack(
        [
            _image(folder / f"new{label:03d}" / f"class{label:03d}_id{ipc:03d}.jpg", data)
            for label in range(data.classes)
        ]
    )


def _image(path: Path, data: Dataset) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise DataError(
            f"{path}: missing; a release holds every IPC index of all {data.classes} classes; or lower shards_per_job"
        ) from None
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path}: unreadable image ({error}); unpack the archive again") from None
    if pixels.shape != (data.resolution, data.resolution, 3):
        raise DataError(
            f"{path}: {pixels.shape[1]}×{pixels.shape[0]} pixels, {data.name} has {data.resolution}×{data.resolution}"
        )
    return pixels
