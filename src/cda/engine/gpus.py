"""GPUs for a job on a machine with several: it takes those that no other job of the user holds.

A job holds a GPU by a lock on a file, which the kernel releases whenever and however the process
ends. Under SLURM a job sees its allocation's GPUs alone, and each allocation has locks of its own.
GPUs must be taken before CUDA is initialised.
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
held_locks: list[int] = []  # descriptors of the lock files, open until the process ends


def visible_gpus(devices: Path = Path("/dev")) -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    return [str(index) for index, _ in enumerate(devices.glob("nvidia[0-9]*"))]


def lock_folder() -> Path:
    """Folder of the locks: the user's on this machine, or the SLURM job's.

    A SLURM job may number its GPUs from 0, whichever they are.
    """
    user = Path(tempfile.gettempdir()) / f"cda-gpus-{os.getuid()}"
    return user / os.environ.get("SLURM_JOB_ID", "all")


def take_gpus(
    count: int,
    names: Sequence[str] | None = None,
    pause: Callable[[], None] = lambda: time.sleep(1),
) -> list[str]:
    """Lock `count` of the GPUs `names` and make them the only ones that CUDA sees.

    Waits for GPUs that other jobs hold. Does nothing if there is no GPU, none is wanted, or
    torchrun or an earlier call took them. Raises ConfigError if there are fewer than wanted.
    """
    names = visible_gpus() if names is None else names
    if not (count and names) or held_locks or "RANK" in os.environ:
        return []
    if len(names) < count:
        raise ConfigError(
            f"the job wants {count} GPUs, but there are {len(names)}; set runtime.gpus, or "
            f"{VISIBLE}"
        )
    folder, waiting = lock_folder(), False
    folder.mkdir(parents=True, exist_ok=True)
    while not (taken := _try(folder, names, count)):
        if not waiting:
            log(
                f"{count} of {len(names)} GPUs wanted, but other jobs hold them: waiting "
                "(snakemake --resources gpu=N)"
            )
            waiting = True
        pause()
    os.environ[VISIBLE] = ",".join(taken)
    return taken


def _try(folder: Path, names: Sequence[str], count: int) -> list[str]:
    """Lock the first `count` GPUs that are free; none if fewer are."""
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
            held_locks.extend(locked.values())
            return list(locked)
    for descriptor in locked.values():
        os.close(descriptor)
    return []


def pass_on_gpus() -> None:
    """Let torchrun, the program that replaces this one, hold the locks."""
    for descriptor in held_locks:
        os.set_inheritable(descriptor, True)
