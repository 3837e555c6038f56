"""How many class blocks are packed, and what becomes of them where memory does not suffice."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cda.data.shards import read_shard
from cda.engine import memory
from cda.engine.memory import Memory
from cda.engine.recovery import Recovery
from cda.errors import ConfigError


def test_memory_is_linear_in_the_blocks():
    memory = Memory(base=7, block=100)
    assert [memory.of(blocks) for blocks in (1, 2, 8)] == [107, 207, 807]


@pytest.mark.parametrize(("room", "most"), [(1000, 8), (990, 8), (40, 1), (120_000, 1019)])
def test_as_many_blocks_as_fit_with_some_to_spare_and_one_at_least(room, most):
    needed = Memory(base=10, block=100)
    assert needed.most(room) == most
    assert most == 1 or needed.of(most) <= memory.FILLED * room < needed.of(most + 1)


# A part of 2 shards, 2 blocks each


@pytest.fixture(scope="module")
def folder(config_tree, tmp_path_factory) -> Path:
    """A squeezed model, and the part's images made from it a block at a time."""
    made: Path = tmp_path_factory.mktemp("packing")
    with contextlib.chdir(made):
        tree = config_tree()
        squeeze = tree.runs()["squeeze"].id
        assert tree.cda("squeeze", "--run", squeeze, "--out", "model/model.safetensors") == 0
        assert len(recovered(tree, "alone", blocks=1)) == 2
    return made


@pytest.fixture
def tree(tree, folder):
    shutil.copytree(folder / "model", "model")
    return tree


def recovered(tree: Any, out: str, **runtime: Any) -> list[Any]:
    """The images of the part's shards, made with these settings."""
    runs = tree.runs()
    options = [f"runtime.{key}={value}" for key, value in runtime.items()]
    arguments = [
        "--run",
        runs["recover"].id,
        "--part",
        "0",
        "--model",
        "model/model.safetensors",
        "--out",
        out,
    ]
    code = tree.cda("recover", *arguments, *(["--config", *options] if options else []))
    return images_in(Path(out)) if code == 0 else [code]


def images_in(part: Path) -> list[Any]:
    return [read_shard(path)[0] for path in sorted(part.glob("*.tar"))]


def fails_above(monkeypatch: pytest.MonkeyPatch, fit: int, error: Exception) -> list[int]:
    """Steps of more than `fit` blocks fail with `error`; returns how many blocks each step had."""
    honest, seen = Recovery.step, []

    def step(self: Recovery) -> None:
        seen.append(len(self.blocks))
        if len(self.blocks) > fit:
            raise error
        honest(self)

    monkeypatch.setattr(Recovery, "step", step)
    return seen


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError("no memory for a convolution"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you "
        "tried …"
    ),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_where_memory_does_not_suffice_fewer_blocks_go_together(
    tree, folder, monkeypatch, capsys, error
):
    seen = fails_above(monkeypatch, 1, error)
    fewer = recovered(tree, "fewer", blocks=4)
    assert seen == [4, 2] + [1] * 4 * 6
    assert all((a == b).all() for a, b in zip(images_in(folder / "alone"), fewer, strict=True))
    said = [line for line in capsys.readouterr().err.splitlines() if "memory" in line]
    assert [line.partition(": ")[2] for line in said] == [
        "4 class blocks do not fit into memory; going on with 2",
        "2 class blocks do not fit into memory; going on with 1",
    ]


def test_what_was_finished_with_more_is_kept(tree, monkeypatch):
    tree.edit("recipes/digits.yaml", "block_size: 5", "block_size: 4")  # 4, 4 and 2 classes a shard
    seen = fails_above(monkeypatch, 2, ERRORS[0])
    assert len(recovered(tree, "out", blocks=4)) == 2
    assert seen == [4] + [2] * 3 * 6


def test_more_blocks_than_there_are_is_all_of_them(tree, monkeypatch):
    seen = fails_above(monkeypatch, 4, ERRORS[0])
    recovered(tree, "out", blocks=64)
    assert seen == [4] * 6


def test_a_first_block_that_does_not_fit_ends_in_one_line_too(tree, monkeypatch):
    from cda.stages.recover import Job

    def hungry(*_: Any) -> None:
        raise ERRORS[0]

    context = tree.context(tree.runs()["recover"])
    device = context.open_device()
    device.torch_device = torch.device("meta")
    monkeypatch.setattr(memory, "measure_memory", hungry)
    monkeypatch.setattr(Job, "_objective", lambda *_: None)
    job = Job(context, device, torch.nn.Identity(), [], Path("work"), None, None, blocks=8)  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match=r"a class block of 5 does not fit into memory; lower recover\.block_size"
    ):
        job._together(None)  # type: ignore[arg-type]


def test_a_block_that_does_not_fit_ends_in_one_line(tree, monkeypatch, capsys):
    fails_above(monkeypatch, 0, ERRORS[0])
    assert recovered(tree, "out", blocks=2) == [1]
    last = capsys.readouterr().err.splitlines()[-1]
    assert "a class block of 5 does not fit into memory; lower recover.block_size" in last


def test_other_errors_are_no_lack_of_memory(tree, monkeypatch):
    fails_above(monkeypatch, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        recovered(tree, "out", blocks=2)


def test_a_cpu_takes_one_block_at_a_time_unless_told(tree, monkeypatch):
    seen = fails_above(monkeypatch, 4, ERRORS[0])
    recovered(tree, "out")
    assert seen == [1] * 4 * 6
    seen.clear()
    recovered(tree, "other", blocks=3)
    assert seen == [3] * 6 + [1] * 6


def test_a_number_that_was_measured_is_kept_for_the_next_start(tree, monkeypatch):
    """As on a GPU, whose free memory may be another next time.

    A checkpoint serves the same blocks only.
    """
    from cda.stages.recover import Job

    context = tree.context(tree.runs()["recover"])
    device = context.open_device()
    device.torch_device = torch.device("meta")
    asked: list[int] = []
    monkeypatch.setattr(
        memory, "measure_memory", lambda *_: asked.append(1) or Memory(base=0, block=10)
    )
    monkeypatch.setattr(memory, "free_bytes", lambda: 40)
    monkeypatch.setattr(Job, "_objective", lambda *_: None)
    job = Job(context, device, torch.nn.Identity(), [], Path("work"), None, None, blocks=8)  # type: ignore[arg-type]
    assert (job._together(None), job._together(None)) == (3, 3)  # type: ignore[arg-type]
    assert json.loads(Path("work/packed.json").read_text()) == {"together": 3}
    assert len(asked) == 1
    assert job._fewer(3) == 1
    assert job._together(None) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_number_of_blocks_that_is_none_is_refused(tree, value, capsys):
    assert tree.cda("runs", "tiny", "--config", f"runtime.blocks={value}") == 1
    assert "runtime.blocks" in capsys.readouterr().err
