"""The loss of recovery (paper Eq. 6): cross-entropy and BN distance of packed class blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cda.config.recipe import Recover
from cda.engine.device import Device
from cda.engine.kernels import batch_norm
from cda.engine.kernels.winograd import Convolutions
from cda.method.augment import matrices, resample
from cda.method.bn_matching import BNMatching
from cda.method.losses import precise

Losses = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Objective:
    """The loss of `blocks` equal class blocks: cross-entropy and BN distance of each.

    In float32 on a CPU, the kernels in `cda.engine.kernels` compute the frozen model's convolutions
    and BN layers. Elsewhere the loss is compiled if `steps` calls pay for that. With
    `runtime.compile: never` plain torch computes it, which is the reference.
    """

    def __init__(
        self, model: nn.Module, blocks: int, recipe: Recover, device: Device, steps: int
    ) -> None:
        self.model, self.blocks, self.device = model, blocks, device
        native = device.native and next(model.parameters()).dtype == torch.float32
        device.compiles |= native
        kernels = batch_norm if native else None
        self.matching = BNMatching(model, blocks, recipe.first_bn_multiplier, kernels)
        self._convolutions = Convolutions(model) if native else None
        self._losses: Losses = self._eager if native else device.compiled(self._eager, steps)

    def __call__(self, images: Tensor, views: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Both losses [K] of images [K·B, 3, R, R] with labels [K·B].

        The model sees the images under their `views`, K or K·B rows of `augment.stack_views`.
        """
        return self._losses(images, views, labels)

    def _eager(self, images: Tensor, views: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        seen = resample(images, matrices(views, images.shape[-1], images.dtype))
        with self.device.autocast():
            logits = self.model(seen.contiguous(memory_format=torch.channels_last))
        entropy = F.cross_entropy(precise(logits), labels, reduction="none").view(self.blocks, -1)
        return entropy.mean(dim=1), self.matching.loss()

    def close(self) -> None:
        """Remove all hooks and kernels from the model, and release the last step's graph.

        The objective and its compiled function refer to one another, so that without this call its
        memory stays in use until Python's collector finds the cycle.
        """
        self.matching.remove()
        self._losses = self._closed
        if self._convolutions is not None:
            self._convolutions.remove()

    @staticmethod
    def _closed(*_arguments: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("the objective is closed")
