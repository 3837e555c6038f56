"""Artifacts in DVC: one tracked output per run, its `.dvc` file beside the run's folder.

`track` adds finished runs, `pull` brings what tables and figures still need. A `.dvc` file also
records the bytes of each entry of its folder (under `meta`, which DVC preserves). With them a pull
prints sizes before it contacts a remote, and a run grows part by part: adding its folder would drop
the parts that were never pulled here. DVC is called as a program.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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
    "expert": ("part-*",),
    "distill": ("part-0",),
    "relabel": ("labels",),
}
IN_PARTS = ("recover", "expert")  # stages whose runs grow part by part


@dataclass(frozen=True)
class Tracked:
    """A run as its `.dvc` file describes it: bytes of its folder and of the recorded entries."""

    size: int
    entries: Mapping[str, int]

    @property
    def is_recorded(self) -> bool:
        """Whether all entries are recorded; after a plain `dvc add`, or a kill, they are not."""
        return sum(self.entries.values()) == self.size


@dataclass(frozen=True)
class Changes:
    """How tracked runs differ from what is tracked: paths of files, and of folders."""

    new: frozenset[str] = frozenset()  # files that were added or modified
    missing: frozenset[str] = frozenset()  # files that are tracked and not here
    unknown: frozenset[str] = frozenset()  # folders whose list of files DVC cannot read here

    def require_complete(self, path: str) -> None:
        """Raise ArtifactError if new files are at `path` where tracked ones are missing."""
        if has_below(self.missing, path) and has_below(self.new, path):
            fix = "remove it, then pull it or make it again"
            raise ArtifactError(f"{path}: lacks tracked files and has others; {fix}")


def has_below(files: Iterable[str], path: str) -> bool:
    """Whether one of the files is `path` or lies below it."""
    return any(f"{file}/".startswith(f"{path}/") for file in files)


def tracked(folder: str) -> Tracked | None:
    """A run's `.dvc` file, or None if it has none; raises ArtifactError if the file is damaged."""
    file = Path(f"{folder}.dvc")
    if not file.is_file():
        return None
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        (out,) = content["outs"]
        recorded = (content.get("meta") or {}).get("bytes", {})
        entries = {str(name): int(size) for name, size in recorded.items()}
        str(out["md5"])
        return Tracked(int(out.get("size", 0)), entries)
    except (OSError, UnicodeError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError):
        raise ArtifactError(
            f"{file}: is no DVC file of a run; take it from git: git checkout {file}"
        ) from None


def _record_sizes(folder: str, sizes: Mapping[str, int]) -> None:
    """Write the bytes of entries into the run's `.dvc` file, beside those of other entries."""
    file = Path(f"{folder}.dvc")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    meta, out = content.get("meta") or {}, content["outs"][0]
    recorded = {**meta.get("bytes", {}), **sizes}
    if recorded != meta.get("bytes") or "size" not in out:
        out.setdefault("size", sum(recorded.values()))  # `dvc add` of one part leaves it out
        content["meta"] = meta | {"bytes": dict(sorted(recorded.items()))}
        write_text(file, yaml.safe_dump(content, sort_keys=False))


def run_dvc(*arguments: str) -> str:
    """Run `dvc …` and return its output; raises ArtifactError with DVC's reason if it fails.

    Its progress bars go to the terminal.
    """
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


def _changes(folders: Collection[str]) -> Changes:
    """How tracked runs differ from what is tracked; raises ArtifactError."""
    if not folders:
        return Changes()
    status = json.loads(run_dvc("data", "status", "--granular", "--json", *sorted(folders)))
    found = status.get("uncommitted", {})
    paths = [*found.get("added", ()), *found.get("modified", ())], found.get("deleted", ())
    known = Changes(*(frozenset(p for p in some if not p.endswith("/")) for some in paths))
    # If a folder differs and none of its files does, its list of files cannot be read.
    differing = {p.rstrip("/") for some in paths for p in some if p.endswith("/")}
    unknown = {p for p in differing if not has_below(known.new | known.missing, p)}
    return Changes(known.new, known.missing, frozenset(unknown))


@contextmanager
def _exclusive(experiments: ExperimentSet) -> Iterator[None]:
    """One `cda` at a time among the tracked runs of a versioned scale; raises CdaError."""
    scale = experiments.settings.scale
    if scale not in VERSIONED:
        names = " and ".join(VERSIONED)
        message = f"artifacts of scale {scale} are not versioned, only those of {names}"
        raise ConfigError(f"config key scale: {message}; use one of these")
    if not HOME.is_dir():
        raise ArtifactError(f"{HOME}: does not exist; work in the top folder of a git clone")
    lock = HOME / "tmp" / "cda.lock"
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            reason = "another cda track or cda pull runs here; wait for its end, then try again"
            raise ArtifactError(f"{lock}: {reason}") from None
        except OSError:  # a file system without locks; DVC has one of its own
            pass
        yield


def _finished(experiments: ExperimentSet, run: Run) -> list[str]:
    """Entries of a run's finished jobs; none of a model or store that lacks a file."""
    folder = Path(experiments.layout.run_folder(run))
    entries = sorted(str(path) for name in ENTRIES[run.stage] for path in folder.glob(name))
    if run.stage in IN_PARTS:
        return [entry for entry in entries if Path(entry).name.removeprefix("part-").isdigit()]
    return entries if len(entries) == len(ENTRIES[run.stage]) else []


