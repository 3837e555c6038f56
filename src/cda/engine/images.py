"""Images on the device as uint8; the rest is batched tensor operations there.

No image is decoded twice. Sets that are too large for the device stay memory maps or arrays of the
host, and a batch at a time goes to the device.
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
from cda.engine.device import Device
from cda.engine.memory import out_of_memory
from cda.method.augment import (
    Cutouts,
    Views,
    cover,
    matrices,
    resample,
    stack_cutouts,
    stack_views,
    to_device,
)
from cda.progress import log

F = TypeVar("F", bound=Callable[..., Any])


def fits_on_gpu(size: int, device: Device) -> bool:
    """Whether `size` bytes take at most half of a GPU's free memory; logs if they do not."""
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
    """(images − mean) / std per channel with a data set's values, on the device."""

    def __init__(self, data: Dataset, device: torch.device) -> None:
        self.mean = torch.tensor(data.mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(data.std, device=device).view(1, 3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Images [N, 3, R, R] of values in [0, 1], normalised."""
        return (images - self.mean) / self.std


def to_unit(pixels: Tensor) -> Tensor:
    """Pixels uint8 [n, R, R, 3] as images in [0, 1], float32 [n, 3, R, R]; floats stay as they are.

    Distilled images of the matching methods are floats, and may lie beyond [0, 1].
    """
    images = pixels.permute(0, 3, 1, 2).contiguous()
    return images if images.is_floating_point() else images.float().div_(255)


def augmented(pixels: Tensor, views: Tensor, squares: Tensor | None) -> Tensor:
    """uint8 `pixels` [n, R, R, 3] under their views, as float32 [n, 3, R, R] in [0, 1].

    `views` [n, 5 or 7] are of `stack_views`, `squares` [n, 7] of `stack_cutouts`.
    """
    seen = resample(to_unit(pixels), matrices(views, pixels.shape[1]))
    return seen if squares is None else cover(seen, squares)


def channels_last(images: Tensor) -> Tensor:
    """Images in the memory layout in which convolutions are fastest."""
    return images.contiguous(memory_format=torch.channels_last)


def compiled_on_gpu(function: F, device: Device, steps: int) -> F:
    """`function`, compiled on a GPU, where the launches of small kernels take time.

    On a CPU augmentation takes a few percent of a step, which does not pay for compiling.
    """
    return device.compiled(function, steps) if device.torch_device.type == "cuda" else function


class EpochViews(NamedTuple):
    """An epoch's views and cutouts of all images of a set, on the device."""

    views: Tensor  # [N, 5 or 7] of `stack_views`
    squares: Tensor | None  # [N, 7] of `stack_cutouts`

    @classmethod
    def of(cls, views: Views, cutouts: Cutouts | None, images: Images) -> EpochViews:
        """Views and cutouts that were drawn on the host."""
        squares = None if cutouts is None else images.resident(stack_cutouts(cutouts))
        return cls(images.resident(stack_views(views, images.size)), squares)

    def at(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Views and squares of the images `index`."""
        return self.views[index], None if self.squares is None else self.squares[index]


class Images:
    """All images uint8 or float32 [N, R, R, 3] and labels [N] of a set, on the device.

    A memory map stays on the disk, and images that do not fit on a GPU in the host's memory.
    """

    def __init__(
        self,
        images: NDArray[np.uint8] | NDArray[np.float32],
        labels: NDArray[np.int64],
        data: Dataset,
        device: Device,
        classes: Sequence[str] = (),
    ) -> None:
        resident = not isinstance(images, np.memmap) and fits_on_gpu(images.nbytes, device)
        self.remote = None if resident else images
        if resident:
            self.pixels = torch.from_numpy(images).to(device.torch_device)
        self.labels = torch.from_numpy(labels).to(device.torch_device)
        self.normalised = Normalisation(data, device.torch_device)
        self.size, self.classes = data.resolution, list(classes)
        self.device, self.torch_device = device, device.torch_device

    def __len__(self) -> int:
        return len(self.labels)

    def resident(self, values: NDArray[Any]) -> Tensor:
        """`values` on the device."""
        return to_device(values, self.torch_device)

    def at(self, index: Tensor) -> Tensor:
        """Images `index` in [0, 1], float32 [n, 3, R, R]."""
        return to_unit(self.taken(index))

    def taken(self, index: Tensor, chosen: NDArray[np.int64] | None = None) -> Tensor:
        """Pixels of images `index`, uint8 [n, R, R, 3], on the device.

        `chosen` is the same index on the host: images that lie there need not wait for the device.
        """
        if self.remote is None:
            return self.pixels[index]
        return self.resident(self.remote[index.cpu().numpy() if chosen is None else chosen])

    def logits(self, model: nn.Module, index: Tensor) -> Tensor:
        """The model's logits [n, classes] for images `index`, without augmentation.

        Where memory does not suffice, half as many images are evaluated at a time.
        """
        try:
            with self.device.autocast():
                return model(channels_last(self.normalised(self.at(index))))
        except RuntimeError as error:
            if not out_of_memory(error) or len(index) == 1:
                raise
        log(f"no memory to evaluate {len(index)} images at a time: going on with half as many")
        return torch.cat([self.logits(model, half) for half in index.tensor_split(2)])

    def even_batch(self, batch: int = 512) -> int:
        """A batch size, half of `batch` or more, that leaves no smaller last batch on a GPU.

        cuDNN times its algorithms anew for every size of a batch.
        """
        sizes = range(batch, batch // 2, -1) if self.torch_device.type == "cuda" else ()
        return next((size for size in sizes if len(self) % size == 0), batch)

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, batch: int | None = None) -> dict[str, float]:
        """Top-1 and top-5 accuracy in percent of `model` on all images, without augmentation.

        Each rank evaluates its own batches.
        """
        batch = batch or self.even_batch()
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
    """A real data set on the device."""
    return Images(source.images, source.labels, data, device, source.classes)
