"""Our ResNets against torchvision's on the same tensors, ConvNets against their description, and
refused files.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models as torchvisions

from cda.config.names import NETWORKS, find, label, require_bn
from cda.config.recipe import Architecture
from cda.engine.checkpoint import load_weights
from cda.errors import ArtifactError, ConfigError
from cda.method.bn_matching import BatchNorm
from cda.method.networks import build

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
    own = build(name, 7, 32, Architecture(stem=stem)).double()
    reference = getattr(torchvisions, name)(num_classes=7).double()
    if stem == "small":
        reference.conv1, reference.maxpool = (
            nn.Conv2d(3, 64, 3, padding=1, bias=False).double(),
            nn.Identity(),
        )
    reference.load_state_dict(own.state_dict())
    x = images(3, 20 if stem == "small" else 64)
    for training in (
        True,
        False,
    ):  # training first, so that evaluation sees running statistics that moved
        found, expected = own.train(training)(x), reference.train(training)(x)
        assert found.shape == (3, 7)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert all(
        torch.allclose(a, b) for a, b in zip(own.buffers(), reference.buffers(), strict=True)
    )


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
        own, reference = build(name, 1000, 224, PUBLISHED), getattr(torchvisions, name)()
    assert parameters(own) == count
    assert {n: t.shape for n, t in own.state_dict().items()} == {
        n: t.shape for n, t in reference.state_dict().items()
    }
    assert list(own.state_dict()) == list(reference.state_dict())


def test_fresh_weights_are_drawn_as_torchvision_draws_them():
    torch.manual_seed(0)
    own, reference = (
        build("resnet18", 10, 32, PUBLISHED).state_dict(),
        torchvisions.resnet18(num_classes=10).state_dict(),
    )
    for name, tensor in reference.items():
        if tensor.numel() > 1000:
            assert own[name].std().item() == pytest.approx(tensor.std().item(), rel=0.1), name
        elif "bn" in name or "downsample.1" in name:
            assert torch.equal(own[name], tensor), name


def test_equal_seeds_give_equal_weights():
    def drawn() -> dict[str, Tensor]:
        torch.manual_seed(3)
        return build("resnet18", 10, 16, Architecture(stem="small", width=0.25)).state_dict()

    one, other = drawn(), drawn()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_usual_weights_are_drawn_as_they_always_were():
    torch.manual_seed(3)
    drawn = build("resnet18", 10, 16, Architecture(stem="small", width=0.25)).state_dict()
    first = {
        "conv1.weight": [-0.0299161747, 0.1366521120, -0.0809018984],
        "layer1.0.conv1.weight": [-0.0378700309, -0.0537026115, -0.1407975256],
        "layer4.1.conv2.weight": [0.0281408112, 0.0433543436, 0.0014402790],
        "fc.weight": [-0.0744847357, 0.0067212633, 0.0094812289],
    }
    for name, values in first.items():
        assert drawn[name].flatten()[:3].tolist() == pytest.approx(values, rel=1e-6), name


def test_a_torch_stem_is_a_new_convolution_and_the_others_are_torchvisions():
    """The authors put a new nn.Conv2d into torchvision's network (fidelity 28)."""
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 64, 3, padding=1, bias=False).weight
    torch.manual_seed(0)
    own = build("resnet18", 10, 32, Architecture(stem="small", stem_init="torch")).state_dict()
    usual = build("resnet18", 10, 32, SMALL).state_dict()
    assert torch.equal(own["conv1.weight"], stem)
    assert own["conv1.weight"].std().item() == pytest.approx(0.111, rel=0.05)
    assert usual["conv1.weight"].std().item() == pytest.approx(0.059, rel=0.05)
    reference = torchvisions.resnet18(num_classes=10).state_dict()
    for name, tensor in reference.items():
        if tensor.ndim == 4 and name != "conv1.weight":
            assert own[name].std().item() == pytest.approx(tensor.std().item(), rel=0.1), name