def _size(path: Path) -> int:
    """Bytes of a file or of the files in a folder, as DVC counts them."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(f.stat().st_size for f in files if f.is_file() and not f.name.startswith("."))


def track(experiments: ExperimentSet, runs: Sequence[Run]) -> None:
    """Track the finished outputs of `runs` that are not tracked yet; raises CdaError."""
    with _exclusive(experiments):
        versioned = [run for run in runs if run.stage in ENTRIES]
        found = {experiments.layout.run_folder(r): _finished(experiments, r) for r in versioned}
        outputs = {folder: entries for folder, entries in found.items() if entries}
        known = {folder: one for folder in outputs if (one := tracked(folder)) is not None}
        changes = _changes(known)
        new = {f: _untracked(f, changes, e) if f in known else e for f, e in outputs.items()}
        new = {folder: entries for folder, entries in new.items() if entries}
        sizes = {entry: _size(Path(entry)) for entries in outputs.values() for entry in entries}
        total = sum(sizes[entry] for entries in new.values() for entry in entries)
        if new:
            log(f"Hashing {len(new)} runs, {human_bytes(total)}.")
            added = [new[folder] if folder in known else [folder] for folder in new]
            run_dvc("add", *(path for paths in added for path in paths))
        for folder, entries in outputs.items():
            if folder in new or not known[folder].is_recorded:
                _record_sizes(folder, {Path(entry).name: sizes[entry] for entry in entries})
    for folder, entries in new.items():
        names = ", ".join(Path(entry).name for entry in entries)
        print(f"tracked {folder}: {names} ({human_bytes(sum(map(sizes.__getitem__, entries)))})")
    print(f"{len(new)} runs tracked, {human_bytes(total)}; {len(outputs) - len(new)} were already.")
    if new:
        pattern = f"{experiments.layout.artifacts}/**/*.dvc"
        paths = f"'{pattern}' config {experiments.layout.results}"
        print(f"To publish them: dvc push; git add {paths}; git commit")


def _untracked(folder: str, changes: Changes, entries: Sequence[str]) -> list[str]:
    """The entries of a tracked run to add; raises ArtifactError where that would drop files."""
    if folder in changes.unknown:
        reason = "its list of files is neither in DVC's cache nor on a configured remote"
        fix = "dvc remote add --local --default NAME URL, then the same command again"
        raise ArtifactError(f"{folder}.dvc: {reason}; {fix}")
    new = [entry for entry in entries if has_below(changes.new, entry)]
    for entry in new:
        changes.require_complete(entry)
    return new


def find_needs(
    experiments: ExperimentSet, targets: Sequence[Job], everything: bool
) -> dict[str, tuple[Job, Tracked | None]]:
    """What the missing of `targets` are made from: by path, a job and its tracked run if any.

    With `everything` it is what all of them are made from, down to the models. Otherwise nothing
    is needed below a job whose output is here or tracked.
    """
    graph, layout = graph_of(experiments), experiments.layout
    present = experiments.settings.cells == "present"
    measuring = [job for job in targets if job.run.stage in MEASURING]
    wanted = [job for job in measuring if everything or not (present or job.is_done())]
    start = [one for job in wanted for one in graph.inputs(job)]
    start += [job for job in targets if job.run.stage not in MEASURING]

    def path_of(job: Job) -> str:
        return job.output if job.run.stage in IN_PARTS else layout.run_folder(job.run)

    @functools.cache
    def known(job: Job) -> Tracked | None:
        found = tracked(layout.run_folder(job.run))
        if found is None or job.run.stage not in IN_PARTS or not found.is_recorded:
            return found
        return found if Path(job.output).name in found.entries else None

    def is_read(job: Job) -> bool:
        """Whether a job has to run; one whose part is here and lacks shards adds them."""
        partial = job.run.stage == "recover" and Path(job.output).exists()
        return not (job.is_done() or (known(job) and not partial))

    jobs = graph.walk(start, lambda job: everything or is_read(job))
    return {path_of(job): (job, known(job)) for job in jobs if job.run.stage in ENTRIES}


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
        known = {path: found for path, (_, found) in needs.items() if found is not None}
        others = [job for job, found in needs.values() if found is None and not job.is_done()]
        absent = Counter(f"{job.run.stage} {job.run.dataset} {job.run.id}" for job in others)
        here = {path: needs[path][0].run for path in known if Path(path).exists()}
        changes = _changes({experiments.layout.run_folder(run) for run in here.values()})
        bring = [path for path in known if path not in here or has_below(changes.missing, path)]
        sizes = {path: known[path].entries.get(Path(path).name, known[path].size) for path in bring}
        total, present = sum(sizes.values()), len(needs) - len(bring) - len(others)
        print(f"{len(bring)} outputs to bring, {human_bytes(total)}; {present} are here.")
        for name, count in absent.items():
            print(f"not tracked, would be computed: {name} ({count} job{'s' * (count > 1)})")
        if not needs:
            print("All measurements are here, so nothing else is needed; --all brings it anyway.")
        if dry or not bring:
            return
        for path in bring:
            changes.require_complete(path)
        free = shutil.disk_usage(".").free
        if free < total:
            room = f"{human_bytes(free)} free, {human_bytes(total)} to come"
            raise ArtifactError(f"{Path.cwd()}: {room}; make room, or pull a smaller target")
        run_dvc("pull", *bring)
