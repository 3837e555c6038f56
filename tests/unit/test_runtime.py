import pytest
import torch

from cda import runtime
from cda.config import Runtime
from cda.errors import ConfigError


def test_threads_are_set_by_the_settings_and_nothing_else(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before = torch.get_num_threads()
    runtime.start(Runtime(device="cpu", cpu_threads=1))
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def test_a_missing_gpu_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"^config key runtime\.device: cuda, but torch sees no GPU; use auto or cpu"):
        runtime.start(Runtime(device="cuda"))


def test_without_bf16_it_runs_in_fp32_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    machine = runtime.start(Runtime(device="cpu", precision="bf16", cpu_threads=1))
    assert machine.half is None
    assert capsys.readouterr().err == "this cpu has no bf16: running in fp32\n"


def test_without_a_compiler_it_runs_uncompiled_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(runtime.shutil, "which", lambda _name: None)
    machine = runtime.start(Runtime(device="cpu", compile=True, cpu_threads=1))
    assert machine.compiled(len) is len
    assert capsys.readouterr().err == "no C++ compiler found: running without compilation (same results, slower)\n"


def test_provenance_tells_machine_versions_and_code():
    told = runtime.start(Runtime(device="cpu", cpu_threads=1)).provenance()
    assert told["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert len(told["code"]) == 16
    assert told["peak_memory_bytes"] > 1_000_000
    assert told["precision"] == "fp32"


def test_seeds_of_different_purposes_differ():
    runtime.seed_everything("validate", 0, "weights")
    first = torch.rand(3)
    runtime.seed_everything("validate", 1, "weights")
    assert not torch.equal(first, torch.rand(3))
    runtime.seed_everything("validate", 0, "weights")
    assert torch.equal(first, torch.rand(3))
