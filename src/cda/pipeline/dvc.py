"""Artifacts in DVC: one tracked output per run, its `.dvc` file beside the run's folder.

`track` adds finished runs after a run, `pull` brings what tables and figures still need. A `.dvc`
file also notes the bytes of each entry of its folder (under `meta`, which DVC preserves), so that a
pull can print what it will bring before any remote is contacted, and so that a run grows by parts:
adding its whole folder would drop the parts that were never pulled. DVC is called as a program.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cda.errors import ArtifactError, ConfigError
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.jobs import Job, graph_of
from cda.experiments.runs import MEASURING, Run
from cda.files import write_text
from cda.progress import log
from cda.text import human_bytes

HOME = Path(".dvc")
VERSIONED = ("paper", "mini")  # scales whose artifacts are tracked
ENTRIES = {  # what a run's folder holds, by stage; decoded test images stay where the data is
    "squeeze": ("model.safetensors", "squeeze.json"),
    "recover": ("part-*",),
    "relabel": ("labels",),
}


@dataclass(frozen=True)
class Tracked:
    """A run as its `.dvc` file describes it: bytes of its folder and, if noted, of its entries."""

    folder: str
    size: int
    entries: Mapping[str, int]

    @property
    def is_noted(self) -> bool:
        """Whether all entries are noted: not after a plain `dvc add`, or a kill in between."""
        return sum(self.entries.values()) == self.size

    def bytes_of(self, path: str) -> int:
        """Bytes of the folder or of an entry; of an entry that is not noted the folder's."""
        return self.size if path == self.folder else self.entries.get(Path(path).name, self.size)

    def has(self, path: str) -> bool:
        """Whether an entry is tracked; where not all are noted, perhaps."""
        return path == self.folder or not self.is_noted or Path(path).name in self.entries


@dataclass(frozen=True)
class Changes:
    """How the files of tracked runs differ from what is tracked: paths of files."""

    added: frozenset[str] = frozenset()
    modified: frozenset[str] = frozenset()
    deleted: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()  # folders whose list of files is not in the cache

    def is_new(self, path: str) -> bool:
        """Whether it, or a file below it, is not what is tracked."""
        return _has_below(self.added | self.modified, path)

    def lacks(self, path: str) -> bool:
        """Whether it, or a file below it, is tracked and missing."""
        return _has_below(self.deleted, path)


def _has_below(paths: frozenset[str], path: str) -> bool:
    return any(one == path or one.startswith(f"{path}/") for one in paths)


def _read(folder: str) -> dict[str, Any]:
    """The `.dvc` file of a run's folder; raises ArtifactError if it is none."""
    file = Path(f"{folder}.dvc")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        (out,) = content["outs"]
        int(out.get("size", 0)), str(out["md5"]), dict((content.get("meta") or {}).get("bytes", {}))
    except (OSError, UnicodeError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError):
        raise ArtifactError(
            f"{file}: is no DVC file of a run; take it from git: git checkout {file}"
        ) from None
    return dict(content)


def tracked(folder: str) -> Tracked | None:
    """What is tracked of a run, or None; raises ArtifactError for a damaged `.dvc` file."""
    if not Path(f"{folder}.dvc").is_file():
        return None
    content = _read(folder)
    noted = (content.get("meta") or {}).get("bytes", {})
    entries = {str(name): int(size) for name, size in noted.items()}
    return Tracked(folder, int(content["outs"][0].get("size", 0)), entries)


def _note_sizes(folder: str, sizes: Mapping[str, int]) -> None:
    """Write the bytes of entries into the run's `.dvc` file, beside those of other entries."""
    content = _read(folder)
    meta, out = content.get("meta") or {}, content["outs"][0]
    noted = {**meta.get("bytes", {}), **sizes}
    if noted != meta.get("bytes") or "size" not in out:
        out.setdefault("size", sum(noted.values()))  # DVC leaves it out where a part is replaced
        content["meta"] = meta | {"bytes": dict(sorted(noted.items()))}
        write_text(Path(f"{folder}.dvc"), yaml.safe_dump(content, sort_keys=False))


