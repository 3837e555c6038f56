"""What leads from a result back to the code that made it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cda.config.settings import Runtime
from cda.engine import provenance
from cda.engine.device import open_device
from cda.engine.provenance import commit_of, cuda_versions, lock_digest, software, source_digest

ROOT = Path(__file__).parents[3]


def test_it_has_the_place_the_time_the_versions_and_the_code(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/cda", "recover", "--run", "a b"])
    software.cache_clear()
    found = open_device(Runtime(device="cpu", cpu_threads=1)).provenance()
    software.cache_clear()
    assert found.keys() == {
        "host", "device", "precision", "compiled", "cpu_threads", "seconds", "peak_memory_bytes",
        "threads", "python", "versions", "code", "commit", "dirty", "lock", "command",
    } | ({"commit_missing"} if found["commit"] is None else set())  # fmt: skip
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert found["versions"].keys() >= {"numpy", "pillow"}
    assert found["peak_memory_bytes"] > 1_000_000
    assert (found["precision"], found["threads"]) == ("fp32", 1)
    assert found["command"] == "cda recover --run 'a b'"


def test_the_digests_are_of_this_packages_sources_and_the_lock_beside_it():
    found = software(False)
    assert found["code"] == source_digest(ROOT / "src" / "cda")
    assert found["lock"] == lock_digest(ROOT / "requirements.lock")
    assert {len(found["code"]), len(found["lock"])} == {16}
    assert lock_digest(ROOT / "no.lock") is None


@pytest.mark.parametrize(
    ("name", "counts"),
    [("engine/kernels/winograd.c", True), ("method/losses.py", True), ("notes.txt", False)],
)
def test_every_source_file_counts_in_the_digest(name, counts, tmp_path):
    package = tmp_path / "cda"
    shutil.copytree(ROOT / "src" / "cda", package)
    before = source_digest(package)
    assert before == source_digest(ROOT / "src" / "cda")
    with (package / name).open("a") as file:
        file.write(" ")
    assert (source_digest(package) != before) == counts


def test_a_moved_file_counts_too(tmp_path):
    (tmp_path / "a.py").write_text("x = 1")
    before = source_digest(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert source_digest(tmp_path) != before


def git(clone: Path, *arguments: str) -> str:
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", *author, *arguments]
    return subprocess.run(command, cwd=clone, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of one commit, whose results are in git."""
    made = tmp_path / "clone"
    (made / "results").mkdir(parents=True)
    (made / "code.py").write_text("x = 1")
    (made / "results" / "table.csv").write_text("1")
    git(made, "init", "-q")
    git(made, "add", ".")
    git(made, "commit", "-qm", "first")
    return made


def test_a_clone_has_a_commit_wherever_the_call_comes_from(clone, tmp_path, monkeypatch):
    head = git(clone, "rev-parse", "HEAD").strip()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert commit_of(clone) == {"commit": head, "dirty": False}


@pytest.mark.parametrize(
    ("name", "dirty"), [("code.py", True), ("results/table.csv", False), ("untracked.py", False)]
)
def test_a_changed_tracked_file_makes_it_dirty_unless_it_is_output(clone, name, dirty):
    (clone / name).write_text("x = 2")
    assert commit_of(clone)["dirty"] == dirty


def missing(reason: str) -> dict[str, Any]:
    return {"commit": None, "dirty": None, "commit_missing": reason}


def test_without_a_commit_the_reason_is_there(clone, tmp_path, monkeypatch):
    assert commit_of(tmp_path) == missing("not a git checkout")
    git(tmp_path, "init", "-q")
    assert commit_of(tmp_path) == missing("no commit yet")
    shutil.rmtree(clone / ".git" / "objects")
    (clone / ".git" / "HEAD").write_text("nonsense")
    assert commit_of(clone) == missing("git failed")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert commit_of(tmp_path) == missing("git is not installed")


def test_a_git_that_hangs_costs_little(clone, tmp_path, monkeypatch):
    hanging = tmp_path / "bin" / "git"
    hanging.parent.mkdir()
    hanging.write_text("#!/bin/sh\nexec sleep 60\n")
    hanging.chmod(0o755)
    monkeypatch.setenv("PATH", f"{hanging.parent}:/usr/bin:/bin")
    monkeypatch.setattr(provenance, "GIT_SECONDS", 0.1)
    assert commit_of(clone) == missing("git failed")


def test_git_is_called_once_a_process(monkeypatch):
    calls: list[Path] = []
    monkeypatch.setattr(provenance, "commit_of", lambda clone: calls.append(clone) or {})
    software.cache_clear()
    device = open_device(Runtime(device="cpu", cpu_threads=1))
    device.provenance(), device.provenance()
    software.cache_clear()
    assert calls == [ROOT]


class Nvml:
    """A stand-in for NVIDIA's management library, with the names and results of its C functions."""

    def __init__(self, _name: str) -> None:
        assert _name == "libnvidia-ml.so.1"

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlSystemGetDriverVersion(self, version: Any, length: int) -> int:
        version.value = b"550.54.15"
        return 0 if length == 80 else 1


def test_a_gpus_results_have_the_versions_of_cuda_cudnn_and_the_driver(monkeypatch):
    monkeypatch.setattr(provenance.ctypes, "CDLL", Nvml)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    found = cuda_versions()
    assert found == {"cuda": torch.version.cuda, "cudnn": "91002", "driver": "550.54.15"}
