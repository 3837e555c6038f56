"""DVC as it is used here: one tracked output per run, its `.dvc` file beside the run's folder.

A `.dvc` file also notes the bytes of each entry of the folder (`meta`, which DVC keeps), so that a
pull can say what it brings before it asks any remote. DVC is called as a program, one call for many
runs.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cda.errors import ArtifactError
from cda.files import write_text

HOME = Path(".dvc")


@dataclass(frozen=True)
class Tracked:
    """A run as its `.dvc` file tells.

    The digest and bytes of its folder, and of its entries as far as noted.
    """

    folder: str
    md5: str
    size: int
    entries: Mapping[str, int]

    @property
    def noted(self) -> bool:
        """Whether the noted bytes are those of all entries.

        Not after a plain `dvc add`, or a kill before they were.
        """
        return sum(self.entries.values()) == self.size

    def bytes_of(self, path: str) -> int:
        """Bytes of the folder, or of an entry of it.

        Of one that is not noted those of the folder, at most.
        """
        return self.size if path == self.folder else self.entries.get(Path(path).name, self.size)

    def has(self, path: str) -> bool:
        """Whether an entry is tracked; where not all are noted, as far as anybody can tell."""
        return path == self.folder or not self.noted or Path(path).name in self.entries


@dataclass(frozen=True)
class Changes:
    """How the files of tracked runs differ from what is tracked: paths of files."""

    added: frozenset[str]
    modified: frozenset[str]
    deleted: frozenset[str]
    unknown: frozenset[str] = frozenset()  # folders of which nobody here knows what is tracked

    @staticmethod
    def _below(paths: frozenset[str], path: str) -> bool:
        return any(one == path or one.startswith(f"{path}/") for one in paths)

    def new(self, path: str) -> bool:
        """Whether it or something below it is not what is tracked."""
        return self._below(self.added | self.modified, path)

    def lacks(self, path: str) -> bool:
        """Whether it or something below it is tracked and not there."""
        return self._below(self.deleted, path)


def file_of(folder: str) -> Path:
    """The `.dvc` file of a run's folder."""
    return Path(f"{folder}.dvc")


def _parsed(folder: str) -> dict[str, Any]:
    file = file_of(folder)
    try:
        told = yaml.safe_load(file.read_text(encoding="utf-8"))
        (out,) = told["outs"]
        int(out.get("size", 0)), str(out["md5"]), dict((told.get("meta") or {}).get("bytes", {}))
    except (OSError, UnicodeError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError):
        raise ArtifactError(
            f"{file}: is no DVC file of a run; take it from git: git checkout {file}"
        ) from None
    return dict(told)


def tracked(folder: str) -> Tracked | None:
    """What is tracked of a run, or None; raises ArtifactError for a damaged `.dvc` file."""
    if not file_of(folder).is_file():
        return None
    told = _parsed(folder)
    out, noted = told["outs"][0], (told.get("meta") or {}).get("bytes", {})
    return Tracked(
        folder,
        str(out["md5"]),
        int(out.get("size", 0)),
        {str(name): int(size) for name, size in noted.items()},
    )


def note_sizes(folder: str, entries: Mapping[str, int]) -> None:
    """Write the bytes of entries into the run's `.dvc` file, keeping those of others.

    Raises ArtifactError.
    """
    told = _parsed(folder)
    meta, out = told.get("meta") or {}, told["outs"][0]
    noted = {**meta.get("bytes", {}), **entries}
    if noted != meta.get("bytes") or "size" not in out:
        out.setdefault("size", sum(noted.values()))  # DVC leaves it out where a part is replaced
        told["meta"] = meta | {"bytes": dict(sorted(noted.items()))}
        write_text(file_of(folder), yaml.safe_dump(told, sort_keys=False))


def _program() -> list[str]:
    if importlib.util.find_spec("dvc") is not None:
        return [sys.executable, "-m", "dvc"]
    program = shutil.which("dvc")
    if program is None:
        raise ArtifactError("DVC is not installed; `make setup`, or pip install 'dvc[s3,ssh]'")
    return [program]


def run_dvc(*arguments: str) -> str:
    """What `dvc …` printed; its bars go to the terminal.

    Raises ArtifactError with what DVC said was wrong.
    """
    program = _program()
    if not HOME.is_dir():
        raise ArtifactError(
            f"{HOME}: there is none here; work in a git clone of the project, in its top folder"
        )
    human_bytes = sys.stderr.isatty()
    done = subprocess.run(
        [*program, *arguments],
        stdout=subprocess.PIPE,
        stderr=None if human_bytes else subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line for line in (done.stderr or "").splitlines() if line.strip()]
        errors = " ".join(line for line in lines if line.startswith("ERROR: ")) or " ".join(
            lines[-1:]
        )
        said = (
            "as it says above"
            if human_bytes
            else errors.removeprefix("ERROR: ") or f"exit status {done.returncode}"
        )
        raise ArtifactError(
            f"dvc {arguments[0]}: failed ({said}); mend that, then the same again: it goes on"
        )
    return done.stdout


def changes(folders: Sequence[str]) -> Changes:
    """How tracked runs differ from what is tracked; raises ArtifactError."""
    if not folders:
        return Changes(frozenset(), frozenset(), frozenset())
    told = json.loads(run_dvc("data", "status", "--granular", "--json", *folders)).get(
        "uncommitted", {}
    )
    added, modified, deleted = (
        frozenset(told.get(kind, ())) for kind in ("added", "modified", "deleted")
    )
    # A folder that differs while none of its files does: its list of files is neither in the cache
    # nor on a remote.
    known = Changes(
        *(
            frozenset(path for path in paths if not path.endswith("/"))
            for paths in (added, modified, deleted)
        )
    )
    differing = {path.rstrip("/") for path in added | modified | deleted if path.endswith("/")}
    unknown = frozenset(path for path in differing if not known.new(path) and not known.lacks(path))
    return Changes(known.added, known.modified, known.deleted, unknown)


def require_remote() -> None:
    """Raise ArtifactError unless a default remote is configured."""
    _program()
    try:
        named = run_dvc("config", "core.remote").strip()
    except ArtifactError:
        named = ""
    if not named:
        raise ArtifactError(
            f"{HOME}/config.local: names no remote to pull from; dvc remote add --local "
            "--default NAME URL "
            "(docs/artifacts.md), then the same command again"
        )


@contextmanager
def exclusive() -> Iterator[None]:
    """One `cda` at a time among the tracked runs; raises ArtifactError if another is at work."""
    if not HOME.is_dir():
        raise ArtifactError(
            f"{HOME}: there is none here; work in a git clone of the project, in its top folder"
        )
    lock = HOME / "tmp" / "cda.lock"
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ArtifactError(
                f"{lock}: another cda tracks or pulls here; wait for its end, then try again"
            ) from None
        yield


def size_of(path: Path) -> int:
    """Bytes of a file or of the files in a folder, as DVC counts them."""
    if path.is_file():
        return path.stat().st_size
    return sum(
        file.stat().st_size
        for file in path.rglob("*")
        if file.is_file() and not file.name.startswith(".")
    )


def human_bytes(count: int) -> str:
    """Bytes as people read them.

    >>> [human_bytes(count) for count in (999, 12_345, 2_500_000_000)]
    ['999 B', '12.3 kB', '2.5 GB']
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
