"""Training images decoded when their turn comes, by processes of their own, from files too many to
be held.

An image is cropped as it lies on the disk, before it is made small: of a large photograph even a
small crop is sharp. How image i looks in epoch e is a pure function of (seed, e, i), so a resumed
epoch sees the same images and decodes none of those that it skips.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from cda.config.recipe import Squeeze
from cda.data.base import fit
from cda.data.folders import Folders
from cda.engine.device import Device
from cda.engine.images import Normalisation
from cda.errors import DataError
from cda.method.augment import draw_cutouts
from cda.rng import generator

MAGNITUDE = 9  # of RandAugment's operations, of 31
Sample = (
    tuple[Tensor, int] | DataError
)  # an error is carried, since a worker's exception would arrive as a traceback


class StreamedBatches:
    """A training split that stays on the disk, augmented and shuffled.

    Every epoch a pure function of (seed, epoch).
    """

    def __init__(self, source: Folders, recipe: Squeeze, device: Device) -> None:
        self.files, self.recipe, self.device = _Files(source, recipe), recipe, device
        self.images = len(self.files.labels)
        self.steps = -(-self.images // recipe.batch_size)
        self.normalised = Normalisation(source.dataset, device.torch_device)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(normalised images [B, 3, R, R], labels [B]) of every step; a rank's share of them.

        Raises DataError for a damaged image.
        """
        cuda = self.device.torch_device.type == "cuda"
        loader = DataLoader(
            self.files,
            batch_sampler=self._samples(epoch, first_step),
            num_workers=self.device.runtime.workers,
            collate_fn=_together,
            pin_memory=cuda,
            worker_init_fn=_ignore_signals,
            # the loader draws from it, and must not from the training's own
            generator=torch.Generator(),
        )
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            images, labels = (
                part.to(self.device.torch_device, non_blocking=cuda) for part in batch
            )
            yield self.normalised(images.float().div_(255)), labels

    def _samples(self, epoch: int, first_step: int) -> Sequence[list[tuple[int, int]]]:
        """(epoch, image) of every sample of this rank's batches."""
        order = generator("squeeze", self.recipe.seed, epoch, "order").permutation(self.images)
        size = self.recipe.batch_size
        return _Lazy(
            lambda step: [
                (epoch, int(index))
                for index in self.device.share(
                    order[(first_step + step) * size : (first_step + step + 1) * size]
                )
            ],
            self.steps - first_step,
        )


class _Lazy(Sequence[Any]):
    """A sequence of `length` items, made when they are asked for."""

    def __init__(self, item: Callable[[int], Any], length: int) -> None:
        self.item, self.length = item, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.item(index)


class _Files(Dataset[Sample]):
    """The images of a training split by (epoch, index), as bytes that worker processes share
    instead of copying.
    """

    def __init__(self, source: Folders, recipe: Squeeze) -> None:
        paths, self.labels = source.listing("train")
        self.folder = os.fsencode(source.folder("train"))
        self.names: NDArray[np.bytes_] = np.array(
            [os.fsencode(path)[len(self.folder) + 1 :] for path in paths]
        )
        self.source, self.recipe = source, recipe
        self.seen = StreamViews(recipe, source)

    def __getitem__(self, sample: tuple[int, int]) -> Sample:
        epoch, index = sample
        path = os.fsdecode(os.path.join(self.folder, self.names[index]))
        try:
            image = self.source.opened(path, self.source.content(path))
        except DataError as problem:
            return problem
        with torch.random.fork_rng(devices=[]):
            draws = generator("squeeze", self.recipe.seed, epoch, "image", index)
            torch.default_generator.manual_seed(int(draws.integers(2**63)))
            return v2.functional.pil_to_tensor(self.seen(image, draws)), int(self.labels[index])


class StreamViews:
    """Crop, flip, cutout and RandAugment of an RGB image of any size, to R × R pixels.

    Cutout comes before RandAugment, as in the ImageNet-21K-P code (Ridnik et al. 2021).
    torchvision's transforms draw from torch's global generator, cutout from `draws`.
    """

    def __init__(self, recipe: Squeeze, source: Folders) -> None:
        self.recipe, self.dataset, size = recipe, source.dataset, source.dataset.resolution
        self.crop: v2.Transform = v2.Identity()
        if recipe.augment == "random_resized_crop":
            self.crop = v2.RandomResizedCrop(size, scale=recipe.crop_scale, antialias=True)
        elif recipe.augment == "pad_crop":
            self.crop = v2.RandomCrop(size, padding=recipe.padding)
        self.flip, self.random = (
            v2.RandomHorizontalFlip(recipe.flip),
            v2.RandAugment(recipe.randaugment, MAGNITUDE),
        )

    def __call__(self, image: Image.Image, draws: np.random.Generator) -> Image.Image:
        """One image as one epoch sees it."""
        if self.recipe.augment != "random_resized_crop":
            image = Image.fromarray(fit(image, self.dataset))
        image = self.flip(self.crop(image))
        if self.recipe.cutout:
            image = _covered(image, draws, self.recipe.cutout)
        return self.random(image) if self.recipe.randaugment else image


def _covered(image: Image.Image, draws: np.random.Generator, share: float) -> Image.Image:
    """An R × R image under a square of one colour (`augment.draw_cutouts`)."""
    cutouts = draw_cutouts(draws, 1, image.width, share)
    top, bottom, left, right = cutouts.boxes[0].tolist()
    red, green, blue = np.rint(cutouts.colours[0] * 255).astype(int).tolist()
    image.paste((red, green, blue), (left, top, right, bottom))
    return image


def _together(samples: list[Sample]) -> tuple[Tensor, Tensor] | DataError:
    """A batch: images uint8 [B, 3, R, R] and labels [B], or the first error among its samples."""
    whole = [sample for sample in samples if not isinstance(sample, DataError)]
    if len(whole) < len(samples):
        return next(sample for sample in samples if isinstance(sample, DataError))
    return torch.stack([image for image, _ in whole]), torch.tensor([label for _, label in whole])


def _ignore_signals(_worker: int) -> None:
    """Signals that ask a job to stop reach its workers too.

    They end when the job does, which saves first.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
