"""Fresh networks: seeded weights, and images that they cannot take."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cda.config.settings import Runtime
from cda.engine.device import Device, seed_everything
from cda.errors import ConfigError
from cda.method import networks
from cda.stages.models import fresh_model

CPU = Device(Runtime(device="cpu"), torch.device("cpu"), None)


class Failing(Device):
    """A device on which every forward pass fails."""

    def place(self, model):
        def fail(*_):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        model.register_forward_pre_hook(fail)
        return super().place(model)


def test_an_error_of_the_device_is_not_read_as_one_of_the_images(tree):
    device = Failing(CPU.runtime, CPU.torch_device, None)
    model = fresh_model(tree.runs()["validate"], device, ("toy",))
    with pytest.raises(RuntimeError, match="CUDA error"):
        model(torch.zeros(1, 3, 8, 8))


def test_a_network_that_cannot_take_the_images_is_one_line(tree):
    run = replace(tree.runs()["validate"], model="alexnet")
    line = r"^model 'alexnet' cannot take 8×8 images \(.*\); use another model$"
    with pytest.raises(ConfigError, match=line):
        fresh_model(run, CPU, ("toy",))


def test_weights_and_later_draws_are_those_of_the_seed_alone(tree):
    run = replace(tree.runs()["validate"], model="mobilenet_v2")  # it has dropout
    seed_everything("toy", 3, "weights")
    reference = networks.build(run.model, 10, 8, run.recipe.architecture)
    draws = torch.get_rng_state()
    torch.manual_seed(1)
    model = fresh_model(run, CPU, ("toy", 3))
    assert torch.equal(torch.get_rng_state(), draws)
    for name, tensor in reference.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
