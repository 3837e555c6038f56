from typing import Any

import pytest
import torch

from cda.config.settings import Runtime
from cda.engine import device as module
from cda.engine.device import Device, half_precision
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


def test_without_bf16_it_runs_in_fp32_and_logs_it(monkeypatch, capsys):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    device = module.open_device(Runtime(device="cpu", precision="bf16", cpu_threads=1))
    assert device.half is None
    assert capsys.readouterr().err == "this cpu has no bf16: running in fp32\n"


def test_a_gpu_without_bf16_runs_in_fp32_and_logs_it(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    cuda = torch.device("cuda")
    assert half_precision(Runtime(precision="bf16"), cuda) is None
    assert capsys.readouterr().err == "this cuda has no bf16: running in fp32\n"
    assert half_precision(Runtime(), cuda) is None
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert half_precision(Runtime(), cuda) is torch.bfloat16
    assert capsys.readouterr().err == ""


# Compiling


def device_on(device: str = "cpu", world: int = 1, **values: Any) -> Device:
    return Device(Runtime(cpu_threads=1, **values), torch.device(device), None, world=world)


class Requested:
    """Stands in for `Compiled` and records its arguments."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments


@pytest.fixture
def compiler(monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda _name: "/bin/c++")
    monkeypatch.setattr(module, "Compiled", Requested)


@pytest.mark.parametrize(
    ("setting", "steps", "expected"),
    [("never", 10**6, False), ("always", 1, True), ("auto", 999, False), ("auto", 1000, True)],
)
def test_compiling_is_decided_by_the_setting_and_the_jobs_steps(compiler, setting, steps, expected):
    one = device_on(compile=setting)
    assert isinstance(one.compiled(len, steps), Requested) == expected
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
def test_graphs_are_for_one_gpu(compiler, device, world, graphs, expected):
    found = device_on(device, world, compile="always").compiled(len, 1, length=4, graphs=graphs)
    assert found.arguments == (len, 4, device == "cuda", expected, 1)


def test_without_a_compiler_it_runs_uncompiled_and_logs_it(monkeypatch, capsys):
    monkeypatch.setattr(module.shutil, "which", lambda _name: None)
    one = device_on(compile="always")
    assert one.compiled(len, 1) is len
    assert not one.compiles
    assert (
        capsys.readouterr().err
        == "no C++ compiler found: running without compilation (same results, slower)\n"
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("x: can't allocate memory: you tried"),
    ],
)
def test_no_memory_left_is_one_line(error):
    with pytest.raises(ConfigError, match=r"^lower it$"), module.enough_memory(lambda: "lower it"):
        raise error


def test_seeds_of_different_purposes_differ():
    module.seed_everything("validate", 0, "weights")
    first = torch.rand(3)
    module.seed_everything("validate", 1, "weights")
    assert not torch.equal(first, torch.rand(3))
    module.seed_everything("validate", 0, "weights")
    assert torch.equal(first, torch.rand(3))
