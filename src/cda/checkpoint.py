"""Long stages survive: checkpoints without pickles, signals that stop cleanly, a lease against two jobs at one work.

A checkpoint is one safetensors file: tensors as they are, everything else as JSON in its header, under the key of what
it belongs to.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cda.errors import ArtifactError, Finished, Interrupted
from cda.files import whole
from cda.progress import say

LEASE_SECONDS = 300.0  # without a beat of its owner's, until a lease is taken over; it beats ten times as often
WRITING = 5.0  # the same, of a lease whose text is not whole
PATIENCE = 60.0  # seconds that a job waits for another to let go: SLURM grants one that was told to stop 30 by default


def pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, its tensors put into `tensors` and referred to by name."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [pack(item, tensors) for item in value]
    return value


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What `pack` packed (tuples come back as lists)."""
    if isinstance(value, dict):
        return (
            tensors[value["tensor"]]
            if "tensor" in value
            else {key: unpack(item, tensors) for key, item in value["dict"]}
        )
    return [unpack(item, tensors) for item in value] if isinstance(value, list) else value


class Checkpoint:
    """The newest state of an unfinished piece of work; a state saved under another `key` is not taken.

    Of several processes that share the work, one `writes`.
    """

    def __init__(self, path: Path, key: str, every: float, writes: bool = True) -> None:
        self.path, self.key, self.every, self.writes = path, key, every, writes
        self._saved = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self._saved >= self.every

    def save(self, state: Any) -> None:
        """Write `state` (tensors in dicts and lists, and JSON values) whole."""
        if self.writes:
            tensors: dict[str, Tensor] = {}
            header = {"key": self.key, "state": json.dumps(pack(state, tensors))}
            with whole(self.path) as aside:
                write_tensors(tensors, aside, header)
        self._saved = time.monotonic()

    def load(self) -> Any | None:
        """The saved state, or None if there is none that can be used."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("key") != self.key:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                return unpack(json.loads(header["state"]), tensors)
        except (SafetensorError, OSError, ValueError, KeyError):
            say(f"{self.path}: damaged checkpoint, starting this piece again")
            return None

    def clear(self) -> None:
        """Forget it: the work is done."""
        self.path.unlink(missing_ok=True)


def write_tensors(tensors: dict[str, Tensor], path: Path, header: dict[str, str] | None = None) -> None:
    """Write a safetensors file, for whom the umask says (safetensors: the owner alone); raises OSError."""
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    try:
        save_file(tensors, path, metadata=header)
        path.chmod(mode)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error)) from None


class Stop:
    """Turns SIGTERM, SIGINT and SIGUSR1 into a question a loop asks between steps; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.signal = 0

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        """Listen for the signals within; outside the main thread, signals are left alone."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {
            number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        }
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Raises Interrupted if a signal came; call it where everything is saved."""
        if self.signal:
            name = signal.Signals(self.signal).name
            raise Interrupted(f"stopped by {name}; what is done is saved, start it again to go on", self.signal)


class Lease:
    """Who works in a folder: a file with host and process, touched while its owner lives, ignored once stale."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lease.json"
        self._done = threading.Event()

    def _beat(self) -> float:
        """When its owner last touched it."""
        with contextlib.suppress(OSError):
            return self.path.stat().st_mtime
        return 0.0

    def _owner(self) -> dict[str, Any] | None:
        """Who has it; None while that is being written, or if its writer was killed in the act. Raises OSError."""
        try:
            owner: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            return owner if {"host", "pid"} <= owner.keys() else None
        except ValueError:
            return None

    def _stale(self, unbeaten: float = 0.0) -> bool:
        """Whether its owner is gone; `unbeaten` seconds it was watched without a beat."""
        try:
            owner = self._owner()
            age = max(time.time() - self.path.stat().st_mtime, unbeaten)  # the file system's clock may be another
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

        Raises ArtifactError if another is at work, Finished if one ended its work while this one waited.
        A job that was killed on another host leaves a lease that only its missing beats tell from a living one's.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        start, first, waited = time.monotonic(), self._beat(), 0.0
        try:
            while not self._taken(waited if self._beat() == first else 0.0):
                if waited >= PATIENCE and not (self._elsewhere() and self._beat() == first):
                    raise ArtifactError(
                        f"{self.path}: another job works here; wait for it, or delete that file if you know it is gone"
                    )
                if not waited and PATIENCE:
                    say(f"{self.path}: another job has this work; waiting for it to end")
                time.sleep(max(0.01, min(1.0, PATIENCE / 10)))
                waited = time.monotonic() - start
        except FileNotFoundError:
            raise Finished(f"{self.path.parent}: another job has just finished this work") from None

    def _taken(self, unbeaten: float) -> bool:
        """Whether it was free, and is ours now; raises FileNotFoundError if the folder is gone."""
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
        lock = os.open(self.path.parent, os.O_RDONLY)
        with contextlib.suppress(OSError):  # some file systems know no locks; the exclusive creation still holds there
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
        """Hold it within; raises ArtifactError if somebody else does, Finished if they did and are done."""
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
    """When a process started, in kernel ticks: tells a reused process number from its former owner. None off Linux."""
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
def working(folder: Path, leads: bool = True) -> Iterator[Stop]:
    """A leased work folder and a listener for signals; the folder is removed once the work is done.

    Of several processes that share the work, the one that `leads` has the lease and removes the folder.
    """
    stop = Stop()
    lease = Lease(folder).held() if leads else contextlib.nullcontext()
    with lease, stop.listening():
        yield stop
        if leads:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a work folder in one moment, its lease with it: a job that waits for that must not begin amid the rest."""
    gone = folder.with_name(f".{folder.name}.done")
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.rename(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)
