"""Published weights as a squeeze run of their own kind."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision

from cda.errors import ConfigError
from cda.runtime import start
from cda.stages import squeeze
from cda.stages.networks import load_squeezed

NAME = "ResNet18_Weights.IMAGENET1K_V1"


@pytest.fixture
def published(tree, monkeypatch):
    """A table whose recovery model is torchvision's ResNet-18; its weights are drawn here instead of downloaded."""
    tree.edit("recipes/digits.yaml", "squeeze:\n", f"squeeze:\n  weights: torchvision:{NAME}  # paper Section 3.4\n")
    tree.edit("recipes/digits.yaml", "  stem: small            # our choice: small images\n", "")
    tree.edit("recipes/digits.yaml", "  width: 0.125           # our choice: speed\n", "  stem: imagenet # published\n")
    torch.manual_seed(0)
    state = torchvision.models.resnet18(num_classes=10).state_dict()
    weight = SimpleNamespace(get_state_dict=lambda **_: state, meta={"_metrics": {"ImageNet-1K": {"acc@1": 69.758}}})

    def get_weight(name):
        if name != NAME:
            raise KeyError(name)
        return weight

    monkeypatch.setattr(torchvision.models, "get_weight", get_weight)
    return tree, state


def test_published_weights_become_a_squeeze_run(published):
    tree, state = published
    run = tree.runs()["squeeze"]
    out = Path("model/model.safetensors")
    squeeze.run(tree.context(run), out)
    described = json.loads(out.with_name("squeeze.json").read_text())
    assert (described["weights"], described["top1"], described["run"]) == (f"torchvision:{NAME}", 69.758, run.id)
    assert described["classes"] == list("0123456789")
    loaded = load_squeezed(out, run, start(tree.experiments().settings.runtime))
    reference = torchvision.models.resnet18(num_classes=10)
    reference.load_state_dict(state)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded(images), reference.eval()(images))


def test_training_values_do_not_name_published_weights(published):
    tree, _ = published
    before = tree.runs()["squeeze"].id
    tree.edit("recipes/digits.yaml", "lr: 0.1 ", "lr: 0.3 ")
    assert tree.runs()["squeeze"].id == before


@pytest.mark.parametrize(
    ("weights", "line"),
    [
        ("torchvision:ResNet18_Weights.NOPE", "torchvision has no weights 'ResNet18_Weights.NOPE'"),
        ("hub:something", "is neither torchvision:<Weights.NAME> nor timm:<tag>"),
    ],
)
def test_unknown_weights_end_in_one_line(published, weights, line):
    tree, _ = published
    tree.edit("recipes/digits.yaml", f"torchvision:{NAME}", weights)
    with pytest.raises(ConfigError, match=r"squeeze\.weights") as caught:
        squeeze.run(tree.context(tree.runs()["squeeze"]), Path("model/model.safetensors"))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_another_shape_are_refused(published):
    tree, state = published
    state["fc.weight"] = torch.zeros(1000, 512)
    with pytest.raises(ConfigError, match="does not fit resnet18 with 10 classes") as caught:
        squeeze.run(tree.context(tree.runs()["squeeze"]), Path("model/model.safetensors"))
    assert "\n" not in str(caught.value)
    assert not Path("model/model.safetensors").exists()
