"""Jobs of one machine take different GPUs.

The names are made up, the processes and locks are real.
"""

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
