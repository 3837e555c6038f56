"""GPUs for a job on a machine with several: it takes those that no other job of the user holds.

A job holds a GPU by a lock on a file, which the kernel releases whenever and however the process
ends. Under SLURM a job sees its allocation's GPUs alone, and each allocation has locks of its own.
GPUs must be taken before CUDA is initialised. A slice of a card that MIG divides counts as a GPU.

The locks lie in the temporary folder. If its file system has none (Lustre mounted without `flock`,
some NFS), the first GPUs are taken unlocked, and one line is logged.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cda.errors import ConfigError
from cda.progress import log

VISIBLE = "CUDA_VISIBLE_DEVICES"
SMI_SECONDS = 30.0  # nvidia-smi may have to wake every card
held_locks: list[int] = []  # descriptors of the lock files, open until the process ends


def visible_gpus(devices: Path = Path("/dev")) -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    cards = [str(index) for index, _ in enumerate(devices.glob("nvidia[0-9]*"))]
    return (_slices() if cards else []) or cards


def _slices() -> list[str]:
    """UUIDs of MIG slices and of cards without any; empty if no card has slices.

    Only a UUID names a slice. Without `nvidia-smi`, or if it fails, no slice is known.
    """
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=SMI_SECONDS
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    # a card's line, then those of its slices: a card that another card follows has none
    names = re.findall(r"UUID: (MIG-[\w/-]+|GPU-[\w-]+(?=\)\s*(?:GPU|$)))", listed)
    return names if any(map(is_slice, names)) else []


def is_slice(name: str) -> bool:
    """Whether a GPU is a MIG slice; CUDA shows a process one slice at most."""
    return name.startswith("MIG-")


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
    torchrun or an earlier call took them. Several are cards, never MIG slices. Raises ConfigError
    if there are fewer than wanted.
    """
    names = visible_gpus() if names is None else names
    if not (count and names) or held_locks or "RANK" in os.environ:
        return []
    if count > 1:
        names = [name for name in names if not is_slice(name)]
    if len(names) < count:
        raise ConfigError(
            f"the job wants {count} GPUs, but there are {len(names)}; set runtime.gpus (to 1 for "
            f"MIG slices), or {VISIBLE}"
        )
    folder, waiting = lock_folder(), False
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder}: the folder of GPU locks cannot be made ({error.strerror}); set TMPDIR to a "
            "folder that you may write"
        ) from None
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
        except OSError as error:
            log(
                f"{folder}: no file locks here ({error.strerror}), so jobs do not know of one "
                "another's GPUs; set TMPDIR to a local disk, or run one GPU job at a time"
            )
            os.close(descriptor)
            for held in locked.values():
                os.close(held)
            return list(names[:count])
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
