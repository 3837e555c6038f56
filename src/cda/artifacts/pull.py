"""Bring what a table or figure needs: say how much, pull it, put the times in order.

DVC takes what is in its cache as it is; `verify` hashes it first and throws away what is damaged,
to be brought again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from cda.artifacts.needs import Needs, require_versioned
from cda.artifacts.order import order
from cda.errors import ArtifactError
from cda.experiments.experiment_set import ExperimentSet
from cda.pipeline import dvc
from cda.progress import Progress, log


def pull(
    experiments: ExperimentSet,
    scale: ExperimentSet,
    targets: Sequence[str],
    *,
    everything: bool = False,
    verify: bool = False,
    dry: bool = False,
) -> None:
    """Bring what the jobs that `targets` still need read; with `everything`, all that all of them
    were made from.

    `scale` is all of the scale, whose times are put in order. Raises ArtifactError, ConfigError.
    """
    require_versioned(experiments)
    needs = Needs(experiments, everything)
    for target in targets:
        needs.add(target)
    asked = " ".join(targets)
    with dvc.exclusive():
        damaged = _throw_away_damaged(needs) if verify else set()
        here = [path for path in needs.tracked if Path(path).exists()]
        changes = dvc.changes(list(dict.fromkeys(needs.tracked[path].folder for path in here)))
        bring = [
            path
            for path in needs.tracked
            if path not in here or path in damaged or changes.lacks(path)
        ]
        total = sum(needs.tracked[path].bytes_of(path) for path in bring)
        rest = len(needs.tracked) - len(bring) + len(needs.here)
        print(
            f"{asked}: {len(bring)} outputs to bring, {dvc.human_bytes(total)}; {rest} here already."
        )
        _tell_untracked(needs, asked)
        if not needs.tracked and not needs.untracked and not needs.here:
            print(
                "Its measurements are all there, so it is made without artifacts; with --all "
                "they are brought."
            )
        if dry:
            return
        if bring:
            _require_room(total)
            _bring(bring, changes)
        log(f"Times put in order: {order(scale)} set.")


def _bring(paths: list[str], changes: dvc.Changes) -> None:
    """Pull; raises ArtifactError where there is no remote, or something of one's own is in the way."""
    for path in paths:
        if changes.new(path):
            raise ArtifactError(
                f"{path}: lacks files that are tracked, and has others that are not; remove "
                "it, then pull again"
            )
    try:
        dvc.run_dvc("pull", *paths)
    except ArtifactError:
        dvc.require_remote()
        raise


def _tell_untracked(needs: Needs, asked: str) -> None:
    """Name the runs that nobody tracked."""
    jobs: dict[str, list[str]] = {}
    for path, run in needs.untracked.items():
        jobs.setdefault(f"{run.stage} {run.dataset} {run.id}", []).append(path)
    for name, paths in jobs.items():
        print(f"not tracked by anybody: {name} ({len(paths)} job{'s' if len(paths) > 1 else ''})")
    if jobs:
        print(
            f"snakemake {asked} would compute these; --config cells=present makes do with the "
            "run JSONs there are."
        )


def _require_room(total: int) -> None:
    """Raise ArtifactError if the disk has less room than what is to come."""
    free = shutil.disk_usage(".").free
    if free < total:
        raise ArtifactError(
            f"{Path.cwd()}: {dvc.human_bytes(free)} free, and {dvc.human_bytes(total)} to come; make "
            "room, or pull a smaller target"
        )


def _throw_away_damaged(needs: Needs) -> set[str]:
    """Remove cached files that are not what their names say, and the links to them.

    The paths that need them again.
    """
    cache = Path(dvc.run_dvc("cache", "dir").strip()) / "files" / "md5"
    places: dict[Path, list[tuple[str, str]]] = {}
    damaged = set()
    for path, told in needs.tracked.items():
        listed = cache / told.md5[:2] / told.md5[2:]
        if listed.is_file() and not _whole(listed):
            log(
                f"{told.folder}: its list of files is damaged in DVC's cache; brought again; "
                "verify it once more"
            )
            listed.unlink()
            damaged.add(path)
        for place, cached in _files(path, told, cache, listed):
            places.setdefault(cached, []).append((path, place))
    progress = Progress(sum(cached.stat().st_size for cached in places), "verify", "B")
    for cached, wanted in places.items():
        progress.update(cached.stat().st_size)
        if not _whole(cached):
            damaged |= {path for path, _ in wanted}
            _drop(cached, [Path(place) for _, place in wanted])
    progress.close()
    return damaged


def _files(path: str, told: dvc.Tracked, cache: Path, listed: Path) -> Iterator[tuple[str, Path]]:
    """The files at or below `path` that are cached: place and cached file."""
    for entry in json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else ():
        place, cached = (
            f"{told.folder}/{entry['relpath']}",
            cache / entry["md5"][:2] / entry["md5"][2:],
        )
        if place.startswith(f"{path}/") and cached.is_file():
            yield place, cached


def _drop(cached: Path, places: Sequence[Path]) -> None:
    for place in places:
        log(f"{place}: damaged in DVC's cache; thrown away, to be brought again")
        if place.exists() and place.samefile(cached):
            place.unlink()
    cached.unlink()


def _whole(cached: Path) -> bool:
    """Whether a cached file has the MD5 that DVC named it by."""
    with cached.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() == (
            cached.parent.name + cached.name
        ).removesuffix(".dir")
