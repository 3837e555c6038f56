"""Decode: a large data set's validation images, decoded and resized once for all later stages.

Reads the real data set; writes the memory map `val.npy` and beside it `val.json`. Images are
written as they are decoded, so that memory does not grow with their number; a killed job continues
where it was.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cda.data import sources
from cda.data.decoded import described, description_of
from cda.data.folders import Folders
from cda.data.memmap import allocate, pieces_done
from cda.engine.lock import work_folder
from cda.engine.signals import Stop
from cda.errors import ConfigError
from cda.experiments.paths import data_root
from cda.files import atomic_write, write_json
from cda.progress import Progress
from cda.stages.context import Context

Map = np.memmap[Any, np.dtype[np.uint8]]
CLOCK_IMAGES = 1024  # images between two looks at the clock


def run(context: Context, out: Path) -> None:
    """Write the validation images of the run's data set to `out` (val.npy), and val.json beside it.

    Raises ConfigError if the data set is not streamed, DataError if it is missing or damaged.
    """
    data, work = context.run.data, context.work("val")
    if not data.stream:
        raise ConfigError(
            f"data set {data.name}: is read into memory; only one with stream: true is decoded"
        )
    device = context.open_device()
    source = sources.files(data, data_root(context.settings, data.name))
    classes = source.checked_classes()
    paths, labels = source.listing("val")
    with work_folder(work) as stop:
        images = _decode(context, source, paths, work, stop)
        record = context.description() | described(images, labels, classes)
        del images
        with atomic_write(out) as temporary:
            shutil.move(work / "val.npy", temporary)
        write_json(description_of(out), record | {"provenance": device.provenance()})


def _decode(context: Context, source: Folders, paths: Sequence[str], work: Path, stop: Stop) -> Map:
    """Decode the images that an earlier start left to do, to `val.npy` in the work folder."""
    size, every = context.run.data.resolution, context.settings.runtime.checkpoint_seconds
    mark, key = work / "decoded.json", _listing_digest(paths, source.root)
    done, shape = pieces_done(mark, work / "val.npy", key), (len(paths), size, size, 3)
    images = allocate(
        work / "val.npy", shape, np.uint8, fresh=not done, fix="make room, then start again"
    )
    saved = time.monotonic()
    progress = Progress(len(paths), f"decode {context.run.id}", "images", done)
    for index, image in enumerate(source.decoded(paths[done:]), start=done):
        images[index] = image
        if stop.signal or ((index + 1) % CLOCK_IMAGES == 0 and time.monotonic() - saved >= every):
            images.flush()
            write_json(mark, {"done": index + 1, "key": key})
            saved = time.monotonic()
            stop.check()
        progress.update()
    progress.close()
    images.flush()
    return images


def _listing_digest(paths: Sequence[str], root: Path) -> str:
    """SHA-256 of the images' paths below `root`: images of two listings must not share a map."""
    sha = hashlib.sha256()
    for path in paths:
        sha.update(os.fsencode(os.path.relpath(path, root)) + b"\0")
    return sha.hexdigest()
