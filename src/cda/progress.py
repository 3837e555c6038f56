"""Progress of a long loop: a bar on a terminal, plain lines with rate and time left in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from cda.text import stopwatch

T = TypeVar("T")
LINE_SECONDS = 10.0


def log(message: str) -> None:
    """One line to the log, above any bar."""
    tqdm.write(message, file=sys.stderr)
    sys.stderr.flush()


class Progress:
    """A counter up to `total`; `note` (a loss, an accuracy) is printed beside the count."""

    def __init__(self, total: int, label: str, unit: str = "it", done: int = 0) -> None:
        self.total, self.label, self.unit, self.done = total, label, unit, done
        self.note = ""
        self._first, self._start, self._last = done, time.monotonic(), 0.0
        self._bar = (
            tqdm(total=total, initial=done, desc=label, unit=unit, unit_scale=True)
            if sys.stderr.isatty()
            else None
        )

    def update(self, count: int = 1) -> None:
        """Count `count` more things done."""
        self.done += count
        if self._bar is not None:
            self._bar.set_postfix_str(self.note, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._last >= LINE_SECONDS or self.done >= self.total:
            self._last = time.monotonic()
            self._line()

    def _line(self) -> None:
        spent = time.monotonic() - self._start
        rate = (self.done - self._first) / max(spent, 1e-9)
        left = (self.total - self.done) / rate if rate > 0 else 0.0
        note = f", {self.note}" if self.note else ""
        print(
            f"{self.label}: {self.done}/{self.total} {self.unit}, {rate:,.1f} {self.unit}/s, "
            f"{stopwatch(spent)} spent, {stopwatch(left)} left{note}",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


def track(iterable: Iterable[T], *, total: int, label: str, unit: str = "it") -> Iterator[T]:
    """The items of `iterable`, counted."""
    progress = Progress(total, label, unit)
    for item in iterable:
        yield item
        progress.update()
    progress.close()
