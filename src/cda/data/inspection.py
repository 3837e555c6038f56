"""Every image file of a data set decoded once, in parallel, to find those that training would meet.

Processes decode, since decoding small images takes the interpreter's lock. They start afresh and
import no torch.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from cda.data.pixels import BadImageError, decode_image, read_bytes
from cda.progress import Progress

_CHUNK = 128  # files that a process decodes at once
_AHEAD = 256  # chunks in flight, which bounds the memory

Problems = list[tuple[str, str]]  # path, and what is wrong


def damaged_images(paths: Sequence[str], label: str) -> Iterator[tuple[str, str]]:
    """Yield each path of an image that cannot be read, and the reason. Logs progress as `label`."""
    progress = Progress(len(paths), label, "images")
    chunks = [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)]
    for start in range(0, len(chunks), _AHEAD):
        for count, problems in _inspect_all(chunks[start : start + _AHEAD]):
            progress.update(count)
            yield from problems
    progress.close()


def inspect(paths: Sequence[str]) -> Problems:
    """The images of `paths` that cannot be read."""
    found: Problems = []
    for path in paths:
        try:
            decode_image(read_bytes(path))
        except (OSError, BadImageError) as error:
            found.append((path, str(error)))
    return found


def _inspect_all(chunks: Sequence[Sequence[str]]) -> Iterator[tuple[int, Problems]]:
    """Yield the length and the problems of each chunk, in order.

    A decoder that crashes ends its process, and the others' with it: then the chunks in question
    are inspected one by one.
    """
    done = 0
    try:
        with _processes() as pool:
            for problems in pool.map(inspect, chunks):
                yield len(chunks[done]), problems
                done += 1
    except BrokenProcessPool:
        for chunk in chunks[done:]:
            yield len(chunk), _inspect_apart(chunk)


def _inspect_apart(paths: Sequence[str]) -> Problems:
    """`inspect` in a process of its own, again by halves if that crashes."""
    try:
        with _processes(1) as pool:
            return pool.submit(inspect, paths).result()
    except BrokenProcessPool:
        if len(paths) == 1:
            return [(paths[0], "its decoder crashes, or memory does not suffice")]
        half = len(paths) // 2
        return _inspect_apart(paths[:half]) + _inspect_apart(paths[half:])


def _processes(count: int | None = None) -> ProcessPoolExecutor:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    usable = len(affinity(0)) if affinity else os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(
        count or usable, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)
    )
