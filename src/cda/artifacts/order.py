"""The order of times: what was made from something is given a time no older than it.

`dvc pull` and `git clone` give files the time of their arrival, in any order, and Snakemake would
make again what seems older than its input. Times are only raised: of run JSONs and of the
`.snakemake_timestamp` by which Snakemake knows a folder's time. So DVC's cache, which a linked file
shares, is not touched, and nothing has to be hashed again.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from cda.artifacts.needs import TRAVELLING, made
from cda.errors import ArtifactError
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.jobs import inputs
from cda.experiments.runs import Run
from cda.pipeline import dvc
from cda.progress import log

STAMP = ".snakemake_timestamp"


def order(experiments: ExperimentSet) -> int:
    """Put the times of everything that is here of the scale's runs in order; how many were set.

    What was made from an artifact that differs from the tracked one is left as it is, and told: it
    may be stale. Raises ArtifactError for a time that cannot be set.
    """
    runs = experiments.runs()
    foreign = _foreign(experiments, list(runs.values()))
    now, count = time.time_ns(), 0
    for run in runs.values():  # upstream first
        for path in made(experiments, run):
            count += _no_later(path, now)
        outputs = made(experiments, run)
        read = _read(experiments, run)
        if not outputs or any(path in foreign for path in read):
            continue
        newest = max(map(_as_input, read), default=0)
        count += sum(_no_earlier(path, newest) for path in outputs)
    return count


def _read(experiments: ExperimentSet, run: Run) -> list[str]:
    """What is here of what a run was made from: of an input that is not here, what that was made
    from.

    Snakemake looks through a missing input in the same way. Nothing for a squeezed model, which the
    workflow leaves as it is.
    """
    if run.stage == "squeeze":
        return []
    needed = inputs(run, experiments.settings.labels.max_gb)
    return [path for one in needed for path in made(experiments, one) or _read(experiments, one)]


def _foreign(experiments: ExperimentSet, runs: list[Run]) -> set[str]:
    """Outputs that are here and are not what is tracked under their name."""
    tracked = [run for run in runs if run.stage in TRAVELLING]
    there = {
        path: experiments.layout.run_folder(run)
        for run in tracked
        for path in made(experiments, run)
    }
    known = [folder for folder in dict.fromkeys(there.values()) if dvc.file_of(folder).is_file()]
    changes = dvc.changes(known)
    foreign = {
        path
        for path in there
        if any(one == path or one.startswith(f"{path}/") for one in changes.modified)
    }
    for path in sorted(foreign):
        log(
            f"{path}: is not what is tracked, so what was made from it keeps its time; cda "
            "track to keep it, or "
            f"dvc checkout --force {there[path]} to take the tracked one"
        )
    return foreign


def _carrier(path: str) -> Path:
    """The file whose time Snakemake takes for `path`."""
    return Path(path, STAMP) if Path(path).is_dir() else Path(path)


def _as_output(path: str) -> int:
    carrier = _carrier(path)
    return os.lstat(carrier if carrier.exists() else path).st_mtime_ns


def _as_input(path: str) -> int:
    """Of a link that is read Snakemake takes the later one of its own time and its target's.

    Of one made, its own.
    """
    carrier = _carrier(path)
    return max(_as_output(path), os.stat(carrier if carrier.exists() else path).st_mtime_ns)


def _set(path: str, moment: int, *, target: bool = False) -> bool:
    """Set the time of a file, or of a link, or of its `target`; for a folder of its stamp."""
    carrier = _carrier(path)
    try:
        if carrier.name == STAMP and not carrier.exists():
            carrier.touch()
        os.utime(carrier, ns=(moment, moment), follow_symlinks=target)
    except OSError as error:
        raise ArtifactError(
            f"{carrier}: its time cannot be set ({error.strerror}); make it yours, or have "
            "DVC copy instead of link: "
            "dvc config --local cache.type copy"
        ) from None
    return True


def keep_time(path: str) -> None:
    """Write a folder's time into its stamp, if it has none.

    DVC changes the folder's own when it links its files.
    """
    if Path(path).is_dir() and not Path(path, STAMP).exists():
        _set(path, os.lstat(path).st_mtime_ns)


def _no_earlier(path: str, moment: int) -> bool:
    return _as_output(path) < moment and _set(path, moment)


def _no_later(path: str, now: int) -> bool:
    """Lower a time that lies in the future, which no later job could reach."""
    link, target = _as_output(path) > now, _as_input(path) > now
    return (target and _set(path, now, target=True)) | (link and _set(path, now))
