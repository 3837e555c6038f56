"""`cda unlock`: what it takes for a killed snakemake's, and what it leaves alone."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cda.cli import main
from cda.errors import CdaError
from cda.pipeline import unlock as module
from cda.pipeline.unlock import APART, unlock

RUN = "2069280f-e7a4-4197-818c-2528af3a8c81"
LOCK = Path(".snakemake/locks/0.input.lock")
MARK = Path(".snakemake/incomplete/cGFydC0w")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workflow folder whose snakemake was killed, on a machine without SLURM."""
    place = tmp_path / "flow"
    for path in (LOCK, MARK):
        (place / path).parent.mkdir(parents=True)
        (place / path).write_text("part-0\n")
    monkeypatch.chdir(place)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return place


@pytest.fixture
def slurm(tmp_path: Path) -> Callable[..., None]:
    """Stand-ins for SLURM's commands: jobs are in the queue until they are cancelled."""

    def made(*lines: str, node: str = socket.gethostname(), fails: bool = False) -> None:
        queue, shell = tmp_path / "queue", shutil.which("sh", path="/bin:/usr/bin")
        queue.write_text("".join(f"{line}\n" for line in lines))
        shown = "".join(
            f"JobId={line.split(APART)[0]} JobName=x AllocNode:Sid={node}:1 WorkDir=/\n"
            for line in lines
        )
        (tmp_path / "shown").write_text(shown)
        programs = {
            "squeue": "echo 'slurm_load_jobs error: Unable to contact' >&2; exit 1"
            if fails
            else f"/bin/cat {queue}",
            "scontrol": f"/bin/cat {tmp_path / 'shown'}",
            "scancel": f'echo "$@" >> {tmp_path}/cancelled; for job; do /bin/sed -i '
            f'"/^$job{APART}/d" {queue}; done',
        }
        for name, text in programs.items():
            path = tmp_path / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!{shell}\n{text}\n")
            path.chmod(0o755)

    return made


def job(
    number: int, place: Path, name: str = RUN, comment: str = "rule_recover_wildcards_part-0"
) -> str:
    return APART.join((str(number), name, comment, str(place)))


def cancelled(folder: Path) -> list[str]:
    path = folder.parent / "cancelled"
    return path.read_text().split() if path.exists() else []


def test_without_slurm_the_lock_goes(folder):
    told = unlock(folder)
    assert (
        told == f"{folder}: nothing was left in SLURM, took off the lock, forgot 1 marks of "
        "unfinished outputs"
    )
    assert not LOCK.exists()
    assert not MARK.exists()
    assert unlock(folder) == f"{folder}: nothing was left in SLURM, there was no lock"


def test_this_folder_s_jobs_are_cancelled_and_no_others(folder, slurm):
    ours = [job(3, folder), job(7, folder, name=f"mine_{RUN}"), job(7, folder, name=f"mine_{RUN}")]
    others = [
        job(4, folder.parent / "elsewhere"),
        job(5, folder / "below"),
        job(6, folder, name="interactive"),
        job(8, folder, comment="(null)"),
    ]
    slurm(*ours, *others)
    assert unlock(folder).startswith(
        f"{folder}: cancelled what was left in SLURM (3, 7), took off the lock"
    )
    assert cancelled(folder) == ["--quiet", "3", "7"]
    assert not LOCK.exists()


def test_a_folder_reached_by_another_path_is_this_folder(folder, slurm):
    link = folder.parent / "link"
    link.symlink_to(folder)
    slurm(job(3, link))
    unlock(folder)
    assert cancelled(folder) == ["--quiet", "3"]


def refused(folder: Path, match: str) -> None:
    with pytest.raises(CdaError, match=match) as caught:
        unlock(folder)
    assert "\n" not in str(caught.value)
    assert cancelled(folder) == []
    assert LOCK.exists()
    assert MARK.exists()


def test_a_living_snakemake_is_not_unlocked(folder, slurm):
    slurm(job(3, folder))
    program = folder.parent / "snakemake"
    program.write_text("import time\nprint('here', flush=True)\ntime.sleep(600)\n")
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE) as alive:
        assert alive.stdout is not None
        alive.stdout.readline()
        try:
            refused(
                folder,
                rf"snakemake is running here \(process {alive.pid}\); wait for it, or end it first",
            )
        finally:
            alive.kill()
    unlock(folder)
    assert not LOCK.exists()


@pytest.mark.parametrize(
    ("words", "head"),
    [
        (["/env/bin/python", "/env/bin/snakemake", "--profile", "slurm"], True),
        (["/env/bin/python", "-m", "snakemake", "tables"], True),
        (["snakemake", "tables"], True),
        (
            ["/env/bin/python", "-m", "snakemake", "--target-jobs", "recover:", "--mode", "remote"],
            False,
        ),
        (["vim", "docs/snakemake"], False),
        (["grep", "-r", "snakemake"], False),
        ([""], False),
    ],
)
def test_a_head_is_told_from_its_jobs(words, head):
    assert module._is_head(words) == head


def test_slurm_that_does_not_answer_leaves_all_as_it_is(folder, slurm):
    slurm(fails=True)
    refused(folder, "squeue: slurm_load_jobs error: Unable to contact; nothing is unlocked")


def test_jobs_that_another_host_submitted_are_left_to_it(folder, slurm):
    slurm(job(3, folder), node="login2")
    refused(
        folder,
        "its SLURM jobs were submitted from login2, where snakemake may be running; run cda "
        "unlock there",
    )


def test_jobs_that_do_not_end_keep_the_lock(folder, slurm, monkeypatch):
    slurm(job(3, folder))
    (folder.parent / "bin" / "scancel").write_text("#!/bin/sh\n")
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    with pytest.raises(
        CdaError, match="SLURM jobs 3 do not end; see squeue, then run cda unlock again"
    ):
        unlock(folder)
    assert LOCK.exists()


def test_the_command_says_one_line(folder, capsys):
    assert main(["unlock"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{Path.cwd()}: nothing was left in SLURM, took off the lock")
