"""After snakemake was killed: end what it left in SLURM's queue and take its lock off, so that it
can be started again.

Snakemake's slurm executor does not adopt the jobs of a head process that is gone. They are told by
three things at once: they are this user's, their working directory is this folder, and name and
comment are those that the executor gives (the run's UUID, `rule_…`). Being cancelled they save
where they are, and the next start goes on from there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
from itertools import pairwise
from pathlib import Path

from cda.errors import CdaError

NAME = re.compile(r"(?:[\w-]+_)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
APART = "\x1f"  # between the fields of a line: no folder's name holds it
PATIENCE = (
    180.0  # seconds until cancelled jobs have to be gone; SLURM grants them KillWait, 30 by default
)
AT_ONCE = 500  # jobs in one call of scancel


def unlock(folder: Path) -> str:
    """Cancel the folder's orphaned jobs, take off Snakemake's locks; says what was done.

    Raises CdaError, with nothing done, while another snakemake is alive here or might be, or if
    SLURM does not answer.
    """
    if alive := heads(folder):
        raise CdaError(
            f"{folder}: snakemake is running here (process {', '.join(map(str, alive))}); "
            "wait for it, or end it first"
        )
    jobs = orphans(folder)
    _check_hosts(folder, jobs)
    _cancel(folder, jobs)
    locks = folder / ".snakemake" / "locks"
    locked = locks.is_dir() and any(locks.iterdir())
    shutil.rmtree(locks, ignore_errors=True)
    started = _forget_started(folder)
    told = (
        f"cancelled what was left in SLURM ({', '.join(jobs)})"
        if jobs
        else "nothing was left in SLURM"
    )
    told += ", took off the lock" if locked else ", there was no lock"
    return f"{folder}: {told}" + (
        f", forgot {started} marks of unfinished outputs" if started else ""
    )


def heads(folder: Path) -> list[int]:
    """Processes of this host that run snakemake in `folder`, other than those that are a job's own;
    Linux only.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if _is_head(words) and (process / "cwd").resolve() == folder.resolve():
                found.append(int(process.name))
    return sorted(found)


def _is_head(words: list[str]) -> bool:
    """Whether a command line is a snakemake that plans.

    Those with a mode do one job of another's plan.
    """
    program, *rest = words
    called = Path(program).name == "snakemake"
    if Path(program).name.startswith("python"):
        called = Path(next(iter(rest), "")).name == "snakemake" or ("-m", "snakemake") in pairwise(
            rest
        )
    return called and "--mode" not in rest


def orphans(folder: Path) -> list[str]:
    """Numbers of this user's jobs (an array's is one) that a snakemake in `folder` submitted.

    Raises CdaError.
    """
    if shutil.which("squeue") is None:
        return []
    fields = APART.join(("%F", "%j", "%k", "%Z"))
    mine = ["squeue", "--noheader", "--user", str(os.getuid()), "--format", fields]
    lines = [line.split(APART) for line in _slurm(*mine).splitlines()]
    here = folder.resolve()
    numbers = {
        number
        for number, name, comment, place in (line for line in lines if len(line) == 4)
        if NAME.fullmatch(name) and comment.startswith("rule_") and Path(place).resolve() == here
    }
    return sorted(numbers, key=int)


def _check_hosts(folder: Path, jobs: list[str]) -> None:
    """Raises CdaError if jobs were submitted from another host, where their snakemake may be alive."""
    told = _slurm("scontrol", "--oneliner", "show", "jobs") if jobs else ""
    hosts = dict(re.findall(r"^JobId=(\d+) .* AllocNode:Sid=([^:. ]+)", told, re.MULTILINE))
    here = socket.gethostname().split(".")[0]
    if others := sorted({hosts.get(job, here) for job in jobs} - {here, "localhost"}):
        raise CdaError(
            f"{folder}: its SLURM jobs were submitted from {', '.join(others)}, where "
            "snakemake may be running; "
            "run cda unlock there"
        )


def _cancel(folder: Path, jobs: list[str]) -> None:
    """Cancel the jobs and wait until they are gone: what they save is for the next start.

    Raises CdaError.
    """
    for first in range(0, len(jobs), AT_ONCE):
        _slurm("scancel", "--quiet", *jobs[first : first + AT_ONCE])
    until = time.monotonic() + PATIENCE
    while jobs and (still := orphans(folder)):
        if time.monotonic() > until:
            raise CdaError(
                f"{folder}: SLURM jobs {', '.join(still)} do not end; see squeue, then run "
                "cda unlock again"
            )
        time.sleep(0.5)


def _forget_started(folder: Path) -> int:
    """Remove Snakemake's marks of outputs whose jobs had started; how many.

    Such a mark makes Snakemake distrust an output that is there. Ours appear whole or not at all,
    so one that is there is finished, and a part of recover that ended without its snakemake is not
    computed again.
    """
    marks = folder / ".snakemake" / "incomplete"
    count = sum(path.is_file() for path in marks.rglob("*"))
    shutil.rmtree(marks, ignore_errors=True)
    return count


def _slurm(*command: str) -> str:
    """What one of SLURM's commands prints; raises CdaError if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise CdaError(f"{command[0]}: {reason}; nothing is unlocked: try again when SLURM answers")
    return done.stdout
