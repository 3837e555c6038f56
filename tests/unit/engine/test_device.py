from typing import Any

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from cda.config.settings import Runtime
from cda.engine import device as module
from cda.engine.device import Device
from cda.errors import ConfigError


def test_threads_are_set_by_the_settings_and_nothing_else(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before = torch.get_num_threads()
    module.open_device(Runtime(device="cpu", cpu_threads=1))
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def test_a_missing_gpu_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ConfigError,
        match=r"^config key runtime\.device: cuda, but torch sees no GPU; use auto or cpu",
    ):
        module.open_device(Runtime(device="cuda"))


def test_without_bf16_it_runs_in_fp32_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    device = module.open_device(Runtime(device="cpu", precision="bf16", cpu_threads=1))
    assert device.half is None
    assert capsys.readouterr().err == "this cpu has no bf16: running in fp32\n"


def test_a_gpu_without_bf16_runs_in_fp32_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    cuda = torch.device("cuda")
    assert module._half(Runtime(precision="bf16"), cuda) is None
    assert capsys.readouterr().err == "this cuda has no bf16: running in fp32\n"
    assert module._half(Runtime(), cuda) is None
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert module._half(Runtime(), cuda) is torch.bfloat16
    assert capsys.readouterr().err == ""


# Compiling


def device_on(device: str = "cpu", world: int = 1, **values: Any) -> Device:
    return Device(Runtime(cpu_threads=1, **values), torch.device(device), None, world=world)


class Asked:
    """Stands in for `Compiled` and keeps what it was asked for."""

    def __init__(self, *asked: Any) -> None:
        self.asked = asked


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda _name: "/bin/c++")
    monkeypatch.setattr(module, "Compiled", Asked)


@pytest.mark.parametrize(
    ("setting", "steps", "expected"),
    [("never", 10**6, False), ("always", 1, True), ("auto", 999, False), ("auto", 1000, True)],
)
def test_compiling_is_decided_by_the_setting_and_the_jobs_steps(asked, setting, steps, expected):
    one = device_on(compile=setting)
    assert isinstance(one.compiled(len, steps), Asked) == expected
    assert one.compiles == one.provenance()["compiled"] == expected


@pytest.mark.parametrize(
    ("device", "world", "graphs", "expected"),
    [
        ("cuda", 1, True, True),
        ("cuda", 1, False, False),
        ("cuda", 2, True, False),
        ("cpu", 1, True, False),
    ],
)
def test_graphs_are_for_one_gpu(asked, device, world, graphs, expected):
    found = device_on(device, world, compile="always").compiled(len, 1, length=4, graphs=graphs)
    assert found.asked == (len, 4, device == "cuda", expected, 1)


def test_without_a_compiler_it_runs_uncompiled_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(module.shutil, "which", lambda _name: None)
    one = device_on(compile="always")
    assert one.compiled(len, 1) is len
    assert not one.compiles
    assert (
        capsys.readouterr().err
        == "no C++ compiler found: running without compilation (same results, slower)\n"
    )


def test_what_cannot_be_compiled_is_said_once_and_runs_as_it_is(monkeypatch, capsys):
    def fails(*_: Any) -> None:
        raise TorchDynamoException("inductor raised:\nno Triton\nand a long trace")

    monkeypatch.setattr(torch, "compile", lambda function, **_: fails)
    one = module.Compiled(len, None, False, False, 1)
    assert [one([1, 2]), one([3])] == [2, 1]
    said = (
        "torch cannot compile here (inductor raised: no Triton): running without "
        "compilation (same results, slower)\n"
    )
    assert capsys.readouterr().err == said


def test_a_batch_of_another_length_runs_as_it_is(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda batch: "compiled")
    one = module.Compiled(len, 2, False, False, 1)
    assert [one([1, 2]), one([3])] == ["compiled", 1]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("x: can't allocate memory: you tried"),
    ],
)
def test_no_memory_left_is_told_as_one_line(error):
    with pytest.raises(ConfigError, match=r"^lower it$"), module.enough_memory(lambda: "lower it"):
        raise error


def test_seeds_of_different_purposes_differ():
    module.seed_everything("validate", 0, "weights")
    first = torch.rand(3)
    module.seed_everything("validate", 1, "weights")
    assert not torch.equal(first, torch.rand(3))
    module.seed_everything("validate", 0, "weights")
    assert torch.equal(first, torch.rand(3))
