"""Checkpoints without pickles: a state comes back as it was, or not at all."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from cda.engine import checkpoint
from cda.engine.checkpoint import Checkpoint
from cda.errors import ArtifactError

PATH = Path("work/state.safetensors")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def saved(state: Any, key: str = "run 1") -> Checkpoint:
    made = Checkpoint(PATH, key, 60.0)
    made.save(state)
    return made


def everything(folder: Path = Path()) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


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

    for resumed, undisturbed in zip(trained(True), trained(False), strict=True):
        assert torch.equal(resumed, undisturbed)


def test_the_state_of_other_work_is_not_loaded():
    saved({"step": 7}, key="run 1")
    assert Checkpoint(PATH, "run 2", 60.0).load() is None
    assert Checkpoint(PATH, "run 1", 60.0).load() == {"step": 7}


def test_no_checkpoint_is_no_state():
    assert Checkpoint(PATH, "run 1", 60.0).load() is None


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "other format", "nonsense inside"])
def test_a_damaged_checkpoint_is_reported_and_not_loaded(damage, capsys):
    saved({"images": torch.zeros(100)})
    complete = PATH.read_bytes()
    other = json.dumps({"__metadata__": {"key": "run 1"}}).encode()
    nonsense = json.dumps({"__metadata__": {"key": "run 1", "state": '{"tensor": "9"}'}}).encode()
    content = {
        "cut": complete[:-1],
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


def test_a_full_disk_leaves_the_last_state(monkeypatch):
    saved({"step": 7})

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ArtifactError, match=f"^{PATH}: cannot be written .No space left"):
        saved({"step": 8})
    assert everything() == [str(PATH)]
    assert Checkpoint(PATH, "run 1", 60.0).load() == {"step": 7}


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


def test_saving_takes_at_most_a_twentieth_of_a_jobs_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    original = checkpoint.write_tensors

    def slow(*arguments: Any) -> None:
        now[0] += 9
        original(*arguments)

    monkeypatch.setattr(checkpoint, "write_tensors", slow)
    made = Checkpoint(PATH, "run 1", 60.0)
    made.save({})
    now[0] += 179
    assert not made.due()
    now[0] += 1
    assert made.due()
    always = Checkpoint(PATH, "run 1", 0.0)
    always.save({})
    assert always.due()


def test_a_tensor_of_any_layout_is_copied_once():
    for tensor in (torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last), torch.rand(3)[1:]):
        tensors: dict[str, torch.Tensor] = {}
        assert checkpoint.split_tensors(tensor, tensors) == {"tensor": "0"}
        assert torch.equal(tensors["0"], tensor)
        assert tensors["0"].is_contiguous()
        tensor.zero_()
        assert tensors["0"].any()


def test_finished_work_leaves_no_checkpoint():
    made = saved({"step": 7})
    made.clear()
    made.clear()
    assert everything() == []


def test_others_may_read_what_the_umask_lets_them():
    before = os.umask(0o027)
    try:
        checkpoint.write_tensors({"w": torch.ones(2)}, Path("model.safetensors"))
    finally:
        os.umask(before)
    assert Path("model.safetensors").stat().st_mode & 0o777 == 0o640


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
