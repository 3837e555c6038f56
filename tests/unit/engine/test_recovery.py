"""Blocks of a part: packed as the settings say, fewer where memory does not suffice."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cda.data.shards import read_shard
from cda.engine import recovery as recovery_module
from cda.engine.checkpoint import Checkpoint
from cda.engine.device import Device
from cda.engine.memory import Memory, Packing
from cda.engine.objective import Objective
from cda.engine.recovery import Recovery
from cda.progress import Progress
from cda.stages import recover as stage

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
    original, seen = Recovery.step, []

    def step(self: Recovery) -> None:
        seen.append(len(self.blocks))
        if len(self.blocks) > fit:
            raise error
        original(self)

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
    lines = [line for line in capsys.readouterr().err.splitlines() if "memory" in line]
    assert [line.partition(": ")[2] for line in lines] == [
        "4 class blocks do not fit into memory; going on with 2",
        "2 class blocks do not fit into memory; going on with 1",
    ]


def test_blocks_finished_before_the_number_was_halved_are_not_repeated(tree, monkeypatch):
    tree.edit("recipes/digits.yaml", "block_size: 5", "block_size: 4")  # 4, 4 and 2 classes a shard
    seen = fails_above(monkeypatch, 2, ERRORS[0])
    assert len(recovered(tree, "out", blocks=4)) == 2
    assert seen == [4] + [2] * 3 * 6


class Killed(BaseException):
    """Ends a job as a kill does: nothing is saved for it."""


def test_a_killed_part_repeats_no_step_and_counts_those_it_has(tree, monkeypatch, capsys):
    """Killed in the third step of its second group of two blocks; a state is saved every step."""
    original, seen = Recovery.step, []

    def step(self: Recovery) -> None:
        if len(seen) == 8:
            raise Killed
        seen.append(self.done)
        original(self)

    monkeypatch.setattr(Recovery, "step", step)
    with pytest.raises(Killed):
        recovered(tree, "out", blocks=2, checkpoint_seconds=0)
    seen.append(-1)
    capsys.readouterr()
    assert len(recovered(tree, "out", blocks=2, checkpoint_seconds=0)) == 2
    assert seen == [0, 1, 2, 3, 4, 5, 0, 1, -1, 2, 3, 4, 5]
    lines = capsys.readouterr().err
    assert ": 24/24 block-steps" in lines
    assert ": going on from step 2 of 6" in lines


def test_packing_knows_what_a_block_takes_and_measuring_leaves_the_model_as_it_was(
    tree, monkeypatch
):
    """A GPU packs blocks by their state in float32 (images and Adam's two means) and by memory."""
    states: list[int] = []
    hooks: list[bool] = []

    def choose(packing: Packing, measure: Any) -> int:
        states.append(packing.state)
        measure()
        return 1

    def measured(begin: Any) -> Memory:
        recovery = begin().__self__
        recovery.step()
        hooked = [module for module in recovery.objective.model.modules() if is_hooked(module)]
        hooks.append(bool(hooked))
        models.append(recovery.objective.model)
        return Memory(0, 1)

    models: list[Any] = []
    monkeypatch.setattr(Packing, "choose", choose)
    monkeypatch.setattr(recovery_module, "measure_memory", measured)
    recovered(tree, "out")
    block, size = 5, 8
    assert states == [3 * 4 * block * 3 * size**2]
    assert hooks == [True]
    assert not any(is_hooked(module) for module in models[0].modules())


def is_hooked(module: Any) -> bool:
    return bool(module._forward_pre_hooks) or "forward" in vars(module)


def test_blocks_are_recovered_as_the_models_outputs_of_their_classes(tree, monkeypatch):
    """A published model may have more classes than the data set, in another order."""
    original, labels, closed = Recovery.step, [], []

    def step(self: Recovery) -> None:
        labels.append(self.labels.tolist())
        original(self)

    monkeypatch.setattr(Recovery, "step", step)
    monkeypatch.setattr(stage, "outputs_for", lambda *_: list(reversed(range(10))))
    monkeypatch.setattr(Progress, "close", lambda self: closed.append(self.label))
    recovered(tree, "out", blocks=1)
    assert labels[0] == [9, 8, 7, 6, 5]
    assert [label.split()[0] for label in closed] == ["recover"]


def test_an_objective_is_closed_before_another_opens_and_a_finished_group_leaves_no_state(
    tree, monkeypatch
):
    """Three blocks and one: a model that two objectives hook would record every layer twice."""
    seen: list[Any] = []

    class Recorded(Objective):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            seen.append(("open", self.blocks))

        def close(self) -> None:
            super().close()
            seen.append(("close", self.blocks))

    def clear(self: Checkpoint) -> None:
        seen.append(self.path.name)

    monkeypatch.setattr(recovery_module, "Objective", Recorded)
    monkeypatch.setattr(Checkpoint, "clear", clear)
    recovered(tree, "out", blocks=3)
    state = "state.safetensors"
    assert seen == [("open", 3), state, ("close", 3), ("open", 1), state, ("close", 1)]


@pytest.mark.parametrize(("per_image", "views"), [(True, 10), (False, 2)])
def test_a_recorded_step_knows_how_many_views_it_has(tree, monkeypatch, per_image, views):
    original, seen = Device.graphed, []

    def graphed(self: Device, function: Any, steps: int, size: int) -> Any:
        seen.append((steps, size))
        return original(self, function, steps, size)

    monkeypatch.setattr(Device, "graphed", graphed)
    if per_image:
        tree.edit("recipes/digits.yaml", "block_size: 5", "block_size: 5\n  per_image: true")
    recovered(tree, "out", blocks=2)
    assert set(seen) == {(6, views)}


def test_all_groups_decide_whether_the_objective_is_compiled(tree, monkeypatch):
    """Four blocks of six iterations, two at a time."""
    steps: list[int] = []

    class Recorded(Objective):
        def __init__(self, *arguments: Any) -> None:
            steps.append(arguments[-1])
            super().__init__(*arguments)

    monkeypatch.setattr(recovery_module, "Objective", Recorded)
    recovered(tree, "out", blocks=2)
    assert steps == [2 * 6]


def test_more_blocks_than_there_are_is_all_of_them(tree, monkeypatch):
    seen = fails_above(monkeypatch, 4, ERRORS[0])
    recovered(tree, "out", blocks=64)
    assert seen == [4] * 6


def test_a_block_that_does_not_fit_ends_in_one_line(tree, monkeypatch, capsys):
    fails_above(monkeypatch, 0, ERRORS[0])
    assert recovered(tree, "out", blocks=2) == [1]
    last = capsys.readouterr().err.splitlines()[-1]
    assert "a class block of 5 does not fit into memory; lower recover.block_size" in last


def test_other_errors_are_no_lack_of_memory(tree, monkeypatch):
    fails_above(monkeypatch, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        recovered(tree, "out", blocks=2)


def test_a_cpu_takes_one_block_at_a_time_by_default(tree, monkeypatch):
    seen = fails_above(monkeypatch, 4, ERRORS[0])
    recovered(tree, "out")
    assert seen == [1] * 4 * 6
    seen.clear()
    recovered(tree, "other", blocks=3)
    assert seen == [3] * 6 + [1] * 6


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_number_of_blocks_that_is_none_is_refused(tree, value, capsys):
    assert tree.cda("list", "tiny", "--config", f"runtime.blocks={value}") == 1
    assert "runtime.blocks" in capsys.readouterr().err
