"""Images resident on the device as uint8; the rest is batched tensor operations there, no image decoded twice.

Sets that are too large for that are memory maps, of which a batch at a time goes to the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cda.config import Dataset, Relabel, Squeeze
from cda.data.labels import EpochPlan, epoch_plan
from cda.data.sources import ImageSet
from cda.method.augment import cutmix, cutout, draw_cutouts, draw_views, generator, mixup, resample, resampling
from cda.progress import say
from cda.runtime import Machine


def fits(size: int, machine: Machine) -> bool:
    """Whether `size` bytes of images leave a GPU at least as much memory for the network; says so if not."""
    if machine.device.type != "cuda" or size <= torch.cuda.mem_get_info(machine.device)[0] / 2:
        return True
    say(f"{size / 1e9:.1f} GB of images stay in the host's memory: more than half of what the GPU has free")
    return False


class Normalisation:
    """A data set's own: (images − mean) / std per channel, on the device."""

    def __init__(self, data: Dataset, device: torch.device) -> None:
        self.mean = torch.tensor(data.mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(data.std, device=device).view(1, 3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Images [N, 3, R, R] of values in [0, 1], normalised."""
        return (images - self.mean) / self.std


class Images:
    """All images uint8 [N, R, R, 3] and labels [N] of a set, on the device.

    A memory map stays on the disk, and what a GPU has no room for in the host's memory.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        data: Dataset,
        machine: Machine,
        classes: Sequence[str] = (),
    ) -> None:
        resident = not isinstance(images, np.memmap) and fits(images.nbytes, machine)
        self.apart = None if resident else images
        if resident:
            self.pixels = torch.from_numpy(images).to(machine.device)
        self.labels = torch.from_numpy(labels).to(machine.device)
        self.normalised = Normalisation(data, machine.device)
        self.size, self.device, self.machine, self.classes = data.resolution, machine.device, machine, list(classes)

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, index: Tensor) -> Tensor:
        """Images `index` in [0, 1], float32 [n, 3, R, R]."""
        if self.apart is None:
            taken = self.pixels[index]
        else:
            taken = torch.from_numpy(self.apart[index.cpu().numpy()]).to(self.device)
        return taken.permute(0, 3, 1, 2).contiguous().float().div_(255)

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, batch: int = 512) -> dict[str, float]:
        """Top-1 and top-5 accuracy in percent of `model` on all of them, unaugmented; ranks take turns at batches."""
        model.eval()
        correct = torch.zeros(2, device=self.device, dtype=torch.long)
        for start in range(self.machine.rank * batch, len(self), self.machine.world * batch):
            index = torch.arange(start, min(start + batch, len(self)), device=self.device)
            with self.machine.autocast():
                logits = model(self.normalised(self.at(index)).contiguous(memory_format=torch.channels_last))
            ranked = logits.float().topk(min(5, logits.shape[1]), dim=1).indices == self.labels[index, None]
            correct += torch.stack([ranked[:, 0].sum(), ranked.sum()])
        top1, top5 = (self.machine.total(correct).double() * 100 / len(self)).tolist()
        return {"top1": top1, "top5": top5}


def images_of(source: ImageSet, data: Dataset, machine: Machine) -> Images:
    """A real set on the device."""
    return Images(source.images, source.labels, data, machine, source.classes)


class SqueezeBatches:
    """The real training set, augmented and shuffled: every epoch a pure function of (seed, epoch)."""

    def __init__(self, images: Images, recipe: Squeeze) -> None:
        self.set, self.recipe = images, recipe
        self.images = len(images)
        self.steps = -(-len(images) // recipe.batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Any]]:
        """(normalised images [B, 3, R, R], labels [B]) of every step; a rank's share of them."""
        recipe, images = self.recipe, self.set
        order = generator("squeeze", recipe.seed, epoch, "order").permutation(len(images))
        views = draw_views(
            generator("squeeze", recipe.seed, epoch, "views"), len(images), images.size,
            crop=recipe.augment, scale=recipe.crop_scale, padding=recipe.padding, flip=recipe.flip,
        )  # fmt: skip
        draws = generator("squeeze", recipe.seed, epoch, "cutout")
        cutouts = draw_cutouts(draws, len(images), images.size, recipe.cutout) if recipe.cutout else None
        for step in range(first_step, self.steps):
            chosen = images.machine.share(order[step * recipe.batch_size : (step + 1) * recipe.batch_size])
            index = torch.from_numpy(chosen).to(images.device)
            seen = resample(images.at(index), resampling(views.of(chosen), images.size, images.device))
            if cutouts is not None:
                seen = cutout(seen, cutouts.of(chosen))
            yield images.normalised(seen), images.labels[index]


class DistilledBatches:
    """Distilled images as a label store's epoch sees them, augmented and mixed; any batch size sees the same images."""

    def __init__(self, images: Images, recipe: Relabel, batch_size: int) -> None:
        self.set, self.recipe, self.batch_size = images, recipe, batch_size
        self.images = len(images)
        self.steps = -(-len(images) // batch_size)

    def plan(self, epoch: int) -> EpochPlan:
        """How `epoch` sees every image."""
        return epoch_plan(self.recipe, self.set.size, len(self.set), epoch)

    def inputs(self, plan: EpochPlan, chosen: NDArray[np.int64]) -> Tensor:
        """Normalised, augmented and mixed images `chosen` [B] of the plan's epoch, float32 [B, 3, R, R]."""
        images = self._seen(plan, chosen)
        if self.recipe.mixing == "none":
            return self.set.normalised(images)
        partners = self._seen(plan, plan.partners[chosen])
        if self.recipe.mixing == "cutmix":
            mixed = cutmix(images, partners, torch.from_numpy(plan.boxes[chosen]).to(self.set.device))
        else:
            mixed = mixup(images, partners, torch.from_numpy(plan.ratios[chosen]).float().to(self.set.device))
        return self.set.normalised(mixed)

    def _seen(self, plan: EpochPlan, chosen: NDArray[np.int64]) -> Tensor:
        index = torch.from_numpy(chosen).to(self.set.device)
        seen = resample(self.set.at(index), resampling(plan.views.of(chosen), self.set.size, self.set.device))
        return seen if plan.cutouts is None else cutout(seen, plan.cutouts.of(chosen))

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Any]]:
        """(inputs, (epoch, plan, image indices)) of every step, in the label store's order."""
        plan = self.plan(epoch)
        for step in range(first_step, self.steps):
            chosen = plan.order[step * self.batch_size : (step + 1) * self.batch_size]
            yield self.inputs(plan, chosen), (epoch, plan, chosen)
