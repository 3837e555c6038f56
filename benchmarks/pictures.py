"""The plain way to feed a network: PIL images, torchvision's transforms, a DataLoader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks.harness import Setting
from cda.config.recipe import Augmentation
from cda.config.settings import Dataset
from cda.rng import generator


def synthetic(count: int, data: Dataset) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Random images uint8 [N, R, R, 3] and labels [N]."""
    draws, size = generator("benchmark", "images"), data.resolution
    images = draws.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return images, draws.integers(0, data.classes, count)


class Pictures(torch.utils.data.Dataset[tuple[Tensor, int, int]]):
    """(transformed image, label, index) of uint8 images, like torchvision's CIFAR classes."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        transform: Callable[[Any], Tensor],
    ) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index]), index


def transform_of(recipe: Augmentation, data: Dataset) -> Callable[[Any], Tensor]:
    """Torchvision's transforms of a PIL image, of the same distribution as the recipe's."""
    size = data.resolution
    crops: dict[str, list[Any]] = {
        "pad_crop": [transforms.RandomCrop(size, padding=recipe.padding)],
        "random_resized_crop": [transforms.RandomResizedCrop(size, scale=recipe.crop_scale)],
        "none": [],
    }
    flip, normalise = (
        transforms.RandomHorizontalFlip(recipe.flip),
        transforms.Normalize(data.mean, data.std),
    )
    chain: Callable[[Any], Tensor] = transforms.Compose(
        [*crops[recipe.augment], flip, transforms.ToTensor(), normalise]
    )
    return chain


def loader_of(
    pictures: Pictures, batch_size: int, setting: Setting
) -> DataLoader[tuple[Tensor, int, int]]:
    """Shuffled batches from worker processes that stay alive between epochs."""
    workers = 0 if setting.quick else 8 if setting.cuda else 2
    return DataLoader(
        pictures,
        batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=setting.cuda,
        persistent_workers=workers > 0,
    )
