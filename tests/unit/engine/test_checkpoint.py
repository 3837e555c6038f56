"""Checkpoints, whole files, leases and signals.

What a killed job leaves, and what its next start makes of it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from cda import files
from cda.engine import checkpoint, lock
from cda.engine.checkpoint import Checkpoint
from cda.engine.lock import LEASE_SECONDS, Lease, work_folder
from cda.engine.signals import Stop
from cda.errors import AlreadyDone, ArtifactError, Interrupted

PATH = Path("work/state.safetensors")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lock, "PATIENCE", 0.0)


def saved(state: Any, key: str = "run 1") -> Checkpoint:
    made = Checkpoint(PATH, key, 60.0)
    made.save(state)
    return made


def everything(folder: Path = Path()) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# Checkpoints
# ----------------------------------------------------------------------------------------------------------


def test_a_state_comes_back_as_it_was():
    state = {
        "step": 7,
        "loss": 0.1,
        "best": None,
        "done": True,
        "note": "β",
        "curve": [{"epoch": 1, "top1": 12.5}, {}],
        3: {"exp_avg": torch.arange(6, dtype=torch.float64).view(2, 3), "step": torch.tensor(4.0)},
        "half": torch.ones(2, dtype=torch.bfloat16),
        "rng": torch.get_rng_state(),
        "none": [],
    }
    saved(state)
    loaded = Checkpoint(PATH, "run 1", 60.0).load()
    assert loaded.keys() == state.keys()
    for name in ("step", "loss", "best", "done", "note", "curve", "none"):
        assert loaded[name] == state[name]
    for name in ("half", "rng"):
        assert torch.equal(loaded[name], state[name])
        assert loaded[name].dtype == state[name].dtype
    assert torch.equal(loaded[3]["exp_avg"], state[3]["exp_avg"])
    assert loaded[3]["step"].shape == ()


def test_a_state_without_tensors_comes_back_too():
    saved({"at": [0, 3]})
    assert Checkpoint(PATH, "run 1", 60.0).load() == {"at": [0, 3]}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_an_optimiser_goes_on_as_if_nothing_had_happened(kind, fused):
    def trained(interrupted: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8))
        extra = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        optimizer = kind(model.parameters(), lr=0.1, fused=fused, **extra)
        inputs = torch.randn(4, 2, 4, 5, 5)
        for step, images in enumerate(inputs):
            if interrupted and step == 2:
                saved(optimizer.state_dict())
                optimizer.load_state_dict(Checkpoint(PATH, "run 1", 60.0).load())
            optimizer.zero_grad()
            model(images).square().mean().backward()
            optimizer.step()
        return [parameter.detach() for parameter in model.parameters()]

    for ours, theirs in zip(trained(True), trained(False), strict=True):
        assert torch.equal(ours, theirs)


def test_the_state_of_other_work_is_not_taken():
    saved({"step": 7}, key="run 1")
    assert Checkpoint(PATH, "run 2", 60.0).load() is None
    assert Checkpoint(PATH, "run 1", 60.0).load() == {"step": 7}


def test_no_checkpoint_is_no_state():
    assert Checkpoint(PATH, "run 1", 60.0).load() is None


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "other format", "nonsense inside"])
def test_a_damaged_checkpoint_is_said_and_not_taken(damage, capsys):
    saved({"images": torch.zeros(100)})
    whole = PATH.read_bytes()
    other = json.dumps({"__metadata__": {"key": "run 1"}}).encode()
    nonsense = json.dumps({"__metadata__": {"key": "run 1", "state": '{"tensor": "9"}'}}).encode()
    content = {
        "cut": whole[:-1],
        "empty": b"",
        "noise": bytes(range(256)),
        "other format": len(other).to_bytes(8, "little") + other,
        "nonsense inside": len(nonsense).to_bytes(8, "little") + nonsense,
    }
    PATH.write_bytes(content[damage])
    assert Checkpoint(PATH, "run 1", 60.0).load() is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{PATH}: damaged checkpoint, starting this piece again"


def test_a_pickle_is_never_loaded(capsys):
    PATH.parent.mkdir()
    torch.save({"step": 7}, PATH)
    assert Checkpoint(PATH, "run 1", 60.0).load() is None


def test_it_is_due_after_its_time_and_after_every_save_anew(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    made = Checkpoint(PATH, "run 1", 60.0)
    assert not made.due()
    now[0] += 60
    assert made.due()
    made.save({})
    assert not made.due()
    assert Checkpoint(PATH, "run 1", 0.0).due()


def test_finished_work_is_forgotten():
    made = saved({"step": 7})
    made.clear()
    made.clear()
    assert everything() == []


# Whole files
# ----------------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_and_nothing_else():
    path = Path("out/table.csv")
    files.write_text(path, "old")

    def fails() -> None:
        with files.atomic_write(path) as aside:
            aside.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fails()
    assert path.read_text() == "old"
    assert everything() == ["out/table.csv"]


def test_a_file_is_not_there_before_it_is_whole():
    path = Path("out/table.csv")
    with files.atomic_write(path) as aside:
        aside.write_text("all of it")
        assert not path.exists()
        assert aside.parent == path.parent  # so that the rename stays within a file system
    assert everything() == ["out/table.csv"]


def test_others_may_read_what_the_umask_lets_them():
    before = os.umask(0o027)
    try:
        checkpoint.write_tensors({"w": torch.ones(2)}, Path("model.safetensors"))
    finally:
        os.umask(before)
    assert Path("model.safetensors").stat().st_mode & 0o777 == 0o640


def test_what_a_killed_writer_left_is_cleared_away():
    folder = Path("out")
    code = (
        "import os; from pathlib import Path; from cda.files import atomic_write; p = "
        "Path('out/table.csv')\n"
    )
    code += "with atomic_write(p) as temporary: temporary.write_text('half'); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    files.write_text(folder / "table.csv", "whole")
    assert everything() == ["out/table.csv"]


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_one_line_and_costs_nothing_old(call, monkeypatch):
    saved({"step": 7})
    monkeypatch.setattr(os, call, full)
    with pytest.raises(ArtifactError) as caught:
        saved({"step": 8})
    assert str(caught.value).splitlines() == [
        f"{PATH}: cannot be written (No space left on device); make room or allow writing, "
        "then start again: it goes on"
    ]
    assert everything() == [str(PATH)]
    assert Checkpoint(PATH, "run 1", 60.0).load() == {"step": 7}


def test_a_full_disk_is_one_line_for_tensors_too(monkeypatch):
    def refuses(*_: Any, **__: Any) -> None:
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    monkeypatch.setattr(checkpoint, "save_file", refuses)
    with pytest.raises(
        ArtifactError, match=r"cannot be written.*No space left on device"
    ) as caught:
        saved({"images": torch.zeros(3)})
    assert str(caught.value).startswith(f"{PATH}: ")
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_one_line():
    Path("out").write_text("a file where a folder should be")
    with pytest.raises(ArtifactError, match="cannot be written") as caught:
        files.write_text(Path("out/tables/table.csv"), "content")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_publishing_to_a_full_disk_is_one_line(call, monkeypatch):
    files.write_text(Path("work/out/shard.tar"), "content")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(ArtifactError, match="No space left on device") as caught:
        files.publish(Path("work/out"), Path("artifacts/part-0"))
    assert "\n" not in str(caught.value)
    assert not Path("artifacts/part-0").exists()


def test_publishing_replaces_what_is_there():
    files.write_text(Path("artifacts/part-0/old.tar"), "old")
    files.write_text(Path("work/out/new.tar"), "new")
    files.publish(Path("work/out"), Path("artifacts/part-0"))
    assert everything() == ["artifacts/part-0/new.tar"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "damaged"),
        (b"[]", "no JSON object"),
        (b"\xff\xfe", "damaged"),
        (None, "cannot be read"),
    ],
)
def test_json_that_is_amiss_is_one_line_with_its_path(content, said):
    path = Path("squeeze.json")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=said) as caught:
        files.read_json(path, "the model's description")
    assert str(caught.value).startswith("squeeze.json: the model's description")
    assert "\n" not in str(caught.value)


def test_json_cannot_hold_what_is_no_number():
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(Path("run.json"), {"top1": float("nan")})
    assert everything() == []


# Leases
# ---------------------------------------------------------------------------------------------------------------

FOLDER = Path("work")
REFUSED = r"lease\.json: another job works here; wait for it, or delete that file"


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A living process that is not us."""
    started = subprocess.Popen(["sleep", "60"])
    yield started
    started.kill()
    started.wait()


