"""Which code, versions and command made a result: part of the provenance of every stage's JSON.

Nothing here enters a run's id or makes a result stale. It leads from a number back to the commit,
the sources and the libraries that measured it.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

PACKAGE = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "torchvision", "numpy", "pillow")
GIT_SECONDS = 2.0
# a stage's or a table's own output does not make a clone dirty
OUTPUTS = ("results", "artifacts", "dvc.lock")


@cache
def software(cuda: bool) -> dict[str, Any]:
    """Python, library versions, source digest, commit, lock digest and command of this process.

    `cuda` adds the versions of CUDA, cuDNN and the driver. Found once a process.
    """
    clone = PACKAGE.parents[1]
    return {
        "python": platform.python_version(),
        "versions": library_versions() | (cuda_versions() if cuda else {}),
        "code": source_digest(PACKAGE),
        **commit_of(clone),
        "lock": lock_digest(clone / "requirements.lock"),
        "command": shlex.join(["cda", *sys.argv[1:]]),
    }


def library_versions() -> dict[str, str]:
    """Versions of the libraries that compute; torchvision only where it is installed."""
    versions = {}
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def cuda_versions() -> dict[str, str | None]:
    """Versions of CUDA and cuDNN that torch was built with, and of the driver."""
    cudnn = torch.backends.cudnn.version()
    return {
        "cuda": torch.version.cuda,
        "cudnn": None if cudnn is None else str(cudnn),
        "driver": _driver_version(),
    }


def _driver_version() -> str | None:
    """The NVIDIA driver's version, from its management library."""
    with suppress(OSError, AttributeError):
        nvml, version = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.create_string_buffer(80)
        if nvml.nvmlInit_v2() == 0 and nvml.nvmlSystemGetDriverVersion(version, 80) == 0:
            return version.value.decode()
    return None


def cpu_name() -> str:
    """The processor's model and its number of logical cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()} ({os.cpu_count()} logical cores)"


def source_digest(package: Path) -> str:
    """SHA-256 of the names and contents of a package's Python and C files, first 16 hex digits."""
    sha = hashlib.sha256()
    sources = [path for path in package.rglob("*") if path.suffix in (".py", ".c")]
    for path in sorted(sources):
        sha.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()[:16]


def lock_digest(path: Path) -> str | None:
    """SHA-256 of the lock file, first 16 hex digits; None if there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None


def commit_of(clone: Path) -> dict[str, Any]:
    """`commit` of the clone and whether tracked files were changed (`dirty`).

    Without a commit both are None, and `commit_missing` is the reason. A change of what stages and
    tables write (`OUTPUTS`) does not count.
    """
    commit, dirty, reason = None, None, "not a git checkout"
    if (clone / ".git").exists():
        try:
            commit, dirty = _git_status(clone)
            reason = "no commit yet"
        except FileNotFoundError:
            reason = "git is not installed"
        except (OSError, subprocess.SubprocessError, LookupError):
            reason = "git failed"
    found = {"commit": commit, "dirty": dirty}
    return found if commit else {"commit": None, "dirty": None, "commit_missing": reason}


def _git_status(clone: Path) -> tuple[str | None, bool]:
    """Commit and dirtiness by one call of git, which must neither lock nor look elsewhere."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    status = ["status", "--porcelain=v2", "--branch", "--untracked-files=no", "--", "."]
    environment["GIT_CEILING_DIRECTORIES"] = str(clone.parent)
    output = subprocess.run(
        ["git", "--no-optional-locks", *status, *(f":(exclude){path}" for path in OUTPUTS)],
        cwd=clone, env=environment, capture_output=True, text=True, check=True, timeout=GIT_SECONDS,
    ).stdout  # fmt: skip
    lines = output.splitlines()
    (commit,) = (line.split()[-1] for line in lines if line.startswith("# branch.oid"))
    changed = any(not line.startswith("#") for line in lines)
    return (None if commit == "(initial)" else commit), changed
