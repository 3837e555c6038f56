"""Images resident on the device as uint8; the rest is batched tensor operations there, no image
decoded twice.

Sets that are too large for that are memory maps, of which a batch at a time goes to the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cda.config.settings import Dataset
from cda.data.sources import ImageSet
from cda.engine.device import Device, out_of_memory
from cda.method.augment import (
    Cutouts,
    Views,
    cover,
    matrices,
    resample,
    stack_cutouts,
    stack_views,
)
from cda.progress import log

F = TypeVar("F", bound=Callable[..., Any])


def fits_on_gpu(size: int, device: Device) -> bool:
    """Whether `size` bytes of images leave a GPU at least as much memory for the network.

    Says so if not.
    """
    if (
        device.torch_device.type != "cuda"
        or size <= torch.cuda.mem_get_info(device.torch_device)[0] / 2
    ):
        return True
    log(
        f"{size / 1e9:.1f} GB of images stay in the host's memory: more than half of what the "
        "GPU has free"
    )
    return False


class Normalisation:
    """A data set's own: (images − mean) / std per channel, on the device."""

    def __init__(self, data: Dataset, device: torch.device) -> None:
        self.mean = torch.tensor(data.mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(data.std, device=device).view(1, 3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Images [N, 3, R, R] of values in [0, 1], normalised."""
        return (images - self.mean) / self.std


def to_unit(pixels: Tensor) -> Tensor:
    """Pixels uint8 [n, R, R, 3] as images in [0, 1], float32 [n, 3, R, R]."""
    return pixels.permute(0, 3, 1, 2).contiguous().float().div_(255)


def augmented(pixels: Tensor, views: Tensor, squares: Tensor | None) -> Tensor:
    """Images in [0, 1], float32 [n, 3, R, R], of uint8 `pixels` [n, R, R, 3] as `packed` views see
    them.

    `squares` [n, 7] of `packed_cutouts` cover them, if there are any.
    """
    seen = resample(to_unit(pixels), matrices(views, pixels.shape[1]))
    return seen if squares is None else cover(seen, squares)


def channels_last(images: Tensor) -> Tensor:
    """Images as convolutions like them best."""
    return images.contiguous(memory_format=torch.channels_last)


def compiled_on_gpu(function: F, device: Device, steps: int) -> F:
    """`function` compiled on a GPU, where launches count.

    On a CPU what it does takes some percent of a step.
    """
    return device.compiled(function, steps) if device.torch_device.type == "cuda" else function


class EpochViews(NamedTuple):
    """How an epoch sees all images of a set, on the device: a batch is one indexing away."""

    views: Tensor  # [N, 5 or 7], `packed`
    squares: Tensor | None  # [N, 7], `packed_cutouts`

    @classmethod
    def of(cls, views: Views, cutouts: Cutouts | None, images: Images) -> EpochViews:
        """Drawn on the host, put where the images are."""
        squares = None if cutouts is None else images.resident(stack_cutouts(cutouts))
        return cls(images.resident(stack_views(views, images.size)), squares)

    def at(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Views and squares of the images `index`."""
        return self.views[index], None if self.squares is None else self.squares[index]


class Images:
    """All images uint8 [N, R, R, 3] and labels [N] of a set, on the device.

    A memory map stays on the disk, and what a GPU has no room for in the host's memory.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        data: Dataset,
        device: Device,
        classes: Sequence[str] = (),
    ) -> None:
        resident = not isinstance(images, np.memmap) and fits_on_gpu(images.nbytes, device)
        self.apart = None if resident else images
        if resident:
            self.pixels = torch.from_numpy(images).to(device.torch_device)
        self.labels = torch.from_numpy(labels).to(device.torch_device)
        self.normalised = Normalisation(data, device.torch_device)
        self.size, self.torch_device, self.device, self.classes = (
            data.resolution,
            device.torch_device,
            device,
            list(classes),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def resident(self, values: NDArray[Any]) -> Tensor:
        """`values` on the device."""
        return torch.from_numpy(values).to(self.torch_device)

    def at(self, index: Tensor) -> Tensor:
        """Images `index` in [0, 1], float32 [n, 3, R, R]."""
        return to_unit(self.taken(index))

    def taken(self, index: Tensor, chosen: NDArray[np.int64] | None = None) -> Tensor:
        """Pixels of images `index`, uint8 [n, R, R, 3], on the device.

        `chosen`, the same index on the host, saves sets that lie there the wait for the device.
        """
        if self.apart is None:
            return self.pixels[index]
        pixels = torch.from_numpy(self.apart[index.cpu().numpy() if chosen is None else chosen])
        return (
            pixels.pin_memory().to(self.torch_device, non_blocking=True)
            if self.torch_device.type == "cuda"
            else pixels
        )

    def logits(self, model: nn.Module, index: Tensor) -> Tensor:
        """The model's logits [n, classes] for images `index` unaugmented.

        In halves where memory does not suffice.
        """
        try:
            with self.device.autocast():
                return model(channels_last(self.normalised(self.at(index))))
        except RuntimeError as error:
            if not out_of_memory(error) or len(index) == 1:
                raise
        log(f"no memory to evaluate {len(index)} images at a time: going on with half as many")
        return torch.cat([self.logits(model, half) for half in index.tensor_split(2)])

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, batch: int = 512) -> dict[str, float]:
        """Top-1 and top-5 accuracy in percent of `model` on all of them, unaugmented.

        Ranks take turns at batches.
        """
        model.eval()
        correct = torch.zeros(2, device=self.torch_device, dtype=torch.long)
        for start in range(self.device.rank * batch, len(self), self.device.world * batch):
            index = torch.arange(start, min(start + batch, len(self)), device=self.torch_device)
            logits = self.logits(model, index)
            ranked = (
                logits.float().topk(min(5, logits.shape[1]), dim=1).indices
                == self.labels[index, None]
            )
            correct += torch.stack([ranked[:, 0].sum(), ranked.sum()])
        top1, top5 = (self.device.total(correct).double() * 100 / len(self)).tolist()
        return {"top1": top1, "top5": top5}


def place_images(source: ImageSet, data: Dataset, device: Device) -> Images:
    """A real set on the device."""
    return Images(source.images, source.labels, data, device, source.classes)
