"""Snakemake's progress in one line: `snakemake --logger cda …`, as `make demo` calls it.

On a terminal the line is rewritten each second; elsewhere there is one plain line a finished job.
A job that takes more than a minute gets a line that names its log, where its progress is.
Warnings and errors are printed in full, with the failed job's log. Everything else that Snakemake
logs is in its own log file, whose path the last line names.

Snakemake finds a logger plugin by its package's name, so this one lies beside `cda` and not in it.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from logging import WARNING, LogRecord
from shutil import get_terminal_size
from threading import Event, Thread

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

CLEAR_LINE = "\r\033[K"
LONG = 60  # seconds until a job's log is named
MESSAGES = ("Nothing to be done", "Complete log")  # that are not of warnings and printed still


class LogHandler(LogHandlerBase):
    """Counts jobs by what Snakemake logs of them."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = False  # Snakemake adds its own: --quiet, --dry-run
    has_formatter = False  # likewise: --show-failed-logs
    needs_rulegraph = False

    def __post_init__(self) -> None:
        self.start = time.monotonic()
        self.done = self.total = 0
        self.running: dict[int, str] = {}  # the rule's name by the job's number
        self.logs: dict[int, tuple[float, str]] = {}  # when to name a running job's log, and which
        self.terminal = sys.stderr.isatty()
        self.closed = Event()
        Thread(target=self._tick, daemon=True).start()

    def emit(self, record: LogRecord) -> None:
        """Count, and print what there is to print."""
        fields = vars(record)
        event = fields.get("event")
        if event == LogEvent.RUN_INFO:
            self.total = fields["stats"]["total"]
        elif event == LogEvent.JOB_INFO:
            self.running[fields["jobid"]] = fields["rule_name"]
            if logs := fields.get("log"):
                self.logs[fields["jobid"]] = time.monotonic() + LONG, str(logs[0])
        elif event in (LogEvent.JOB_ERROR, LogEvent.JOB_FINISHED):
            ended = fields["jobid" if event == LogEvent.JOB_ERROR else "job_id"]
            self.running.pop(ended, None)
            self.logs.pop(ended, None)
        elif event == LogEvent.PROGRESS:
            self.done, self.total = fields["done"], fields["total"]
        if record.levelno >= WARNING or self.common_settings.dryrun:
            self._print(self.format(record))
        elif event is None and record.getMessage().startswith(MESSAGES):
            self._print(record.getMessage())
        elif event == LogEvent.PROGRESS and (not self.terminal or self.done == self.total):
            self._print(self._progress())
        self._draw()

    def close(self) -> None:
        """Leave no half line on the terminal."""
        self.closed.set()
        self._print("", end="")
        super().close()

    def _progress(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self.start), 60)
        counts = Counter(self.running.values())
        names = [name if count == 1 else f"{count} × {name}" for name, count in counts.items()]
        running = f": {', '.join(names)}" if names else ""
        return f"{self.done} of {self.total} jobs done, {minutes}:{seconds:02} elapsed{running}"

    def _print(self, text: str, end: str = "\n") -> None:
        print(CLEAR_LINE * self.terminal + text, end=end, file=sys.stderr, flush=True)

    def _draw(self) -> None:
        """Write the line anew, cut to the terminal's width."""
        if self.terminal and self.done < self.total and not self.closed.is_set():
            self._print(self._progress()[: get_terminal_size().columns - 1], end="")

    def _tick(self) -> None:
        while not self.closed.wait(1):
            with self.lock:  # type: ignore[union-attr]  # emit is called under it
                self._name_logs()
                self._draw()

    def _name_logs(self) -> None:
        for job, (due, log) in list(self.logs.items()):
            if time.monotonic() >= due and not self.closed.is_set():
                del self.logs[job]
                self._print(f"{self.running[job]} goes on; its log: {log}")
