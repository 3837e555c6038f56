from typing import Any

import pytest
import torch
from torch import nn

from cda.config.settings import Runtime
from cda.engine import device as module
from cda.engine.device import Device, precision_on
from cda.engine.graphs import Graphed
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


@pytest.mark.parametrize(
    ("precision", "old", "new"),
    [
        ("auto", (None, False), (None, True)),
        ("tf32", (None, False), (None, True)),
        ("fp32", (None, False), (None, False)),
        ("bf16", (None, False), (torch.bfloat16, False)),
    ],
)
def test_a_gpu_runs_in_tf32_as_the_authors_did_and_an_old_one_in_fp32(
    monkeypatch, capsys, precision, old, new
):
    cuda = torch.device("cuda")
    for capability, expected in ((7, old), (9, new)):
        able = capability >= 8
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: (c, 0))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, a=able: a)
        assert precision_on(cuda, precision) == expected
    line = f"this cuda has no {precision}: running in fp32\n"
    assert capsys.readouterr().err == (line if precision in ("tf32", "bf16") else "")


def test_precision_may_differ_by_stage():
    runtime = Runtime.model_validate({"precision": {"recover": "bf16"}})
    assert [runtime.precision_of(stage) for stage in ("recover", "validate", "decode")] == [
        "bf16", "auto", "auto",
    ]  # fmt: skip
    assert Runtime(precision="fp32").precision_of("recover") == "fp32"


@pytest.mark.parametrize(("tf32", "name"), [(True, "tf32"), (False, "fp32")])
def test_a_devices_precision_is_torchs_and_in_the_provenance(tf32, name):
    before = torch.backends.cudnn.allow_tf32
    one = Device(Runtime(cpu_threads=1), torch.device("cpu"), None, tf32)
    one.use_precision()
    assert torch.backends.cudnn.allow_tf32 == tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert one.provenance()["precision"] == name
    torch.backends.cudnn.allow_tf32 = before


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


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_compiler_has_all_cores_of_the_job(compiler, monkeypatch, device):
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _process: {3, 5, 7})
    found = device_on(device, compile="always").compiled(len, 1, length=4)
    assert found.arguments == (len, 4, device == "cuda", 3)


@pytest.mark.parametrize(
    ("device", "world", "compiling", "expected"),
    [
        ("cuda", 1, "always", True),
        ("cuda", 1, "auto", False),
        ("cuda", 2, "always", False),
        ("cpu", 1, "always", False),
    ],
)
def test_steps_are_recorded_for_one_gpu_where_compiling_pays(device, world, compiling, expected):
    found = device_on(device, world, compile=compiling).graphed(len, 1, 4)
    assert isinstance(found, Graphed) == expected
    assert found is len or (found.step, found.length) == (len, 4)


def test_a_frozen_model_in_bf16_computes_the_same_bits():
    one = Device(Runtime(cpu_threads=1), torch.device("cpu"), torch.bfloat16)
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)]
    model, images = nn.Sequential(*layers).eval(), torch.randn(4, 3, 8, 8)
    with torch.no_grad(), one.autocast():
        expected = model(images)
        found = one.freeze(model)(images)
    assert torch.equal(found, expected)
    assert [layers[i].weight.dtype for i in (0, 1, 4)] == [
        torch.bfloat16, torch.float32, torch.bfloat16,
    ]  # fmt: skip
    assert not any(parameter.requires_grad for parameter in model.parameters())


class Standardised(nn.Conv2d):
    """A convolution that computes with its own weights before it uses them."""


def test_a_layer_that_computes_with_its_weights_stays_in_float32():
    one = Device(Runtime(cpu_threads=1), torch.device("cpu"), torch.bfloat16)
    assert one.freeze(Standardised(3, 3, 1)).weight.dtype == torch.float32
    assert one.freeze(nn.Conv2d(3, 3, 1)).weight.dtype == torch.bfloat16


class Wrapper:
    """Stands in for DistributedDataParallel of another version of torch."""

    def __init__(self, module: Any, device_ids: Any, **options: Any) -> None:
        self.options = options


class NewWrapper(Wrapper):
    def __init__(
        self, module: Any, device_ids: Any, forward_sync_buffers: bool | None = None
    ) -> None:
        super().__init__(module, device_ids, forward_sync_buffers=forward_sync_buffers)


class OldWrapper(Wrapper):
    def __init__(self, module: Any, device_ids: Any, broadcast_buffers: bool = True) -> None:
        super().__init__(module, device_ids, broadcast_buffers=broadcast_buffers)


@pytest.mark.parametrize(
    ("wrapper", "options"),
    [(NewWrapper, {"forward_sync_buffers": False}), (OldWrapper, {"broadcast_buffers": False})],
)
def test_ranks_have_buffers_of_their_own_in_every_torch(monkeypatch, wrapper, options):
    monkeypatch.setattr(module.nn.parallel, "DistributedDataParallel", wrapper)
    found: Any = device_on(world=2).parallel(nn.Linear(1, 1))
    assert found.options == options


def test_without_a_compiler_it_runs_uncompiled_and_logs_it(monkeypatch, capsys):
    monkeypatch.setattr(module.shutil, "which", lambda _name: None)
    one = device_on(compile="always")
    assert one.compiled(len, 1) is len
    assert not one.compiles
    assert (
        capsys.readouterr().err
        == "no C++ compiler found: running without compilation (same results, slower)\n"
    )


def test_seeds_of_different_purposes_differ():
    module.seed_everything("validate", 0, "weights")
    first = torch.rand(3)
    module.seed_everything("validate", 1, "weights")
    assert not torch.equal(first, torch.rand(3))
    module.seed_everything("validate", 0, "weights")
    assert torch.equal(first, torch.rand(3))
