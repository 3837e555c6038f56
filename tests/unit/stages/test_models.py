"""Fresh networks: seeded weights, and images that they cannot take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cda.config.settings import Runtime
from cda.engine.device import Device, seed_everything
from cda.errors import ArtifactError, ConfigError
from cda.method import networks
from cda.stages.models import fresh_model, least_batch, read_description

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


@pytest.mark.parametrize("content", [None, "", '{"run": "a', "[]", '{"run": "another"}'])
def test_a_damaged_description_names_the_file_that_snakemake_makes_again(content, tree):
    model = Path("artifacts/squeeze/digits/a-run/model.safetensors")
    model.parent.mkdir(parents=True)
    model.touch()  # while it exists Snakemake makes no description
    if content is not None:
        model.with_name("squeeze.json").write_text(content)
    line = f"; delete {model} and squeeze again, or pull both$"
    with pytest.raises(ArtifactError, match=line):
        read_description(model, tree.runs()["squeeze"])


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


@pytest.mark.parametrize("name", ["efficientnet", "mobilenet_v2"])
def test_trying_a_network_in_training_changes_neither_statistics_nor_draws(name, tree):
    run = replace(tree.runs()["validate"], model=name)
    seed_everything("toy", 3, "weights")
    reference = networks.build(name, 10, 8, run.recipe.architecture)
    draws = torch.get_rng_state()
    model = fresh_model(run, CPU, ("toy", 3))
    assert torch.equal(torch.get_rng_state(), draws)
    for key, tensor in reference.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key
    assert least_batch(run, 9, 4) == 2
    assert torch.equal(torch.get_rng_state(), draws)


class Several(torch.nn.Linear):
    """In training, logits and those of an auxiliary classifier."""

    def forward(self, images):
        logits = super().forward(images.mean(dim=(2, 3)))
        return (logits, logits) if self.training else logits


@pytest.mark.parametrize(
    ("network", "problem"),
    [
        (Several(3, 10), r"cannot train on .* \(it answers with tuple where logits \[2, 10\]"),
        (torch.nn.Flatten(), r"cannot take .* \(it answers with \[1, 192\] where logits \[1, 10\]"),
    ],
)
def test_a_network_without_logits_in_training_is_one_line(network, problem, tree, monkeypatch):
    monkeypatch.setattr(networks, "build", lambda *_: network)
    with pytest.raises(ConfigError, match=rf"^model 'resnet18' {problem}.*; use another model$"):
        fresh_model(tree.runs()["validate"], CPU, ("toy",))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_auxiliary_classifiers_answer_with_their_main_logits(name, tree):
    recipe = tree.runs()["validate"].recipe
    model = networks.build(name, 10, 75, recipe.architecture).train()
    logits = model(torch.zeros(2, 3, 75, 75))
    assert logits.shape == (2, 10)
    assert not any("aux" in key.lower() for key in model.state_dict())


def test_only_networks_that_need_two_images_join_a_last_one(tree):
    run = tree.runs()["validate"]  # its last maps are 1×1
    assert least_batch(run, 10, 9) == 2
    assert least_batch(run, 10, 8) == 1
    assert least_batch(run, 10, 18, 2) == 2
    assert least_batch(replace(run, model="convnet3"), 10, 9) == 1
    for batch_size, parts, fix in ((1, 1, ""), (2, 2, " or lower batch_parts")):
        with pytest.raises(ConfigError) as caught:
            least_batch(run, 10, batch_size, parts)
        assert str(caught.value).endswith(f"raise the recipe's batch_size ({batch_size}){fix}")
        assert least_batch(replace(run, model="convnet3"), 10, batch_size, parts) == 1
