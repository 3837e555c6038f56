"""A step's GPU kernels, recorded once and then replayed as one launch (a CUDA graph).

A training step at batch 8 has hundreds of small kernels, and the host takes longer to launch them
than the GPU to compute them. A step is recorded from its first kernel to the optimiser's last one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from cda.engine.memory import out_of_memory
from cda.progress import log

Step = Callable[..., Any]
Replay = Callable[[], None]
WARM_UP = 3  # calls before recording: kernels are compiled and chosen, optimiser state appears


def warm_up_on_gpu(step: Callable[[], Any]) -> Any:
    """Make a step on a stream of its own, as recording does."""
    current, own = torch.cuda.current_stream(), torch.cuda.Stream()
    own.wait_stream(current)
    with torch.cuda.stream(own):
        result = step()
    current.wait_stream(own)
    return result


def record_on_gpu(step: Callable[[], Any]) -> tuple[Replay, Any]:
    """Record a step without making it; returns what replays it, and its results.

    Raises torch's RuntimeError if it cannot be recorded, for instance because it waits for a value.
    """
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        # other threads may pin memory meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = step()
    except RuntimeError as error:
        torch.cuda.set_stream(current)
        cause = error.__context__  # what happened before recording failed to end
        raise cause if isinstance(cause, RuntimeError) else error from None
    return graph.replay, result


class Graphed:
    """`step` for first arguments of `length`, recorded after a few calls and then replayed.

    Arguments are tensors, or tuples of them; results lie where the next call overwrites them. What
    the step changes in place (parameters, optimiser state) must stay where it is in memory.
    Arguments of another length, or of other shapes than the recorded ones, go to `step` itself: a
    copy would repeat a smaller argument without a word. A step that cannot be recorded is reported
    once and runs as it is. Raises torch's error where memory runs out.
    """

    def __init__(
        self,
        step: Step,
        length: int,
        warm_up: Callable[[Callable[[], Any]], Any] = warm_up_on_gpu,
        record: Callable[[Callable[[], Any]], tuple[Replay, Any]] = record_on_gpu,
    ) -> None:
        self.step, self.length, self._warm_up, self._record = step, length, warm_up, record
        self.calls = 0  # with arguments of the right length
        self.recordable = True
        self._replay: Replay | None = None
        self._inputs: list[Tensor] = []
        self._results: Any = None

    def __call__(self, *arguments: Any) -> Any:
        """What `step` returns."""
        if not self.recordable or len(arguments[0]) != self.length:
            return self.step(*arguments)
        self.calls += 1
        if self.calls <= WARM_UP:
            return self._warm_up(lambda: self.step(*arguments))
        if self._replay is None and not self._try_to_record(arguments):
            return self.step(*arguments)
        values = list(tensors_of(arguments))
        if [value.shape for value in values] != [fixed.shape for fixed in self._inputs]:
            return self.step(*arguments)
        for fixed, value in zip(self._inputs, values, strict=True):
            fixed.copy_(value)
        assert self._replay is not None
        self._replay()
        return self._results

    def _try_to_record(self, arguments: tuple[Any, ...]) -> bool:
        inputs = _copies(arguments)
        try:
            self._replay, self._results = self._record(lambda: self.step(*inputs))
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            self.recordable = False
            reason = str(error).split("\n")[0]
            log(f"the step cannot be recorded ({reason}): its kernels are launched one by one")
            return False
        self._inputs = list(tensors_of(inputs))
        return True


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors of a nested tuple, in order."""
    if isinstance(value, Tensor):
        yield value
    else:
        for part in value:
            yield from tensors_of(part)


def _copies(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_like(value).copy_(value)
    return tuple(_copies(part) for part in value)
