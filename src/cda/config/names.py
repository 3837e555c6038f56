"""The networks, methods and data sets that the paper names, and labels in tables and figures.

This module imports no torch.

Names are those of `config/reported.csv`. Table 20 names families only; of each, the variant is
taken whose parameters at 1,000 classes are the table's: MobileNet 3.5 M, EfficientNet 5.3 M,
MNASNet 6.3 M, ShuffleNet 7.4 M, ResMLP 30.0 M, AlexNet 61.1 M, DeiT-Base 86.6 M, and the VGGs
without BN, 132.9 to 143.7 M. SqueezeNet's 1.2 M fit 1.0 and 1.1; 1.0 is taken.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from cda.errors import ConfigError

Library = Literal["own", "torchvision", "timm"]


class Network(NamedTuple):
    """A network that the paper names."""

    library: Library
    name: str  # the library's own
    label: str  # in tables and figures
    bn: bool = True  # whether it has BN layers, which recovery matches


NETWORKS: dict[str, Network] = {
    **{
        f"resnet{depth}": Network("own", f"resnet{depth}", f"ResNet-{depth}")
        for depth in (18, 34, 50, 101, 152)
    },
    "densenet121": Network("torchvision", "densenet121", "DenseNet-121"),
    "regnet_y_8gf": Network("torchvision", "regnet_y_8gf", "RegNet-Y-8GF"),
    "convnext_tiny": Network("torchvision", "convnext_tiny", "ConvNeXt-Tiny", bn=False),
    "deit_tiny": Network("timm", "deit_tiny_patch16_224", "DeiT-Tiny", bn=False),
    "mobilenet_v2": Network("torchvision", "mobilenet_v2", "MobileNet-V2"),
    "squeezenet": Network("torchvision", "squeezenet1_0", "SqueezeNet", bn=False),
    "mobilenet": Network("torchvision", "mobilenet_v2", "MobileNet"),
    "efficientnet": Network("torchvision", "efficientnet_b0", "EfficientNet"),
    **{
        f"efficientnet_lite{size}": Network(
            "timm", f"tf_efficientnet_lite{size}", f"EfficientNet-Lite{size}"
        )
        for size in range(5)
    },
    "mnasnet": Network("torchvision", "mnasnet1_3", "MNASNet"),
    "shufflenet": Network("torchvision", "shufflenet_v2_x2_0", "ShuffleNet"),
    "resmlp": Network("timm", "resmlp_24_224", "ResMLP", bn=False),
    "alexnet": Network("torchvision", "alexnet", "AlexNet", bn=False),
    "deit_base": Network("timm", "deit_base_patch16_224", "DeiT-Base", bn=False),
    **{
        f"vgg{depth}": Network("torchvision", f"vgg{depth}", f"VGG-{depth}", bn=False)
        for depth in (11, 13, 16, 19)
    },
}

METHODS = {
    "cda": "CDA", "sre2l": "SRe²L", "random": "Random real images", "real": "Real images",
    "dc": "DC", "dsa": "DSA", "dm": "DM", "mtt": "MTT", "ctl-easy": "Easy", "ctl-hard": "Hard",
    "rcl-step": "Reverse step", "cl-step": "Step", "cl-linear": "Linear", "cl-cosine": "Cosine",
}  # fmt: skip

LAYOUTS = ("image_folder", "tiny_imagenet", "imagenet1k", "imagenet21k")  # of one's own images
DATASETS = ("cifar100", "tiny_imagenet", "imagenet1k", "imagenet21k_p")

# Families of torchvision and timm without BN layers. A vit_… on a ResNet or on MobileCLIP has some.
_WITHOUT_BN = re.compile(
    r"squeezenet1_\d|(deit|swin|mixer|resmlp|convnext)\w*|vit_(?!.*(resnet|mci))\w*"
)


def find(model: str) -> Network | None:
    """The network of that name in this module; None for any other name."""
    if match := re.fullmatch(r"convnet(\d)", model):
        return Network("own", model, f"ConvNet-{match[1]}", bn=False)
    return NETWORKS.get(model)


def label(model: str) -> str:
    """A network's label in tables and figures: the paper's, else its own name.

    >>> label("regnet_y_8gf"), label("resnet50-ridnik2021")
    ('RegNet-Y-8GF', 'resnet50-ridnik2021')
    """
    network = find(model)
    return network.label if network else model


def method_label(method: str) -> str:
    """A method's label in tables and figures: the paper's, else its own name.

    >>> method_label("sre2l"), method_label("mine")
    ('SRe²L', 'mine')
    """
    return METHODS.get(method, method)


def scale_label(scale: str, dataset: str) -> str:
    """A scale as tables and run JSONs name it: `own` where `paper` is no scale of the paper's.

    Data sets that the paper does not use run there with their recipe's own values.

    >>> scale_label("paper", "cifar100"), scale_label("paper", "flowers"), scale_label("demo", "x")
    ('paper', 'own', 'demo')
    """
    return "own" if scale == "paper" and dataset not in DATASETS else scale


def require_bn(model: str) -> None:
    """Raise ConfigError if `model` is known to have no BN layers and so cannot be a recovery model.

    Unknown names pass; `cda.method.bn_matching.bn_layers` checks the network before the first step.
    """
    network = find(model)
    if not network.bn if network else _WITHOUT_BN.fullmatch(model):
        raise ConfigError(
            f"recovery model {model!r} has no BN layers to match; use one that has, such as "
            "resnet18"
        )
