"""Functions that torch compiles, and those that it cannot."""

from typing import Any

import pytest
import torch
import torch._dynamo.config
from torch._dynamo.exc import TorchDynamoException

from cda.engine.compiling import RECOMPILATIONS, Compiled, supported


def test_what_cannot_be_compiled_is_reported_once_and_runs_as_it_is(monkeypatch, capsys):
    def fails(*_: Any) -> None:
        raise TorchDynamoException("inductor raised:\nno Triton\nand a long trace")

    monkeypatch.setattr(torch, "compile", lambda function, **_: fails)
    one = Compiled(len, None, False, 1)
    assert [one([1, 2]), one([3])] == [2, 1]
    line = (
        "torch cannot compile here (inductor raised: no Triton): running without "
        "compilation (same results, slower)\n"
    )
    assert capsys.readouterr().err == line


def test_a_batch_of_another_length_runs_as_it_is(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda batch: "compiled")
    one = Compiled(len, 2, False, 1)
    assert [one([1, 2]), one([3])] == ["compiled", 1]


def test_memory_that_runs_out_while_compiling_is_no_refusal(monkeypatch):
    def fails(*_: Any) -> None:
        raise TorchDynamoException("backend='inductor' raised:\nOutOfMemoryError: out of memory")

    monkeypatch.setattr(torch, "compile", lambda function, **_: fails)
    with pytest.raises(TorchDynamoException, match="out of memory"):
        Compiled(len, None, True, 1)([1])


def test_options_that_this_torch_does_not_know_are_left_out():
    def function(*, known: bool) -> None:
        """Stands in for a function of torch."""

    assert supported(function, known=True, unknown=1) == {"known": True}


@pytest.mark.parametrize("isolates", [True, False])
def test_functions_have_limits_of_recompilations_apart_or_a_high_common_one(monkeypatch, isolates):
    passed: dict[str, Any] = {}

    def older(function: Any, *, dynamic: bool, options: Any) -> Any:
        return function

    def newer(function: Any, *, dynamic: bool, options: Any, isolate_recompiles: bool) -> Any:
        passed["isolate_recompiles"] = isolate_recompiles
        return function

    monkeypatch.setattr(torch, "compile", newer if isolates else older)
    with torch._dynamo.config.patch(recompile_limit=8):
        assert Compiled(len, None, False, 1)([1, 2]) == 2
        assert torch._dynamo.config.recompile_limit == (8 if isolates else RECOMPILATIONS)
    assert passed == ({"isolate_recompiles": True} if isolates else {})
