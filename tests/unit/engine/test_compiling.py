"""Functions that torch compiles, and those that it cannot."""

from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException

from cda.engine.compiling import Compiled


def test_what_cannot_be_compiled_is_reported_once_and_runs_as_it_is(monkeypatch, capsys):
    def fails(*_: Any) -> None:
        raise TorchDynamoException("inductor raised:\nno Triton\nand a long trace")

    monkeypatch.setattr(torch, "compile", lambda function, **_: fails)
    one = Compiled(len, None, False, False, 1)
    assert [one([1, 2]), one([3])] == [2, 1]
    line = (
        "torch cannot compile here (inductor raised: no Triton): running without "
        "compilation (same results, slower)\n"
    )
    assert capsys.readouterr().err == line


def test_a_batch_of_another_length_runs_as_it_is(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda batch: "compiled")
    one = Compiled(len, 2, False, False, 1)
    assert [one([1, 2]), one([3])] == ["compiled", 1]
