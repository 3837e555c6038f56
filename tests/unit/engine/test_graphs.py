"""Recorded steps, with a recorder that needs no GPU: a replay calls the step again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cda.engine import graphs
from cda.engine.graphs import WARM_UP, Graphed, tensors_of


class Recorder:
    """Counts what it does; the step it records always reads the same tensors, as on a GPU."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.warmed = self.recorded = self.replayed = 0
        self.fails = fails

    def warm_up(self, step: Callable[[], Any]) -> Any:
        self.warmed += 1
        return step()

    def record(self, step: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        if self.fails:
            raise self.fails
        self.recorded += 1
        fixed = torch.empty(())

        def replay() -> None:
            self.replayed += 1
            fixed.copy_(step())

        return replay, fixed


class Sum:
    """A step that changes its own state in place: the sum of everything that it was called with."""

    def __init__(self) -> None:
        self.total = torch.zeros(())

    def __call__(self, images: Tensor, target: tuple[Tensor, tuple[Tensor, ...]]) -> Tensor:
        self.total += images.sum() + sum(part.sum() for part in tensors_of(target))
        return self.total


def arguments(value: float, length: int = 4) -> tuple[Tensor, Any]:
    images = torch.full((length, 3), value)
    return images, (images[0] * 2, (images[1] * 3,))


def test_a_recorded_step_does_what_the_step_does():
    recorder, plain, fast = Recorder(), Sum(), Sum()
    graphed = Graphed(fast, 4, recorder.warm_up, recorder.record)
    for call in range(8):
        expected = plain(*arguments(float(call)))
        assert torch.equal(graphed(*arguments(float(call))), expected)
    assert torch.equal(fast.total, plain.total)
    assert (recorder.warmed, recorder.recorded, recorder.replayed) == (WARM_UP, 1, 8 - WARM_UP)


def test_a_batch_of_another_length_is_not_recorded():
    recorder, fast = Recorder(), Sum()
    graphed = Graphed(fast, 4, recorder.warm_up, recorder.record)
    for _ in range(8):
        graphed(*arguments(1.0, 3))
    assert (recorder.warmed, recorder.recorded) == (0, 0)
    assert fast.total == 8 * (9 + 6 + 9)


def test_arguments_of_another_shape_are_not_repeated_into_the_recorded_ones():
    recorder, plain, fast = Recorder(), Sum(), Sum()
    graphed = Graphed(fast, 4, recorder.warm_up, recorder.record)
    for _ in range(WARM_UP + 1):
        graphed(*arguments(1.0))
        plain(*arguments(1.0))
    images, (first, rest) = arguments(1.0)
    smaller = images, (first[:1], rest)
    assert torch.equal(graphed(*smaller), plain(*smaller))
    assert recorder.replayed == 1


def test_a_step_that_cannot_be_recorded_is_reported_once_and_runs_as_it_is(capsys):
    recorder, fast = Recorder(RuntimeError("operation not permitted\na trace")), Sum()
    graphed = Graphed(fast, 4, recorder.warm_up, recorder.record)
    for _ in range(8):
        graphed(*arguments(1.0))
    assert fast.total == 8 * (12 + 6 + 9)
    line = (
        "the step cannot be recorded (operation not permitted): its kernels are launched one by one"
    )
    assert capsys.readouterr().err == line + "\n"


def test_memory_that_runs_out_while_recording_is_no_refusal():
    recorder = Recorder(torch.OutOfMemoryError("CUDA out of memory."))
    graphed = Graphed(Sum(), 4, recorder.warm_up, recorder.record)
    for _ in range(WARM_UP):
        graphed(*arguments(1.0))
    with pytest.raises(torch.OutOfMemoryError):
        graphed(*arguments(1.0))


class FailingGraph:
    """Stands in for torch.cuda.graph, which cannot end a recording that failed."""

    def __init__(self, graph: Any, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        raise RuntimeError("operation failed due to a previous error during capture")


def test_a_failed_recording_names_its_cause_and_restores_the_stream(monkeypatch):
    streams: list[str] = []
    for name, value in {
        "CUDAGraph": object,
        "graph": FailingGraph,
        "current_stream": lambda: "current",
        "set_stream": streams.append,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)

    def step() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        graphs.record_on_gpu(step)
    assert streams == ["current"]
    with pytest.raises(RuntimeError, match="previous error"):
        graphs.record_on_gpu(lambda: None)
