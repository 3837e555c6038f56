"""A GPU of its own for each job of a machine that has several: it takes those that no other job of
the user holds.

A GPU is held by a lock on a file, which the kernel lets go of when the process ends, however it
ends. Under SLURM a job sees the GPUs it was given, and locks are the allocation's own. It has to be
done before CUDA is initialised.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cda.errors import ConfigError
from cda.progress import log

VISIBLE = "CUDA_VISIBLE_DEVICES"
_held: list[int] = []  # descriptors of the locked files, open for as long as the process lives


def visible_gpus(devices: Path = Path("/dev")) -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    given = os.environ.get(VISIBLE)
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    return [str(index) for index, _ in enumerate(devices.glob("nvidia[0-9]*"))]


def lock_folder() -> Path:
    """Where locks are: the user's on this machine, or those of the SLURM job, whose GPUs may be
    numbered anew.
    """
    return (
        Path(tempfile.gettempdir())
        / f"cda-gpus-{os.getuid()}"
        / os.environ.get("SLURM_JOB_ID", "all")
    )


def take_gpus(
    count: int,
    names: Sequence[str] | None = None,
    pause: Callable[[], None] = lambda: time.sleep(1),
) -> list[str]:
    """Take `count` of the GPUs `names`, waiting for them if need be, and make them all that CUDA
    sees.

    Does nothing where no GPU is present, none is wanted, or torchrun or an earlier call took them.
    Raises ConfigError where there are fewer than wanted.
    """
    names = visible_gpus() if names is None else names
    if not (count and names) or _held or "RANK" in os.environ:
        return []
    if len(names) < count:
        raise ConfigError(
            f"the job wants {count} GPUs, but there are {len(names)}; set runtime.gpus, or "
            f"{VISIBLE}"
        )
    folder, told = lock_folder(), False
    folder.mkdir(parents=True, exist_ok=True)
    while not (taken := _try(folder, names, count)):
        if not told:
            log(
                f"{count} of {len(names)} GPUs wanted, but other jobs hold them: waiting "
                "(snakemake --resources gpu=N)"
            )
            told = True
        pause()
    os.environ[VISIBLE] = ",".join(taken)
    return taken


def _try(folder: Path, names: Sequence[str], count: int) -> list[str]:
    """Lock the first `count` that are free; none if there are fewer."""
    locked: dict[str, int] = {}
    for name in names:
        descriptor = os.open(folder / name.replace("/", "_"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        locked[name] = descriptor
        if len(locked) == count:
            _held.extend(locked.values())
            return list(locked)
    for descriptor in locked.values():
        os.close(descriptor)
    return []


def pass_on_gpus() -> None:
    """Let the program that replaces this one, torchrun, hold what was taken."""
    for descriptor in _held:
        os.set_inheritable(descriptor, True)
