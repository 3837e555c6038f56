"""The device of a job: a job that computes no network never touches a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cda.experiments.runs import decode_run
from cda.stages import recover, relabel


@pytest.fixture
def forbidden_gpu(monkeypatch):
    """A machine whose GPU must not be used: a call that would initialise CUDA fails."""

    def initialise() -> None:
        raise AssertionError("CUDA was initialised")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", initialise)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


RUNTIME = {"device": "auto", "cpu_threads": 1}


@pytest.mark.usefixtures("forbidden_gpu")
def test_jobs_without_a_network_run_on_the_cpu(tree):
    runs = tree.runs("random")
    context = tree.context(runs["recover"], runtime=RUNTIME)
    recover.run(context, 0, None, Path("part-0"))
    online = tree.context(runs["relabel"], runtime=RUNTIME, labels={"max_gb": 1e-9})
    relabel.run(online, Path("."), None, Path("labels"))
    assert Path("labels/header.json").exists()
    decoding = tree.context(decode_run(runs["recover"].data, runs["recover"].recipe))
    for job in (context, online, decoding):
        assert job.open_device().torch_device.type == "cpu"


@pytest.mark.usefixtures("forbidden_gpu")
def test_a_runtime_of_cuda_holds_for_jobs_with_a_network_alone(tree):
    runtime = {**RUNTIME, "device": "cuda"}
    decoding = decode_run(tree.runs()["recover"].data, tree.runs()["recover"].recipe)
    assert tree.context(decoding, runtime=runtime).open_device().torch_device.type == "cpu"
    for stage in ("squeeze", "recover", "relabel", "validate"):
        with pytest.raises(AssertionError, match="CUDA was initialised"):
            tree.context(tree.runs()[stage], runtime=runtime).open_device()
