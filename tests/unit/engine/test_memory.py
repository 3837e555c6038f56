"""How many class blocks are packed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor.exc import InductorError

from cda.engine import memory
from cda.engine.memory import Memory, Packing
from cda.errors import ConfigError


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_memory_is_linear_in_the_blocks():
    memory = Memory(base=7, block=100)
    assert [memory.of(blocks) for blocks in (1, 2, 8)] == [107, 207, 807]


@pytest.mark.parametrize(("free", "most"), [(1000, 8), (990, 8), (40, 1), (120_000, 1019)])
def test_as_many_blocks_as_fit_with_a_reserve_and_one_at_least(free, most):
    needed = Memory(base=10, block=100)
    assert needed.most(free) == most
    assert most == 1 or needed.of(most) <= memory.FILLED * free < needed.of(most + 1)


def packing(**values: Any) -> Packing:
    """Of a part of 8 blocks, on a stand-in for a GPU."""
    usual = {"setting": "auto", "blocks": 8, "block_size": 5, "state": 1, "device": "gpu"}
    return Packing(Path("work"), "recover some-run", **(usual | values))


def never() -> Memory:
    raise AssertionError("measured without need")


def out_of_memory() -> Memory:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("values", "count"), [({"setting": 3}, 3), ({"device": "cpu"}, 1)], ids=["setting", "cpu"]
)
def test_a_setting_and_a_cpu_need_no_measuring(values, count):
    assert packing(**values).choose(never) == count
    assert not Path("work").exists()


def test_a_measured_number_serves_the_next_start_too(monkeypatch):
    """Free memory may be another by then, and a checkpoint serves the same blocks only."""
    monkeypatch.setattr(memory, "free_bytes", lambda: 40)
    assert packing().choose(lambda: Memory(base=0, block=10)) == 3
    assert json.loads(Path("work/packed.json").read_text()) == {"together": 3}
    assert packing().choose(never) == 3
    assert packing().halve(3) == 1
    assert packing().choose(never) == 1


@pytest.mark.parametrize(
    ("blocks", "most", "count"), [(10, 8, 5), (10, 4, 4), (10, 10, 10), (10, 30, 10), (7, 6, 4)]
)
def test_groups_are_of_equal_size(monkeypatch, blocks, most, count):
    monkeypatch.setattr(memory, "free_bytes", lambda: 10 * most / memory.FILLED + 1)
    assert packing(blocks=blocks).choose(lambda: Memory(base=0, block=10)) == count


@pytest.mark.parametrize(("share", "count"), [(0.25, 4), (2.0, 1)])
def test_the_state_that_a_checkpoint_copies_limits_packing(monkeypatch, share, count):
    monkeypatch.setattr(memory, "free_bytes", lambda: 10_000)
    state = int(share * memory.STATE_BYTES)
    assert packing(state=state).choose(lambda: Memory(base=0, block=10)) == count


def test_more_memory_than_all_blocks_need_packs_all_of_them(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 10_000)
    assert packing().choose(lambda: Memory(base=0, block=10)) == 8


@pytest.mark.parametrize(
    "fails", [lambda: packing().choose(out_of_memory), lambda: packing().halve(1)]
)
def test_a_single_block_that_does_not_fit_ends_in_one_line(fails):
    with pytest.raises(
        ConfigError,
        match=r"^recover some-run: a class block of 5 does not fit into memory; "
        r"lower recover\.block_size or use a gpu with more$",
    ):
        fails()


EXHAUSTED = [
    torch.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
    RuntimeError("x: can't allocate memory: you tried"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    InductorError(torch.OutOfMemoryError("CUDA out of memory."), None),
]


@pytest.mark.parametrize("error", EXHAUSTED, ids=lambda error: str(error)[:40])
def test_no_memory_left_is_one_line_however_torch_words_it(error):
    with pytest.raises(ConfigError, match=r"^lower it$"), memory.enough_memory(lambda: "lower it"):
        raise error


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: device-side assert triggered"), RuntimeError("shape")]
)
def test_other_errors_are_no_lack_of_memory(error):
    with pytest.raises(type(error)), memory.enough_memory(lambda: "lower it"):
        raise error
    assert not memory.out_of_memory(error)
