"""Our ResNets against torchvision's on the same tensors, ConvNets against their description, and refused files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models as torchvisions

from cda.config import Architecture
from cda.errors import ArtifactError, ConfigError
from cda.models import build, load_weights

torch.set_num_threads(1)

SMALL, PUBLISHED = Architecture(stem="small"), Architecture()


def images(count: int, size: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(size).standard_normal((count, 3, size, size)))


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ResNets


@pytest.mark.parametrize("stem", ["small", "imagenet"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnets_compute_what_torchvisions_do(name, stem):
    torch.manual_seed(0)
    ours = build(name, 7, 32, Architecture(stem=stem)).double()
    theirs = getattr(torchvisions, name)(num_classes=7).double()
    if stem == "small":
        theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False).double(), nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    x = images(3, 20 if stem == "small" else 64)
    for training in (True, False):  # training first, so that evaluation sees running statistics that moved
        found, expected = ours.train(training)(x), theirs.train(training)(x)
        assert found.shape == (3, 7)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert all(torch.allclose(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))


@pytest.mark.parametrize(
    ("name", "count"),  # as torchvision's documentation states them
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
    ],
)
def test_published_resnets_have_the_published_tensors(name, count):
    with torch.device("meta"):
        ours, theirs = build(name, 1000, 224, PUBLISHED), getattr(torchvisions, name)()
    assert parameters(ours) == count
    assert {n: t.shape for n, t in ours.state_dict().items()} == {n: t.shape for n, t in theirs.state_dict().items()}
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_fresh_weights_are_drawn_as_torchvision_draws_them():
    torch.manual_seed(0)
    ours, theirs = build("resnet18", 10, 32, PUBLISHED).state_dict(), torchvisions.resnet18(num_classes=10).state_dict()
    for name, tensor in theirs.items():
        if tensor.numel() > 1000:
            assert ours[name].std().item() == pytest.approx(tensor.std().item(), rel=0.1), name
        elif "bn" in name or "downsample.1" in name:
            assert torch.equal(ours[name], tensor), name


def test_equal_seeds_give_equal_weights():
    def drawn() -> dict[str, Tensor]:
        torch.manual_seed(3)
        return build("resnet18", 10, 16, Architecture(stem="small", width=0.25)).state_dict()

    one, other = drawn(), drawn()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(("width", "channels"), [(1.0, 64), (0.25, 16), (0.5, 32), (2.0, 128), (0.01, 8)])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_width_multiplies_the_channels_of_a_resnet(name, width, channels):
    with torch.device("meta"):
        model = build(name, 5, 32, Architecture(stem="small", width=width))
    widths = [channels * 2**i if width > 0.1 else 8 for i in range(4)]
    assert model.conv1.weight.shape == (channels, 3, 3, 3)
    assert [getattr(model, f"layer{i + 1}")[0].conv2.out_channels for i in range(4)] == widths
    assert model.fc.weight.shape == (5, widths[3] * (4 if name == "resnet50" else 1))


def test_small_stem_keeps_the_resolution_until_the_second_layer():
    model, seen = build("resnet18", 10, 32, SMALL), {}
    for name in ("conv1", "layer1", "layer2", "layer3", "layer4"):
        getattr(model, name).register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out.shape[-1]))
    model(images(2, 32).float())
    assert seen == {"conv1": 32, "layer1": 32, "layer2": 16, "layer3": 8, "layer4": 4}
    assert parameters(model) == 11_689_512 - 9_408 + 1_728 - 513_000 + 5_130  # stem 7×7 to 3×3, 1000 classes to 10


# ConvNets


def test_convnet3_has_the_literatures_parameters():
    # 3×3 convolutions from 3 and twice from 128 channels with biases, norms of 128 twice, 128·4·4 features to 10
    by_hand = (27 * 128 + 128) + 2 * (9 * 128 * 128 + 128) + 3 * 256 + (128 * 16 * 10 + 10)
    assert parameters(build("convnet3", 10, 32, SMALL)) == by_hand == 320_010


@pytest.mark.parametrize(
    ("name", "size", "width", "features"),
    [("convnet3", 32, 1.0, 128 * 16), ("convnet4", 64, 1.0, 128 * 16), ("convnet3", 16, 0.25, 32 * 4)],
)
def test_convnets_are_convolution_instance_norm_relu_and_average_pool(name, size, width, features):
    model = build(name, 6, size, Architecture(stem="small", width=width)).double()
    w, x = list(model.parameters()), images(2, size)
    with torch.no_grad():
        for parameter in w:
            parameter += torch.randn_like(parameter) * 0.1
    expected = x
    for i in range(0, len(w) - 2, 4):
        expected = F.conv2d(expected, w[i], w[i + 1], padding=1)
        mean, var = expected.mean(dim=(2, 3), keepdim=True), expected.var(dim=(2, 3), keepdim=True, correction=0)
        normal = (expected - mean) / (var + 1e-5).sqrt() * w[i + 2][:, None, None] + w[i + 3][:, None, None]
        expected = F.avg_pool2d(normal.clamp(min=0), 2)
    assert len(w) == 4 * int(name[-1]) + 2
    assert w[-2].shape == (6, features)
    torch.testing.assert_close(model(x), expected.flatten(1) @ w[-2].mT + w[-1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["convnet0", "convnet9"])
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_convnets_that_cannot_be_are_refused(name):
    with pytest.raises(ConfigError):
        build(name, 10, 32, SMALL)


# Names


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2"])
def test_torchvisions_networks_go_by_their_names(name):
    model = build(name, 5, 64, SMALL).eval()
    assert type(model).__module__.startswith("torchvision")
    assert model(images(2, 64).float()).shape == (2, 5)


@pytest.mark.parametrize(("name", "size"), [("test_resnet", 32), ("vit_tiny_patch16_224", 64)])
def test_timms_networks_go_by_their_names_and_vits_take_the_resolution(name, size):
    model = build(name, 5, size, SMALL).eval()
    assert type(model).__module__.startswith("timm")
    assert model(images(2, size).float()).shape == (2, 5)


@pytest.mark.parametrize("name", ["resnet19", "convnet", "convnet33", "", "ResNet18", "no/such.model"])
def test_unknown_names_are_refused_in_one_line(name):
    with pytest.raises(ConfigError, match="is unknown; use") as caught:
        build(name, 10, 32, SMALL)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


# Weights on disk


def tiny(classes: int = 4) -> nn.Module:
    return build("convnet3", classes, 16, Architecture(width=0.1))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(tiny().state_dict(), path)
    return path


def refusal(model: nn.Module, path: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        load_weights(model, path)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: ")
    return line


def test_weights_come_back(saved):
    one, other = load_weights(tiny(), saved), load_weights(tiny(), saved)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_truncated_weights_are_refused(saved, left):
    saved.write_bytes(saved.read_bytes()[:left])
    assert "damaged model file" in refusal(tiny(), saved)


def test_pickled_weights_are_refused(tmp_path):
    torch.save(tiny().state_dict(), tmp_path / "model.safetensors")
    assert "damaged model file" in refusal(tiny(), tmp_path / "model.safetensors")


def test_weights_that_are_not_there_are_refused(tmp_path):
    assert "no such model" in refusal(tiny(), tmp_path / "model.safetensors")


def test_a_folder_is_no_model(tmp_path):
    refusal(tiny(), tmp_path)


def test_weights_of_another_network_are_refused(saved):
    assert "weights of another network (size mismatch" in refusal(tiny(classes=5), saved)
    assert "weights of another network (Missing key" in refusal(build("resnet18", 4, 16, SMALL), saved)
    few = {name: tensor for name, tensor in tiny().state_dict().items() if not name.startswith("classifier")}
    save_file(few, saved)
    assert "weights of another network (Missing key" in refusal(tiny(), saved)
    save_file(tiny().state_dict() | {"extra": torch.zeros(1)}, saved)
    assert "weights of another network (Unexpected key" in refusal(tiny(), saved)
