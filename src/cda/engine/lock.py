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
from cda.files import cannot_write
from cda.progress import log

# a lease of another host is stale after so long without a heartbeat; owners beat ten times as often
LEASE_SECONDS = 300.0
# a lease file without complete content is stale after so long: its writer was killed
WRITING_SECONDS = 5.0
# a job waits so long for a lease: SLURM by default grants 30 seconds to a job that it stops
PATIENCE_SECONDS = 60.0


class Lease:
    """The right to work in a folder: a file with host and process that its owner keeps touching.

    A lease whose owner is gone, or no longer touches it, is stale and can be taken over.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lease.json"
        self._done = threading.Event()

    def last_beat(self) -> float:
        """When the owner last touched the file; 0 without a file."""
        with contextlib.suppress(OSError):
            return self.path.stat().st_mtime
        return 0.0

    def owner(self) -> dict[str, Any] | None:
        """Host, process and its start; None while the file holds none. Raises OSError."""
        try:
            owner = json.loads(self.path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            return None
        pid = owner.get("pid") if isinstance(owner, dict) else None
        return owner if type(pid) is int and 0 < pid < 2**31 and "host" in owner else None

    def is_stale(self, unbeaten: float = 0.0) -> bool:
        """Whether the owner is gone; `unbeaten`: seconds that we saw the file untouched.

        A file system's clock may differ from this host's: the file's time alone does not suffice.
        """
        try:
            owner = self.owner()
            age = max(time.time() - self.path.stat().st_mtime, unbeaten)
        except FileNotFoundError:
            return True
        if owner is None:
            return age > WRITING_SECONDS
        if owner["host"] == socket.gethostname():
            return not _is_alive(owner["pid"], owner.get("started"))
        return age > LEASE_SECONDS

    def _owned_elsewhere(self) -> bool:
        with contextlib.suppress(OSError):
            owner = self.owner()
            return owner is not None and owner["host"] != socket.gethostname()
        return False

    def take(self) -> None:
        """Take the lease, from a job that is about to end or is gone.

        A job that was killed on another host leaves a lease that looks alive until its heartbeats
        have been missing for `LEASE_SECONDS`. Raises ArtifactError if another job has the lease,
        AlreadyDone if that job finished the work while this one waited; ArtifactError too if the
        disk refuses.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error) from None
        start, first, waited = time.monotonic(), self.last_beat(), 0.0
        try:
            while not self._try_to_take(waited if self.last_beat() == first else 0.0):
                silent = self._owned_elsewhere() and self.last_beat() == first
                if waited >= PATIENCE_SECONDS and not silent:
                    raise ArtifactError(
                        f"{self.path}: another job works here; wait for it, or delete that "
                        "file if you know it is gone"
                    )
                if not waited and PATIENCE_SECONDS:
                    log(f"{self.path}: another job has this work; waiting for it to end")
                time.sleep(max(0.01, min(1.0, PATIENCE_SECONDS / 10)))
                waited = time.monotonic() - start
        except FileNotFoundError:
            raise AlreadyDone(
                f"{self.path.parent}: another job has just finished this work"
            ) from None
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def _try_to_take(self, unbeaten: float) -> bool:
        """Whether this process has it now; raises FileNotFoundError if the folder is gone."""
        process = os.getpid()
        own = {"host": socket.gethostname(), "pid": process, "started": process_start(process)}
        lock = os.open(self.path.parent, os.O_RDONLY)
        # some file systems have no locks; there the exclusive creation of the file must suffice
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return self._create(own, unbeaten)
        finally:
            os.close(lock)

    def _create(self, own: dict[str, Any], unbeaten: float) -> bool:
        """Create the file after removing a stale one, under the folder's lock."""
        for _ in range(2):
            try:
                descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                if not self.is_stale(unbeaten):
                    break
                self.path.unlink(missing_ok=True)
                continue
            try:
                with os.fdopen(descriptor, "w") as file:
                    json.dump(own, file)
            except OSError:  # a lease without an owner would hold up the next job
                self.path.unlink()
                raise
            return True
        return False

    def _beat(self) -> None:
        while not self._done.wait(LEASE_SECONDS / 10):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lease within the context; raises as `take`."""
        self.take()
        heart = threading.Thread(target=self._beat, daemon=True)
        heart.start()
        try:
            yield
        finally:
            self._done.set()
            with contextlib.suppress(OSError):
                owner = self.owner() or {}
                if (owner.get("host"), owner.get("pid")) == (socket.gethostname(), os.getpid()):
                    self.path.unlink()


def process_start(pid: int) -> str | None:
    """When a process started, in kernel ticks; None without /proc.

    The kernel gives a process number to another process later; their starts differ.
    """
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    return None


def _is_alive(pid: int, started: str | None) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return started is None or process_start(pid) == started


@contextmanager
def work_folder(folder: Path, leads: bool = True) -> Iterator[Stop]:
    """A leased work folder and a listener for signals; finished work removes the folder.

    Of several processes that share the work, the one that `leads` holds the lease and removes the
    folder. Raises as `Lease.take`.
    """
    stop = Stop()
    lease = Lease(folder).held() if leads else contextlib.nullcontext()
    with lease, stop.listening():
        yield stop
        if leads:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a work folder and its lease by one rename.

    A job that waits for the lease would otherwise begin in a half-removed folder.
    """
    gone = folder.with_name(f".{folder.name}.done")
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.rename(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)
