"""The provenance of a result that a GPU made."""

from __future__ import annotations

import pytest
import torch

from cda.config.settings import Runtime
from cda.engine.device import open_device

pytestmark = pytest.mark.gpu


def test_it_has_the_gpu_and_the_versions_of_cuda_cudnn_and_the_driver():
    found = open_device(Runtime(device="cuda", cpu_threads=1)).provenance()
    assert found["device"] == torch.cuda.get_device_name()
    assert found["versions"]["cuda"] == torch.version.cuda
    assert all(found["versions"][name] for name in ("cudnn", "driver"))
