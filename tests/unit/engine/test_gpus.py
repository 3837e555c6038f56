"""Jobs of one machine take different GPUs.

The names are made up, the processes and locks are real.
"""

import errno
import fcntl
import os
import select
import signal
import subprocess
import sys

import pytest

from cda.engine import gpus
from cda.errors import ConfigError

JOB = """\
import sys
from cda.engine import gpus
print(",".join(gpus.take_gpus(int(sys.argv[1]), sys.argv[2].split(","))), flush=True)
if len(sys.argv) > 3:
    import os
    gpus.pass_on_gpus()
    os.execv(sys.executable, [sys.executable, "-c", "import sys; sys.stdin.read()"])
sys.stdin.read()
"""


def line(stream):
    """The next line that a job says; a job that should speak and does not fails the test."""
    assert select.select([stream], [], [], 30)[0], "a job says nothing"
    return stream.readline().strip()


class Jobs:
    """Processes that take GPUs and hold them until they end."""

    def __init__(self, folder):
        self.environment = {
            name: value for name, value in os.environ.items() if name not in (gpus.VISIBLE, "RANK")
        }
        self.environment |= {"TMPDIR": str(folder)}
        self.started = []

    def start(self, count, names="0,1", *more, **environment):
        command = [sys.executable, "-c", JOB, str(count), names, *more]
        pipes = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        }
        job = subprocess.Popen(command, env=self.environment | environment, **pipes)
        self.started.append(job)
        return job

    def took(self, *arguments, **environment):
        return line(self.start(*arguments, **environment).stdout)


@pytest.fixture
def jobs(tmp_path):
    found = Jobs(tmp_path)
    yield found
    for job in found.started:
        with job:
            job.kill()


@pytest.fixture
def device(monkeypatch, tmp_path):
    """This process on a machine without locks yet."""
    monkeypatch.setattr(gpus, "held_locks", [])
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv(gpus.VISIBLE, "")
    for name in ("RANK", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def test_jobs_take_different_gpus_and_the_third_waits_until_one_ends(jobs):
    first, second = jobs.start(1), jobs.start(1)
    assert {line(first.stdout), line(second.stdout)} == {"0", "1"}
    third = jobs.start(1)
    assert "1 of 2 GPUs wanted, but other jobs hold them: waiting" in line(third.stderr)
    second.send_signal(signal.SIGKILL)
    taken = line(third.stdout)
    second.wait()
    assert taken in ("0", "1")
    first.kill()
    assert first.wait() != 0
    assert jobs.took(1) in {"0", "1"} - {taken}


def test_a_job_of_two_processes_takes_two_or_none(jobs):
    held = jobs.start(1, "0,1,2")
    assert line(held.stdout) == "0"
    assert jobs.took(2, "0,1,2") == "1,2"
    waiting = jobs.start(2, "0,1,2")
    assert "waiting" in line(waiting.stderr)
    held.kill()
    held.wait()
    assert jobs.took(1, "0,1,2") == "0"


def test_what_replaces_the_job_holds_its_gpus(jobs):
    job = jobs.start(2, "0,1", "torchrun")
    assert line(job.stdout) == "0,1"
    waiting = jobs.start(1)
    assert "waiting" in line(waiting.stderr)
    job.stdin.close()  # the program that replaced it ends
    assert line(waiting.stdout) == "0"


def test_gpus_of_two_slurm_jobs_are_numbered_apart(jobs):
    assert jobs.took(1, "0", SLURM_JOB_ID="7") == "0"
    assert jobs.took(1, "0", SLURM_JOB_ID="8") == "0"


@pytest.mark.usefixtures("device")
def test_cuda_sees_what_was_taken_and_nothing_else(monkeypatch):
    monkeypatch.setenv(gpus.VISIBLE, "4, GPU-8a/b")
    assert gpus.take_gpus(1) == ["4"]
    assert os.environ[gpus.VISIBLE] == "4"
    assert gpus.take_gpus(1) == []  # a second call of the same job
    assert os.environ[gpus.VISIBLE] == "4"


@pytest.mark.usefixtures("device")
def test_nothing_is_taken_without_gpus_or_by_a_rank_of_torchrun(monkeypatch):
    assert gpus.take_gpus(1) == []
    assert gpus.take_gpus(0, ["0"]) == []
    monkeypatch.setenv("RANK", "1")
    assert gpus.take_gpus(1, ["0", "1"]) == []
    assert os.environ[gpus.VISIBLE] == ""
    assert not gpus.held_locks


@pytest.mark.usefixtures("device")
def test_more_than_there_are_is_refused():
    with pytest.raises(
        ConfigError, match=r"the job wants 3 GPUs, but there are 2; set runtime.gpus"
    ):
        gpus.take_gpus(3, ["0", "1"])


def test_gpus_are_counted_by_their_device_files(tmp_path, monkeypatch):
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert gpus.visible_gpus(tmp_path) == ["0", "1"]
    monkeypatch.setenv(gpus.VISIBLE, "")
    assert gpus.visible_gpus(tmp_path) == []


# MIG slices


CARDS = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 3g.20gb     Device  0: (UUID: MIG-7c2b3a1f-0a5e-5a53-ae0d-6e4a6a5b1c11)
  MIG 3g.20gb     Device  1: (UUID: MIG-GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77/2/0)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-8a1e4ee2-6b8f-4f0b-8b0e-0f2f5c1d2e3f)
