"""Networks by name: ResNets, the field's ConvNets, and all networks of torchvision and timm.

ResNets may have small stems and narrow widths. Their tensors have torchvision's names and shapes,
so published weights load. They are defined here because narrow ones exist nowhere else and because
the import of torchvision costs every small job some seconds.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from cda.config.names import NETWORKS, Network, find
from cda.config.recipe import Architecture
from cda.errors import ConfigError
from cda.text import nearest

RESNETS = {  # name: (bottleneck blocks or basic ones, blocks per layer)
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet34": (False, (3, 4, 6, 3)),
    "resnet50": (True, (3, 4, 6, 3)),
    "resnet101": (True, (3, 4, 23, 3)),
    "resnet152": (True, (3, 8, 36, 3)),
}
# Without auxiliary classifiers a network answers with its main logits in training too, and its
# input is scaled as its published weights expect.
_MAIN = {"aux_logits": False, "transform_input": True, "init_weights": True}
_OPTIONS: dict[str, dict[str, Any]] = {"googlenet": _MAIN, "inception_v3": _MAIN}  # torchvision's
# timm's families whose tensors depend on the resolution
_SIZED = re.compile(r"vit|deit|swin|resmlp|mixer")


def _conv(ins: int, outs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(ins, outs, kernel, stride, padding=kernel // 2, bias=False)


def rectified(norm: nn.Module, x: Tensor, plus: Tensor | None = None) -> Tensor:
    """relu(norm(x) + plus), in place.

    A layer with an attribute `rectified` (from `BNMatching` with kernels) does it in one pass.
    """
    fused = getattr(norm, "rectified", None)
    if fused is not None:
        result: Tensor = fused(x, plus)
        return result
    y = norm(x)
    return torch.relu_(y if plus is None else y.add_(plus))


class Residual(nn.Module):
    """A basic (two 3×3) or bottleneck (1×1, 3×3, 1×1 to fourfold) block of He et al. 2016.

    The stride is on the 3×3, as in torchvision.
    """

    def __init__(self, ins: int, planes: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outs = planes * 4 if bottleneck else planes
        self.conv1 = _conv(ins, planes, 1) if bottleneck else _conv(ins, planes, 3, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv(planes, planes, 3, stride if bottleneck else 1)
        self.bn2 = nn.BatchNorm2d(planes)
        if bottleneck:
            self.conv3 = _conv(planes, outs, 1)
            self.bn3 = nn.BatchNorm2d(outs)
        self.bottleneck = bottleneck
        fits = stride == 1 and ins == outs
        self.downsample = (
            None if fits else nn.Sequential(_conv(ins, outs, 1, stride), nn.BatchNorm2d(outs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, ins, H, W] to [N, outs, H/stride, W/stride]."""
        y, norm = self.conv2(rectified(self.bn1, self.conv1(x))), self.bn2
        if self.bottleneck:
            y, norm = self.conv3(rectified(norm, y)), self.bn3
        return rectified(norm, y, x if self.downsample is None else self.downsample(x))


class ResNet(nn.Module):
    """ResNet-18 to 152; `stem: small` is a 3×3 convolution of stride 1 and no max-pool."""

    def __init__(self, name: str, classes: int, architecture: Architecture) -> None:
        super().__init__()
        bottleneck, depths = RESNETS[name]
        planes = [max(8, round(64 * architecture.width * 2**i)) for i in range(4)]
        small = architecture.stem == "small"
        self.conv1 = _conv(3, planes[0], 3 if small else 7, 1 if small else 2)
        self.bn1 = nn.BatchNorm2d(planes[0])
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        ins = planes[0]
        for index, (width, depth) in enumerate(zip(planes, depths, strict=True)):
            blocks = []
            for block in range(depth):
                blocks.append(Residual(ins, width, 2 if index and not block else 1, bottleneck))
                ins = width * 4 if bottleneck else width
            setattr(self, f"layer{index + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(ins, classes)
        drawn = self.conv1 if small and architecture.stem_init == "torch" else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module is not drawn:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, R, R] to logits [N, classes]."""
        x = self.maxpool(rectified(self.bn1, self.conv1(x)))
        for index in range(1, 5):
            x = getattr(self, f"layer{index}")(x)
        return self.fc(x.mean(dim=(2, 3)))


class ConvNet(nn.Module):
    """The distillation literature's ConvNet: 3×3 convolution, InstanceNorm, ReLU, average pool.

    `depth` such blocks, then a linear classifier.
    """

    def __init__(
        self, depth: int, classes: int, resolution: int, architecture: Architecture
    ) -> None:
        super().__init__()
        width = max(8, round(128 * architecture.width))
        layers: list[nn.Module] = []
        for index in range(depth):
            convolution = nn.Conv2d(width if index else 3, width, 3, padding=1)
            layers += [convolution, nn.GroupNorm(width, width), nn.ReLU(), nn.AvgPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * (resolution // 2**depth) ** 2, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Images [N, 3, R, R] to what the classifier sees [N, D]."""
        return self.features(x).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, R, R] to logits [N, classes]."""
        return self.classifier(self.embed(x))


def build(name: str, classes: int, resolution: int, architecture: Architecture) -> nn.Module:
    """A fresh network with weights from torch's global generator; ConfigError for unknown names.

    `name` is looked up in `cda.config.names`, then torchvision, then timm.
    """
    network = find(name) or Network("torchvision" if _torchvision_has(name) else "timm", name, name)
    if network.library == "own":
        return _own(name, classes, resolution, architecture)
    if network.library == "torchvision":
        from torchvision import models

        own = _OPTIONS.get(network.name, {})
        built: nn.Module = models.get_model(network.name, weights=None, num_classes=classes, **own)
        return built
    import timm

    if not timm.is_model(network.name):
        raise ConfigError(
            f"model {name!r} is unknown{nearest(name, NETWORKS)}; use convnet3, "
            f"{', '.join(NETWORKS)}, or a name of torchvision or timm"
        )
    sized: Any = {"img_size": resolution} if _SIZED.match(network.name) else {}
    return timm.create_model(network.name, num_classes=classes, **sized)


def _torchvision_has(name: str) -> bool:
    from torchvision import models

    return name in models.list_models(module=models)


def _own(name: str, classes: int, resolution: int, architecture: Architecture) -> nn.Module:
    if name in RESNETS:
        return ResNet(name, classes, architecture)
    depth = int(name.removeprefix("convnet"))
    if not 1 <= depth <= math.log2(resolution):
        raise ConfigError(
            f"model {name!r} halves {resolution} pixels too often or never; use convnet3"
        )
    return ConvNet(depth, classes, resolution, architecture)
