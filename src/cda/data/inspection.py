"""Every image file of a data set decoded once, in parallel, to find those that training would meet.

Processes decode, since decoding small images takes the interpreter's lock. Each is this module,
started afresh without torch: it reads a JSON list of paths a line, and answers with a JSON list of
those that cannot be read. One that crashes over an image is replaced.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cda.data.pixels import BadImageError, decode_image, read_bytes
from cda.errors import DataError
from cda.progress import Progress

COMMAND = (sys.executable, "-m", "cda.data.inspection")
_CHUNK = 128  # files that a process decodes at once
_AHEAD = 256  # chunks in flight, which bounds the memory

Problems = list[tuple[str, str]]  # path, and what is wrong


def damaged_images(paths: Sequence[str], label: str) -> Iterator[tuple[str, str]]:
    """Yield each path of an image that cannot be read, and the reason. Logs progress as `label`."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    workers = [_Worker() for _ in range(len(affinity(0)) if affinity else os.cpu_count() or 1)]
    free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()

    def inspect_chunk(chunk: Sequence[str]) -> Problems:
        worker = free.get()
        try:
            return worker.inspect(chunk)
        finally:
            free.put(worker)

    progress = Progress(len(paths), label, "images")
    chunks = [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)]
    try:
        for worker in workers:
            free.put(worker)
        with ThreadPoolExecutor(len(workers)) as pool:
            for start in range(0, len(chunks), _AHEAD):
                ahead = chunks[start : start + _AHEAD]
                for chunk, problems in zip(ahead, pool.map(inspect_chunk, ahead), strict=True):
                    progress.update(len(chunk))
                    yield from problems
    finally:
        for worker in workers:
            worker.stop()
    progress.close()


class _Worker:
    """A process that inspects images."""

    def __init__(self) -> None:
        self.process = self._start()

    @staticmethod
    def _start() -> subprocess.Popen[str]:
        source = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
        return subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # warnings of decoders
            env={**os.environ, "PYTHONPATH": path},
            text=True,
        )

    def inspect(self, paths: Sequence[str]) -> Problems:
        """The images of `paths` that cannot be read; after a crash by halves, to find the one."""
        if (answer := self._answer(paths)) is not None:
            return [(path, reason) for path, reason in answer]
        self.stop()
        self.process = self._start()
        if self._answer([]) is None:
            raise DataError(f"{' '.join(COMMAND)} does not start; reinstall the environment")
        if len(paths) == 1:
            return [(paths[0], "its decoder crashes, or memory does not suffice")]
        half = len(paths) // 2
        return self.inspect(paths[:half]) + self.inspect(paths[half:])

    def _answer(self, paths: Sequence[str]) -> list[list[str]] | None:
        """The process's answer; None if it crashed."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(json.dumps(paths) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            return None
        return json.loads(line) if line.endswith("\n") else None

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


def inspect(paths: Sequence[str]) -> Problems:
    """The images of `paths` that cannot be read."""
    found: Problems = []
    for path in paths:
        try:
            decode_image(read_bytes(path))
        except (OSError, BadImageError) as error:
            found.append((path, str(error)))
    return found


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent ends it
    for request in sys.stdin:
        print(json.dumps(inspect(json.loads(request))), flush=True)