GPU 2: NVIDIA A100-SXM4-40GB (UUID: GPU-0c1d2e3f-6b8f-4f0b-8b0e-8a1e4ee2aaaa)
"""
SLICES = [
    "MIG-7c2b3a1f-0a5e-5a53-ae0d-6e4a6a5b1c11",
    "MIG-GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77/2/0",  # drivers before R470 name them so
]
UNDIVIDED = [
    "GPU-8a1e4ee2-6b8f-4f0b-8b0e-0f2f5c1d2e3f",
    "GPU-0c1d2e3f-6b8f-4f0b-8b0e-8a1e4ee2aaaa",
]


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """A function that puts a program `nvidia-smi` on the path; three device files in a folder."""
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    for index in range(3):
        (tmp_path / f"nvidia{index}").touch()

    def write(listing, status=0):
        (tmp_path / "listing").write_text(listing)
        program = tmp_path / "nvidia-smi"
        called = f'test "$*" = -L && /bin/cat {tmp_path}/listing && exit {status}'
        program.write_text(f"#!/bin/sh\n{called}\n")
        program.chmod(0o755)
        return tmp_path

    return write


def test_slices_and_undivided_cards_are_gpus_by_their_uuids(smi):
    assert gpus.visible_gpus(smi(CARDS)) == SLICES + UNDIVIDED


def test_cards_without_slices_have_their_numbers(smi):
    undivided = [line for line in CARDS.splitlines() if "MIG" not in line]
    assert gpus.visible_gpus(smi("\n".join(undivided))) == ["0", "1", "2"]


@pytest.mark.parametrize("found", [True, False])
def test_without_a_listing_cards_have_their_numbers(found, smi, tmp_path):
    if found:
        smi(CARDS, status=9)
    assert gpus.visible_gpus(tmp_path) == ["0", "1", "2"]


def test_two_jobs_take_two_slices_of_a_card(jobs):
    names = ",".join(SLICES)
    assert {jobs.took(1, names), jobs.took(1, names)} == set(SLICES)


@pytest.mark.usefixtures("device")
def test_a_job_of_two_gpus_takes_no_slices():
    assert gpus.take_gpus(2, [*SLICES, *UNDIVIDED]) == UNDIVIDED
    assert os.environ[gpus.VISIBLE] == ",".join(UNDIVIDED)


@pytest.mark.usefixtures("device")
def test_two_gpus_are_refused_where_there_are_slices_alone():
    with pytest.raises(ConfigError, match=r"wants 2 GPUs, but there are 0; set .*1 for"):
        gpus.take_gpus(2, SLICES)


def test_without_file_locks_the_first_gpus_are_taken_and_one_line_names_the_fix(
    tmp_path, monkeypatch, capsys
):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(gpus.tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv(gpus.VISIBLE, "0,1")
    assert gpus.take_gpus(1, ["0", "1"]) == ["0"]
    assert os.environ[gpus.VISIBLE] == "0"
    assert not gpus.held_locks
    (line,) = capsys.readouterr().err.splitlines()
    assert "no file locks here (Function not implemented)" in line
    assert "set TMPDIR to a local disk" in line


def test_a_folder_of_locks_that_cannot_be_made_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(gpus.tempfile, "tempdir", str(tmp_path / "file"))
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="set TMPDIR to a folder that you may write"):
        gpus.take_gpus(1, ["0"])
