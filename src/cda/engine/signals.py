"""Signals that stop a long stage cleanly: it saves its state, and the next start continues."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cda.errors import Interrupted


class Stop:
    """Records SIGTERM, SIGINT or SIGUSR1 in `signal`, which a loop reads between its steps.

    A second Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.signal = 0

    def _record(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        """Listen for signals within the context; outside the main thread it does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {
            number: signal.signal(number, self._record)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        }
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Raise Interrupted if a signal came; call it where everything is saved."""
        if self.signal:
            name = signal.Signals(self.signal).name
            raise Interrupted(
                f"stopped by {name}; what is done is saved, start it again to go on", self.signal
            )