def run_dvc(*arguments: str) -> str:
    """What `dvc …` prints; its bars go to the terminal. Raises ArtifactError with DVC's reason."""
    program = shutil.which("dvc")
    if importlib.util.find_spec("dvc") is None and program is None:
        raise ArtifactError("DVC is not installed; `make setup`, or pip install 'dvc[s3,ssh]'")
    command = [program] if program else [sys.executable, "-m", "dvc"]
    visible = sys.stderr.isatty()
    errors = None if visible else subprocess.PIPE
    done = subprocess.run(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=errors, text=True, check=False
    )
    if done.returncode:
        lines = [line for line in (done.stderr or "").splitlines() if line.strip()]
        found = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        reason = " ".join(found or lines[-1:]) or f"exit status {done.returncode}"
        reason = "as it prints above" if visible else reason
        raise ArtifactError(
            f"dvc {arguments[0]}: failed ({reason}); fix that, then the same command continues"
        )
    return done.stdout


def _changes(folders: Sequence[str]) -> Changes:
    """How tracked runs differ from what is tracked; raises ArtifactError."""
    if not folders:
        return Changes()
    status = json.loads(run_dvc("data", "status", "--granular", "--json", *folders))
    kinds = [
        status.get("uncommitted", {}).get(kind, ()) for kind in ("added", "modified", "deleted")
    ]
    known = Changes(*(frozenset(p for p in paths if not p.endswith("/")) for paths in kinds))
    # A folder that differs while none of its files does: its list of files cannot be had here.
    folders_differing = {p.rstrip("/") for paths in kinds for p in paths if p.endswith("/")}
    unknown = {p for p in folders_differing if not known.is_new(p) and not known.lacks(p)}
    return Changes(known.added, known.modified, known.deleted, frozenset(unknown))


@contextmanager
def _exclusive(experiments: ExperimentSet) -> Iterator[None]:
    """One `cda` at a time among the tracked runs of a versioned scale; raises CdaError."""
    scale = experiments.settings.scale
    if scale not in VERSIONED:
        names = " and ".join(VERSIONED)
        message = f"artifacts of scale {scale} are not versioned, only those of {names}"
        raise ConfigError(f"config key scale: {message}")
    if not HOME.is_dir():
        raise ArtifactError(f"{HOME}: does not exist; work in the top folder of a git clone")
    lock = HOME / "tmp" / "cda.lock"
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ArtifactError(
                f"{lock}: another cda track or cda pull runs here; wait for its end, then try again"
            ) from None
        yield


# Tracking


def _finished(experiments: ExperimentSet, run: Run) -> list[str]:
    """Outputs of a run's finished jobs; none of a run with half of its files."""
    folder = Path(experiments.layout.run_folder(run))
    entries = sorted(str(path) for name in ENTRIES[run.stage] for path in folder.glob(name))
    if run.stage == "recover":
        return [entry for entry in entries if Path(entry).name.removeprefix("part-").isdigit()]
    return entries if len(entries) == len(ENTRIES[run.stage]) else []


