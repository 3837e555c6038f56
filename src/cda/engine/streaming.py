"""Training images that worker processes decode batch by batch, for sets too large for memory.

An image is cropped from the file's full resolution before it is resized, so that even a small crop
of a large photograph is sharp. The augmentation of image i in epoch e is a pure function of
(seed, e, i): a resumed epoch has the same images and decodes none of those that it skips.
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
from cda.engine.batches import batch_at
from cda.engine.device import Device, usable_cores
from cda.engine.images import Normalisation
from cda.errors import DataError
from cda.method.augment import draw_cutouts
from cda.rng import generator

MOST = 16  # decoding processes of a rank: each holds two batches
MAGNITUDE = 9  # of RandAugment's operations, of 31
# a worker returns an error instead of raising it, which would print a traceback
Sample = tuple[Tensor, int] | DataError


def worker_count(device: Device) -> int:
    """Processes that decode for one rank: `runtime.workers`, or its cores less one for itself.

    Images do not depend on their number.
    """
    setting = device.runtime.workers
    return setting if setting != "auto" else min(max(usable_cores() // device.world - 1, 1), MOST)


class StreamedBatches:
    """A training split on the disk, augmented and shuffled.

    An epoch is a pure function of (seed, epoch).
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
            num_workers=worker_count(self.device),
            collate_fn=_collate,
            pin_memory=cuda,
            worker_init_fn=_ignore_signals,
            # without one of its own the loader would draw from the training's generator
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

        def samples(step: int) -> list[tuple[int, int]]:
            batch = order[batch_at(first_step + step, self.steps, self.recipe.batch_size)]
            return [(epoch, int(index)) for index in self.device.share(batch)]

        return _Lazy(samples, self.steps - first_step)


class _Lazy(Sequence[Any]):
    """A sequence of `length` items, each made when it is indexed."""

    def __init__(self, item: Callable[[int], Any], length: int) -> None:
        self.item, self.length = item, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.item(index)


class _Files(Dataset[Sample]):
    """The images of a training split by (epoch, index).

    File names are one array of bytes, which worker processes share instead of copying.
    """

    def __init__(self, source: Folders, recipe: Squeeze) -> None:
        paths, self.labels = source.listing("train")
        self.folder = os.fsencode(source.folder("train"))
        self.names: NDArray[np.bytes_] = np.array(
            [os.fsencode(path)[len(self.folder) + 1 :] for path in paths]
        )
        self.source, self.recipe = source, recipe
        self.views = StreamViews(recipe, source)

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
            return v2.functional.pil_to_tensor(self.views(image, draws)), int(self.labels[index])


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
        """One image as one epoch's draws augment it."""
        if self.recipe.augment != "random_resized_crop":
            image = Image.fromarray(fit(image, self.dataset))
        image = self.flip(self.crop(image))
        if self.recipe.cutout:
            image = _cover(image, draws, self.recipe.cutout)
        return self.random(image) if self.recipe.randaugment else image


def _cover(image: Image.Image, draws: np.random.Generator, share: float) -> Image.Image:
    """An R × R image under a square of one colour (`augment.draw_cutouts`)."""
    cutouts = draw_cutouts(draws, 1, image.width, share)
    top, bottom, left, right = cutouts.boxes[0].tolist()
    red, green, blue = np.rint(cutouts.colours[0] * 255).astype(int).tolist()
    image.paste((red, green, blue), (left, top, right, bottom))
    return image


def _collate(samples: list[Sample]) -> tuple[Tensor, Tensor] | DataError:
    """A batch: images uint8 [B, 3, R, R] and labels [B], or the first error among its samples."""
    good = [sample for sample in samples if not isinstance(sample, DataError)]
    if len(good) < len(samples):
        return next(sample for sample in samples if isinstance(sample, DataError))
    return torch.stack([image for image, _ in good]), torch.tensor([label for _, label in good])


def _ignore_signals(_worker: int) -> None:
    """Ignore signals that stop the job: it saves first, and then ends its workers."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