def test_a_published_stem_is_drawn_as_published_whatever_stem_init_is():
    def drawn(architecture: Architecture) -> Tensor:
        torch.manual_seed(1)
        return build("resnet18", 10, 32, architecture).conv1.weight

    other = Architecture(stem_init="torch")
    assert torch.equal(drawn(other), drawn(PUBLISHED))
    assert other.identity() == PUBLISHED.identity() == {"stem": "imagenet", "width": 1.0}


@pytest.mark.parametrize(
    ("width", "channels"), [(1.0, 64), (0.25, 16), (0.5, 32), (2.0, 128), (0.01, 8)]
)
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
        getattr(model, name).register_forward_hook(
            lambda _m, _i, out, name=name: seen.__setitem__(name, out.shape[-1])
        )
    model(images(2, 32).float())
    assert seen == {"conv1": 32, "layer1": 32, "layer2": 16, "layer3": 8, "layer4": 4}
    assert (
        parameters(model) == 11_689_512 - 9_408 + 1_728 - 513_000 + 5_130
    )  # stem 7×7 to 3×3, 1000 classes to 10


# ConvNets


def test_convnet3_has_the_literatures_parameters():
    # 3×3 convolutions from 3 and twice from 128 channels with biases, norms of 128 twice, 128·4·4
    # features to 10
    by_hand = (27 * 128 + 128) + 2 * (9 * 128 * 128 + 128) + 3 * 256 + (128 * 16 * 10 + 10)
    assert parameters(build("convnet3", 10, 32, SMALL)) == by_hand == 320_010


@pytest.mark.parametrize(
    ("name", "size", "width", "features"),
    [
        ("convnet3", 32, 1.0, 128 * 16),
        ("convnet4", 64, 1.0, 128 * 16),
        ("convnet3", 16, 0.25, 32 * 4),
        ("convnet3", 16, 0.01, 8 * 4),  # eight channels at least
    ],
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
        mean, var = (
            expected.mean(dim=(2, 3), keepdim=True),
            expected.var(dim=(2, 3), keepdim=True, correction=0),
        )
        normal = (expected - mean) / (var + 1e-5).sqrt() * w[i + 2][:, None, None] + w[i + 3][
            :, None, None
        ]
        expected = F.avg_pool2d(normal.clamp(min=0), 2)
    assert len(w) == 4 * int(name[-1]) + 2
    assert w[-2].shape == (6, features)
    torch.testing.assert_close(model(x), expected.flatten(1) @ w[-2].mT + w[-1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("depth", [1, 5])
def test_convnets_have_from_one_block_to_as_many_as_the_image_can_be_halved(depth):
    model = build(f"convnet{depth}", 10, 32, SMALL)
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == depth


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


@pytest.mark.parametrize(
    ("name", "size"), [("deit_tiny", 16), ("deit_tiny", 64), ("resmlp_12_224", 32), ("resmlp", 224)]
)
def test_transformers_and_mlps_take_the_resolution(name, size):
    model = build(name, 5, size, SMALL).eval()
    assert model(images(2, size).float()).shape == (2, 5)


@pytest.mark.parametrize(
    "name", ["resnet19", "convnet", "convnet33", "", "ResNet18", "no/such.model", "fcn_resnet50"]
)
def test_unknown_names_are_refused_in_one_line(name):
    with pytest.raises(ConfigError, match=r"is unknown.*; use") as caught:
        build(name, 10, 32, SMALL)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


# The catalogue


def without_values(name: str, classes: int = 1000) -> nn.Module:
    device = (
        "cpu" if name.startswith("regnet") else "meta"
    )  # torchvision computes a RegNet's widths with tensors
    with torch.device(device):
        return build(name, classes, 224, PUBLISHED)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("squeezenet", 1.2),
        ("mobilenet", 3.5),
        ("efficientnet", 5.3),
        ("mnasnet", 6.3),
        ("shufflenet", 7.4),
        ("resmlp", 30.0),
        ("alexnet", 61.1),
        ("deit_base", 86.6),
        ("vgg11", 132.9),
        ("vgg13", 133.0),
        ("vgg16", 138.4),
        ("vgg19", 143.7),
    ],
)
def test_networks_of_table_20_have_its_parameters(name, millions):
    assert round(parameters(without_values(name)) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("name", "count"),  # as torchvision's documentation and timm's state them
    [
        ("densenet121", 7_978_856),
        ("regnet_y_8gf", 39_381_472),
        ("convnext_tiny", 28_589_128),
        ("deit_tiny", 5_717_416),
        ("mobilenet_v2", 3_504_872),
    ],
)
def test_networks_of_table_7_are_the_published_ones(name, count):
    assert parameters(without_values(name)) == count


def test_the_catalogue_has_every_network_of_the_papers_tables():
    with (Path(__file__).parents[3] / "config" / "reported.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["setting"] != "quoted"]
    named = {row[key] for row in rows for key in ("recovery_model", "validation_model")} - {""}
    assert len(named) > 20
    assert [
        name for name in sorted(named) if find(name) is None and name != "resnet50-ridnik2021"
    ] == []


@pytest.mark.parametrize("name", [*NETWORKS, "convnet3"])
def test_the_catalogue_knows_which_networks_have_bn_layers(name):
    assert find(name).bn == has_bn(name)


def has_bn(name: str) -> bool:
    return any(isinstance(module, BatchNorm) for module in without_values(name, 10).modules())


@pytest.mark.parametrize(
    "name",
    ["convnet4", "vgg16", "deit_tiny", "squeezenet1_1", "vit_b_16", "swin_v2_t", "convnext_small",
     "convnextv2_atto", "vit_tiny_patch16_224", "deit3_small_patch16_224",
     "swin_tiny_patch4_window7_224", "mixer_s16_224", "resmlp_12_224"],
)  # fmt: skip
def test_networks_without_bn_layers_are_no_recovery_models(name):
    assert not has_bn(name)
    with pytest.raises(ConfigError, match="has no BN layers") as caught:
        require_bn(name)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "densenet121",
        "vgg11_bn",
        "maxvit_t",
        "vit_small_resnet26d_224",
        "vit_base_mci_224",
        "test_resnet",
    ],
)
def test_networks_with_bn_layers_may_be_recovery_models(name):
    assert has_bn(name)
    require_bn(name)