def _size(path: Path) -> int:
    """Bytes of a file or of the files in a folder, as DVC counts them."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(f.stat().st_size for f in files if f.is_file() and not f.name.startswith("."))


def track(experiments: ExperimentSet, runs: Sequence[Run]) -> None:
    """Track the finished outputs of `runs` that are not tracked yet; raises CdaError."""
    with _exclusive(experiments):
        outputs = {
            experiments.layout.run_folder(run): _finished(experiments, run)
            for run in runs
            if run.stage in ENTRIES
        }
        outputs = {folder: entries for folder, entries in outputs.items() if entries}
        known = {folder: found for folder in outputs if (found := tracked(folder)) is not None}
        changes = _changes(list(known))
        new = {f: _new(f, entries, f in known, changes) for f, entries in outputs.items()}
        new = {folder: entries for folder, entries in new.items() if entries}
        sizes = {entry: _size(Path(entry)) for entries in outputs.values() for entry in entries}
        total = sum(sizes[entry] for entries in new.values() for entry in entries)
        if new:
            log(f"Hashing {len(new)} runs, {human_bytes(total)}.")
            added = [new[folder] if folder in known else [folder] for folder in new]
            run_dvc("add", *(path for paths in added for path in paths))
        for folder, entries in outputs.items():
            if folder in new or not known[folder].is_noted:
                _note_sizes(folder, {Path(entry).name: sizes[entry] for entry in entries})
    for folder, entries in new.items():
        names = ", ".join(Path(entry).name for entry in entries)
        print(f"tracked {folder}: {names} ({human_bytes(sum(map(sizes.__getitem__, entries)))})")
    print(f"{len(new)} runs tracked, {human_bytes(total)}; {len(outputs) - len(new)} were already.")
    if new:
        pattern = f"{experiments.layout.artifacts}/**/*.dvc"
        print(f"To publish them: dvc push; git add '{pattern}' config; git commit")


def _new(folder: str, entries: list[str], known: bool, changes: Changes) -> list[str]:
    """The entries to add; raises ArtifactError where adding would drop something."""
    if not known:
        return entries
    if folder in changes.unknown:
        raise ArtifactError(
            f"{folder}.dvc: its list of files is neither in DVC's cache nor on a configured remote; "
            "dvc remote add --local --default NAME URL, then the same command again"
        )
    new = [entry for entry in entries if changes.is_new(entry)]
    for entry in new:
        if changes.lacks(entry):
            raise ArtifactError(
                f"{entry}: lacks tracked files and has others; remove it and pull it, or make it "
                "again, before it is tracked"
            )
    return new


# Pulling


@dataclass
class Needs:
    """What the jobs of a target read, by path: tracked, here untracked, or neither."""

    tracked: dict[str, Tracked] = field(default_factory=dict)
    here: set[str] = field(default_factory=set)
    absent: dict[str, Run] = field(default_factory=dict)


def find_needs(experiments: ExperimentSet, targets: Sequence[Job], everything: bool) -> Needs:
    """What the missing of `targets` are made from; with `everything`, all of them, to the models.

    Below a job whose output is here or tracked nothing further is needed.
    """
    graph, layout = graph_of(experiments), experiments.layout
    present = experiments.settings.cells == "present"
    measuring = [job for job in targets if job.run.stage in MEASURING]
    wanted = [job for job in measuring if everything or not (present or job.is_done())]
    start = [one for job in wanted for one in graph.inputs(job)]
    start += [job for job in targets if job.run.stage not in MEASURING]

    def path_of(job: Job) -> str:
        return job.output if job.run.stage == "recover" else layout.run_folder(job.run)

    def known(job: Job) -> Tracked | None:
        found = tracked(layout.run_folder(job.run))
        return found if found is not None and found.has(path_of(job)) else None

    def descends(job: Job) -> bool:
        return everything or not (job.is_done() or known(job))

    needs = Needs()
    for job in graph.walk(start, descends):
        if job.run.stage not in ENTRIES:
            continue
        if (found := known(job)) is not None:
            needs.tracked[path_of(job)] = found
        elif job.is_done():
            needs.here.add(path_of(job))
        else:
            needs.absent[path_of(job)] = job.run
    return needs


def pull(
    experiments: ExperimentSet,
    targets: Sequence[Job],
    *,
    everything: bool = False,
    dry: bool = False,
) -> None:
    """Print and bring what `targets` need of the tracked runs; raises CdaError."""
    with _exclusive(experiments):
        needs = find_needs(experiments, targets, everything)
        here = [path for path in needs.tracked if Path(path).exists()]
        changes = _changes(list(dict.fromkeys(needs.tracked[path].folder for path in here)))
        bring = [path for path in needs.tracked if path not in here or changes.lacks(path)]
        total = sum(needs.tracked[path].bytes_of(path) for path in bring)
        rest = len(needs.tracked) - len(bring) + len(needs.here)
        print(f"{len(bring)} outputs to bring, {human_bytes(total)}; {rest} are here.")
        for run in {run.id: run for run in needs.absent.values()}.values():
            jobs = sum(one.id == run.id for one in needs.absent.values())
            print(f"not tracked, would be computed: {run.stage} {run.dataset} {run.id} ({jobs})")
        if not (needs.tracked or needs.absent or needs.here):
            print("All measurements are here, so nothing else is needed; --all brings it anyway.")
        if dry or not bring:
            return
        free = shutil.disk_usage(".").free
        if free < total:
            raise ArtifactError(
                f"{Path.cwd()}: {human_bytes(free)} free, {human_bytes(total)} to come; make room, "
                "or pull a smaller target"
            )
        for path in bring:
            if changes.is_new(path):
                raise ArtifactError(
                    f"{path}: lacks tracked files and has others; remove it, then pull again"
                )
        run_dvc("pull", *bring)
