"""A lease on a work folder: two jobs never do the same work at once."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cda.engine.signals import Stop
from cda.errors import AlreadyDone, ArtifactError
from cda.progress import log

LEASE_SECONDS = (
    300.0  # without a beat of its owner's, until a lease is taken over; it beats ten times as often
)


WRITING = 5.0  # the same, of a lease whose text is not whole


# seconds that a job waits for another to let go: SLURM grants one that was told to stop 30 by
# default
PATIENCE = 60.0


class Lease:
    """Who works in a folder: a file with host and process, touched while its owner lives, ignored
    once stale.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lease.json"
        self._done = threading.Event()

    def _beat(self) -> float:
        """When its owner last touched it."""
        with contextlib.suppress(OSError):
            return self.path.stat().st_mtime
        return 0.0

    def _owner(self) -> dict[str, Any] | None:
        """Who has it; None while that is being written, or if its writer was killed in the act.

        Raises OSError.
        """
        try:
            owner: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            return owner if {"host", "pid"} <= owner.keys() else None
        except ValueError:
            return None

    def _stale(self, unbeaten: float = 0.0) -> bool:
        """Whether its owner is gone; `unbeaten` seconds it was watched without a beat."""
        try:
            owner = self._owner()
            age = max(
                time.time() - self.path.stat().st_mtime, unbeaten
            )  # the file system's clock may be another
        except FileNotFoundError:
            return True
        if owner is None:
            return age > WRITING
        if owner["host"] == socket.gethostname():
            return not _alive(int(owner["pid"]), owner.get("started"))
        return age > LEASE_SECONDS

    def _elsewhere(self) -> bool:
        """Whether its owner is on another host."""
        with contextlib.suppress(OSError):
            owner = self._owner()
            return owner is not None and owner["host"] != socket.gethostname()
        return False

    def _take(self) -> None:
        """Take it, from a job that is about to end or that is gone.

        Raises ArtifactError if another is at work, Finished if one ended its work while this one
        waited. A job that was killed on another host leaves a lease that only its missing beats
        tell from a living one's.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        start, first, waited = time.monotonic(), self._beat(), 0.0
        try:
            while not self._taken(waited if self._beat() == first else 0.0):
                if waited >= PATIENCE and not (self._elsewhere() and self._beat() == first):
                    raise ArtifactError(
                        f"{self.path}: another job works here; wait for it, or delete that "
                        "file if you know it is gone"
                    )
                if not waited and PATIENCE:
                    log(f"{self.path}: another job has this work; waiting for it to end")
                time.sleep(max(0.01, min(1.0, PATIENCE / 10)))
                waited = time.monotonic() - start
        except FileNotFoundError:
            raise AlreadyDone(
                f"{self.path.parent}: another job has just finished this work"
            ) from None

    def _taken(self, unbeaten: float) -> bool:
        """Whether it was free, and is ours now; raises FileNotFoundError if the folder is gone."""
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
        lock = os.open(self.path.parent, os.O_RDONLY)
        with contextlib.suppress(
            OSError
        ):  # some file systems know no locks; the exclusive creation still holds there
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return self._taken_locked(mine, unbeaten)
        finally:
            os.close(lock)

    def _taken_locked(self, mine: dict[str, Any], unbeaten: float) -> bool:
        """Create the file; one that is stale goes first, which nobody else may do meanwhile."""
        for _ in range(2):
            try:
                descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                if not self._stale(unbeaten):
                    break
                self.path.unlink(missing_ok=True)
                continue
            with os.fdopen(descriptor, "w") as file:
                json.dump(mine, file)
            return True
        return False

    def _touch(self) -> None:
        while not self._done.wait(LEASE_SECONDS / 10):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold it within; raises ArtifactError if somebody else does, Finished if they did and are
        done.
        """
        self._take()
        heart = threading.Thread(target=self._touch, daemon=True)
        heart.start()
        try:
            yield
        finally:
            self._done.set()
            with contextlib.suppress(OSError, ValueError):
                owner = json.loads(self.path.read_text(encoding="utf-8"))
                if (owner["host"], owner["pid"]) == (socket.gethostname(), os.getpid()):
                    self.path.unlink()


def _started(pid: int) -> str | None:
    """When a process started, in kernel ticks.

    Tells a reused process number from its former owner. None off Linux.
    """
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    return None


def _alive(pid: int, started: str | None) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return started is None or _started(pid) == started


@contextmanager
def work_folder(folder: Path, leads: bool = True) -> Iterator[Stop]:
    """A leased work folder and a listener for signals; the folder is removed once the work is done.

    Of several processes that share the work, the one that `leads` has the lease and removes the
    folder.
    """
    stop = Stop()
    lease = Lease(folder).held() if leads else contextlib.nullcontext()
    with lease, stop.listening():
        yield stop
        if leads:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a work folder in one moment, its lease with it.

    A job that waits for that must not begin amid the rest.
    """
    gone = folder.with_name(f".{folder.name}.done")
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.rename(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)
