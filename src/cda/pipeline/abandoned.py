"""Runs that nothing is made from any more: a value changed since, or their table is gone.

Any table or figure of any scale keeps its runs, and so does a run that DVC tracks: its description
names what it was made from. A data set is skipped if that is not known for one of its runs: a
tracked one that is not here, or one that a job is working on. Measurements (`results/runs`) stay:
they are small, and in git.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from cda.config.load import load_settings, scale_names
from cda.engine.lock import Lease
from cda.errors import ArtifactError
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.paths import Layout
from cda.files import cannot_write, read_json
from cda.text import human_bytes

STAGES = (
    "decode",
    "squeeze",
    "recover",
    "expert",
    "distill",
    "relabel",
)  # whose outputs are artifacts
FOLDER = re.compile(r"\.?(.+-[0-9a-f]{8})(\.gone)?")  # a run's; `.gone` if its removal was killed
# A lease of another host is respected for so long after its last beat, whatever the clocks say.
FOREIGN_SECONDS = 86_400


def list_abandoned(config: Path, *, delete: bool = False) -> None:
    """Print the abandoned folders of every scale with their bytes; with `delete` remove them.

    Raises ConfigError if `config` cannot be read: then nothing is known to be abandoned.
    """
    scales = scale_names(config)
    needed = {run for scale in scales for run in _runs_of(config, scale)}
    count = total = 0
    for layout in map(Layout, scales):
        for folder in _find(layout, needed):
            size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
            if delete:
                _remove(folder)
            print(f"{human_bytes(size):>8s}  {folder}{' removed' * delete}", flush=True)
            count, total = count + 1, total + size
    hint = "" if delete else "; --delete removes them"
    summary = f"{count} folders, {human_bytes(total)}, that nothing is made from{hint}."
    print(summary if count else "Nothing is abandoned.")


def _runs_of(config: Path, scale: str) -> Iterator[str]:
    """Ids of the runs of every table and figure of a scale; raises ConfigError."""
    everything = {"scale": scale, "datasets": "all", "controls": "all"}
    yield from ExperimentSet(load_settings(everything, config), config).runs()


def _folders(layout: Layout) -> Iterator[tuple[str, str, Path]]:
    """(data set, run, folder) of every output and unfinished work of a scale."""
    top = Path(layout.artifacts)
    for stage in (*STAGES, *(f"work/{path.name}" for path in sorted(top.glob("work/*")))):
        for folder in sorted(top.glob(f"{stage}/*/*")):
            match = FOLDER.fullmatch(folder.name)
            if match and folder.is_dir() and not folder.is_symlink():
                yield folder.parent.name, match[1], folder


def _find(layout: Layout, needed: set[str]) -> list[Path]:
    """The abandoned folders of a scale; prints which data sets are skipped, and why."""
    folders, top = list(_folders(layout)), Path(layout.artifacts)
    tracked = {
        (file.parent.name, file.stem) for stage in STAGES for file in top.glob(f"{stage}/*/*.dvc")
    }
    known, skipped = set(needed), {}
    for dataset, run in sorted(tracked):
        made_from, missing = _made_from(top, dataset, run, needed)
        known |= made_from
        if missing:
            skipped[dataset] = f"{missing}: a tracked run was made from it, and it is not here"
    for dataset, run, folder in folders:
        if run not in known and any(map(_is_alive, folder.glob("*/lease.json"))):
            skipped[dataset] = f"{folder}: a job works here"
    for dataset, reason in sorted(skipped.items()):
        print(f"data set {dataset} of scale {layout.scale} is skipped ({reason})")
    return [
        folder for dataset, run, folder in folders if run not in known and dataset not in skipped
    ]


def _made_from(top: Path, dataset: str, run: str, needed: set[str]) -> tuple[set[str], str]:
    """The runs below `run` up to `needed` ones, and one whose description is not here, or ""."""
    found: set[str] = set()
    todo = [run]
    while todo:
        run = todo.pop()
        if run in needed or run in found:
            continue
        found.add(run)
        described = [known for path in top.glob(f"*/{dataset}/{run}") for known in _upstream(path)]
        if not described:
            return found, run
        todo += described[0]
    return found, ""


def _upstream(folder: Path) -> Iterator[list[str]]:
    """Ids of the runs that a run was made from, by each of its descriptions that can be read."""
    descriptions = [folder / "squeeze.json", folder / "labels/header.json"]
    parts = (sorted(folder.glob(f"part-*/{kind}-*.json")) for kind in ("ipc", "expert"))
    for path in [*descriptions, *itertools.chain(*parts)]:
        with contextlib.suppress(ArtifactError):
            spec = read_json(path, "a run's description").get("spec")
            if isinstance(spec, dict) and isinstance(spec.get("upstream"), dict):
                yield [str(run) for run in spec["upstream"].values()]


def _is_alive(file: Path) -> bool:
    """Whether the owner of a lease may be at work."""
    lease = Lease(file.parent)
    try:
        owner = lease.owner()
    except OSError:
        return file.exists()
    if owner is not None and owner["host"] == socket.gethostname():
        return not lease.is_stale()
    return time.time() - lease.last_beat() < FOREIGN_SECONDS


def _remove(folder: Path) -> None:
    """Remove a folder, by a rename first: half of a run would pass for a finished one."""
    gone = folder.with_name(f".{folder.name.strip('.').removesuffix('.gone')}.gone")
    try:
        folder.rename(gone)
        shutil.rmtree(gone)
    except OSError as error:
        raise cannot_write(folder, error) from None
