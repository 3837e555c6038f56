"""Leases: who may work in a folder, and who takes over."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cda.engine import lock
from cda.engine.lock import LEASE_SECONDS, Lease, work_folder
from cda.errors import AlreadyDone, ArtifactError, Interrupted


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.0)


def everything(folder: Path = Path()) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


FOLDER = Path("work")
REFUSED = r"lease\.json: another job works here; wait for it, or delete that file"


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A living process that is not us."""
    started = subprocess.Popen(["sleep", "60"])
    yield started
    started.kill()
    started.wait()


def lease_of(pid: int, host: str | None = None, age: float = 0.0, **changes: Any) -> None:
    FOLDER.mkdir()
    owner = {
        "host": host or socket.gethostname(),
        "pid": pid,
        "started": lock.process_start(pid),
    } | changes
    Lease(FOLDER).path.write_text(json.dumps(owner))
    os.utime(Lease(FOLDER).path, (time.time() - age,) * 2)


def test_a_second_holder_is_refused_while_the_first_lives():
    with Lease(FOLDER).held():
        with pytest.raises(ArtifactError, match=REFUSED), Lease(FOLDER).held():
            pass
        assert everything() == ["work/lease.json"]  # refusing another does not end one's own
    with Lease(FOLDER).held():
        pass
    assert everything() == []


def test_a_living_process_keeps_its_lease(other):
    lease_of(other.pid, age=10 * LEASE_SECONDS)
    with pytest.raises(ArtifactError, match=REFUSED), Lease(FOLDER).held():
        pass


def test_the_lease_of_a_dead_process_is_taken_over(other):
    lease_of(other.pid)
    other.kill()
    other.wait()
    with Lease(FOLDER).held():
        assert json.loads(Lease(FOLDER).path.read_text())["pid"] == os.getpid()


def test_a_process_number_in_use_again_is_not_its_former_owner(other):
    lease_of(other.pid, started="1")
    with Lease(FOLDER).held():
        assert json.loads(Lease(FOLDER).path.read_text())["pid"] == os.getpid()


def test_an_old_lease_of_another_host_is_taken_over():
    lease_of(1, host="another", age=2 * LEASE_SECONDS)
    with Lease(FOLDER).held():
        assert json.loads(Lease(FOLDER).path.read_text())["pid"] == os.getpid()


def test_the_lease_of_another_host_holds_while_it_beats():
    lease_of(1, host="another", age=LEASE_SECONDS / 2)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.01):
            os.utime(Lease(FOLDER).path)

    heart = threading.Thread(target=beat)
    heart.start()
    with pytest.raises(ArtifactError, match=REFUSED), Lease(FOLDER).held():
        pass
    ended.set()
    heart.join()


@pytest.mark.parametrize("ahead", [0.0, 1e6])
def test_the_fresh_lease_of_a_job_killed_on_another_host_is_taken_over_when_it_no_longer_beats(
    ahead, monkeypatch
):
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.2)
    lease_of(1, host="another", age=-ahead)  # that host's clock may be another
    with Lease(FOLDER).held():
        assert json.loads(Lease(FOLDER).path.read_text())["pid"] == os.getpid()


def test_a_job_waits_for_one_that_is_about_to_end(monkeypatch, capsys):
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 600.0)
    first, waits = Lease(FOLDER).held(), threading.Event()
    first.__enter__()

    def slept(_: float) -> None:
        if not waits.is_set():
            waits.set()
            first.__exit__(None, None, None)

    monkeypatch.setattr(time, "sleep", slept)
    with Lease(FOLDER).held():
        assert waits.is_set()
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{Lease(FOLDER).path}: another job has this work; waiting for it to end"


def test_work_that_another_job_finished_meanwhile_is_not_begun_again(monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 600.0)
    first = work_folder(FOLDER)
    first.__enter__()
    monkeypatch.setattr(time, "sleep", lambda _: first.__exit__(None, None, None))
    with (
        pytest.raises(AlreadyDone, match="work: another job has just finished this work"),
        work_folder(FOLDER),
    ):
        pass
    assert not FOLDER.exists()


@pytest.mark.parametrize("content", ["", "{", "{}"])
@pytest.mark.parametrize(("age", "taken"), [(0.0, False), (2 * LEASE_SECONDS, True)])
def test_a_lease_cut_off_in_writing_holds_no_longer_than_writing_takes(content, age, taken):
    FOLDER.mkdir()
    path = Lease(FOLDER).path
    path.write_text(content)
    os.utime(path, (time.time() - age,) * 2)
    if taken:
        with Lease(FOLDER).held():
            pass
    else:
        with pytest.raises(ArtifactError, match=REFUSED), Lease(FOLDER).held():
            pass


def test_of_two_that_find_a_stale_lease_one_gets_it(other, monkeypatch):
    lease_of(other.pid)
    other.kill()
    other.wait()
    first, second, taken = Lease(FOLDER), Lease(FOLDER), []
    judged, first_done, stale = threading.Event(), threading.Event(), second.is_stale

    def contend(lease: Lease) -> None:
        with contextlib.suppress(ArtifactError):
            lease.take()
            taken.append(lease)

    def slowly(*arguments: Any) -> bool:
        found = stale(*arguments)
        judged.set()
        first_done.wait(1)  # in vain where a lock keeps the first one out meanwhile
        return found

    def first_of_all() -> None:
        judged.wait(1)
        contend(first)
        first_done.set()

    monkeypatch.setattr(second, "is_stale", slowly)
    thread = threading.Thread(target=first_of_all)
    thread.start()
    contend(second)
    thread.join()
    assert len(taken) == 1


def test_a_holder_that_lost_its_lease_does_not_end_its_successors():
    with Lease(FOLDER).held():
        Lease(FOLDER).path.write_text(json.dumps({"host": "another", "pid": 1, "started": "1"}))
    assert everything() == ["work/lease.json"]


@pytest.mark.parametrize("call", ["dump", "mkdir"])
def test_a_lease_on_a_full_disk_is_one_line_and_holds_nobody_up(call, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*{"dump": (json, "dump"), "mkdir": (Path, "mkdir")}[call], full)
        line = r"^work/lease\.json: cannot be written \(No space left on device\); make room"
        with pytest.raises(ArtifactError, match=line):
            Lease(Path("work")).take()
    assert not Path("work/lease.json").exists()
    Lease(Path("work")).take()


def test_done_work_leaves_no_folder():
    with work_folder(FOLDER):
        np.save(FOLDER / "block.npy", np.zeros(3))
    assert not FOLDER.exists()


def test_stopped_work_keeps_its_folder():
    def stopped() -> None:
        with work_folder(FOLDER) as stop:
            np.save(FOLDER / "block.npy", np.zeros(3))
            os.kill(os.getpid(), signal.SIGTERM)
            stop.check()

    with pytest.raises(Interrupted):
        stopped()
    assert everything() == ["work/block.npy"]


@pytest.mark.parametrize(
    "content", ["[1]", "null", '{"host": "h", "pid": "1"}', '{"host": "h", "pid": -1}', "[" * 10**5]
)
def test_a_lease_that_names_no_process_is_stale_like_one_cut_off(content, tmp_path):
    lease = Lease(tmp_path)
    lease.path.write_text(content)
    assert not lease.is_stale()
    os.utime(lease.path, (0, 0))
    assert lease.is_stale()
