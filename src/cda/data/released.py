"""The authors' released distilled images (`new000/class000_id000.jpg`), to be written as shards.

The archive comes from somebody else: a link out of its folder is refused, so that no other picture
gets into a shard, and the size of an image is checked before it is decoded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cda.config.settings import Dataset
from cda.data.class_order import order_problem
from cda.data.pixels import BadImageError, to_rgb
from cda.errors import DataError


def require_order(data: Dataset, classes: Sequence[str]) -> None:
    """Raise DataError unless class c of a release is known to be `classes[c]`.

    Folders named 0, 1, 2, … are the classes of these numbers.
    """
    if not data.class_map and (problem := order_problem(classes)):
        raise DataError(
            f"{data.name}: a release numbers its classes, and {problem}; list the class folders in "
            f"the order of the release, one a line, in config/datasets/{data.name}.classes.txt "
            "(as text: LC_ALL=C ls; by number: ls -v), and name it as class_map in "
            f"config/datasets/{data.name}.yaml"
        )


def released_images(folder: Path, ipc: int, data: Dataset) -> NDArray[np.uint8]:
    """Image `ipc` of every class, uint8 [classes, R, R, 3].

    Class c is in `new<c>` with three digits, or with more where the authors' script wrote more
    (21K has five). Raises DataError that names the first missing or wrong file.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; unpack the authors' archive there, so that it holds "
            "new000/class000_id000.jpg"
        )
    if (extra := folder / f"new{data.classes:03d}").is_dir():
        raise DataError(
            f"{extra}: the release has more than the {data.classes} classes of {data.name}; name "
            "the release of this data set as recover.release"
        )
    if not (folder / "new000").is_dir() and (deeper := sorted(folder.glob("*/new000"))):
        raise DataError(
            f"{folder}: its images lie one folder too deep, in {deeper[0].parent}; move that "
            f"folder's new000, new001, … up into {folder}"
        )
    paths = [
        folder / f"new{label:03d}" / f"class{label:03d}_id{ipc:03d}.jpg"
        for label in range(data.classes)
    ]
    return np.stack([_image(folder, path, data) for path in paths])


def _image(folder: Path, path: Path, data: Dataset) -> NDArray[np.uint8]:
    try:
        if not Path(os.path.realpath(path, strict=True)).is_relative_to(os.path.realpath(folder)):
            raise DataError(
                f"{path}: a link out of {folder}; unpack the authors' own archive, which has none"
            )
        with Image.open(path, formats=["JPEG", "PNG"]) as image:
            if image.size != (data.resolution, data.resolution):
                raise DataError(
                    f"{path}: {image.width}×{image.height} pixels, {data.name} has "
                    f"{data.resolution}×{data.resolution}"
                )
            return np.asarray(to_rgb(image))
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(
            f"{path}: missing; a release holds every IPC index of all {data.classes} classes; "
            "or lower shards_per_job"
        ) from None
    except BadImageError as error:
        raise DataError(f"{path}: {error}; unpack the archive again") from None
    except Exception as error:  # a damaged image can raise nearly anything
        raise DataError(f"{path}: unreadable image ({error}); unpack the archive again") from None