def lease_of(pid: int, host: str | None = None, age: float = 0.0, **told: Any) -> None:
    FOLDER.mkdir()
    owner = {
        "host": host or socket.gethostname(),
        "pid": pid,
        "started": lock._started(pid),
    } | told
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
    monkeypatch.setattr(lock, "PATIENCE", 600.0)
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
    monkeypatch.setattr(lock, "PATIENCE", 600.0)
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
    judged, first_done, stale = threading.Event(), threading.Event(), second._stale

    def contend(lease: Lease) -> None:
        with contextlib.suppress(ArtifactError):
            lease._take()
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

    monkeypatch.setattr(second, "_stale", slowly)
    thread = threading.Thread(target=first_of_all)
    thread.start()
    contend(second)
    thread.join()
    assert len(taken) == 1


def test_a_holder_that_lost_its_lease_does_not_end_its_successors():
    with Lease(FOLDER).held():
        Lease(FOLDER).path.write_text(json.dumps({"host": "another", "pid": 1, "started": "1"}))
    assert everything() == ["work/lease.json"]


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


# Signals
# --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_is_a_question_that_is_answered_where_all_is_saved(name):
    stop = Stop()
    with stop.listening():
        stop.check()
        os.kill(os.getpid(), getattr(signal, name))
        assert stop.signal == getattr(signal, name)
        with pytest.raises(
            Interrupted, match=f"stopped by {name}; what is done is saved, start it again to go on"
        ):
            stop.check()


def test_a_second_ctrl_c_stops_at_once():
    stop = Stop()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_signals_are_given_back_afterwards():
    before = [
        signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    ]
    with Stop().listening():
        os.kill(os.getpid(), signal.SIGINT)
    assert [
        signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    ] == before