def test_names_that_nobody_knows_are_left_to_the_network_itself():
    require_bn("no/such.model")


def test_labels_are_the_papers():
    assert [label(name) for name in ("resnet18", "convnet3", "vgg11")] == [
        "ResNet-18",
        "ConvNet-3",
        "VGG-11",
    ]
    assert label("test_resnet") == "test_resnet"


def test_the_catalogue_does_not_import_torch():
    script = (
        "import sys, cda.config.names; cda.config.names.require_bn('resnet18'); "
        "print('torch' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "False"


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


def test_mnasnets_weights_come_back(tmp_path):
    """Torchvision's MNASNet loads only tensors that tell its version, which a file does not."""
    one, other = (build("mnasnet0_5", 4, 32, SMALL) for _ in range(2))
    save_file(one.state_dict(), tmp_path / "model.safetensors")
    load_weights(other, tmp_path / "model.safetensors")
    assert all(
        torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items()
    )


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
    assert "weights of another network (Missing key" in refusal(
        build("resnet18", 4, 16, SMALL), saved
    )
    few = {
        name: tensor
        for name, tensor in tiny().state_dict().items()
        if not name.startswith("classifier")
    }
    save_file(few, saved)
    assert "weights of another network (Missing key" in refusal(tiny(), saved)
    save_file(tiny().state_dict() | {"extra": torch.zeros(1)}, saved)
    assert "weights of another network (Unexpected key" in refusal(tiny(), saved)


def test_googlenet_has_the_input_and_the_first_weights_of_its_publisher():
    """Published weights expect inputs scaled by the network itself; fresh ones are Inception's."""
    torch.manual_seed(0)
    model = build("googlenet", 10, 96, Architecture())
    assert getattr(model, "transform_input") is True  # noqa: B009 (not every network has it)
    assert next(model.parameters()).std().item() == pytest.approx(0.01, rel=0.05)
