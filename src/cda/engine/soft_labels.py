"""Batches of distilled images with their labels: what post-training reads, here or anywhere.

The validate stage trains on `LabelledBatches`. `SoftLabelled` gives the same batches to any other
loop as plain tensors:

    from cda.engine.soft_labels import SoftLabelled
    soft = SoftLabelled("artifacts/recover/cifar100/<run>", "artifacts/relabel/…/labels", 64)
    for images, logits in soft.epoch(0): ...
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cda.config.settings import Dataset, Runtime
from cda.config.types import parse
from cda.data.label_store import LabelStore
from cda.data.shards import load_distilled
from cda.engine.batches import DistilledBatches, Placed, batch_sizes
from cda.engine.device import Device
from cda.engine.images import Images
from cda.errors import ArtifactError, ConfigError
from cda.method.augment import to_device

LABEL_BYTES = 2**28  # of stored labels on the device at a time


class LabelledBatches:
    """Distilled batches with their soft labels, or the hard labels of the mixture."""

    def __init__(
        self,
        batches: DistilledBatches,
        store: LabelStore,
        teacher: nn.Module | None,
        device: Device,
        epochs: int = 1,
    ) -> None:
        self.inner, self.store, self.device = batches, store, device
        self.images = batches.images
        if teacher is not None:
            batch = min(batches.batch_size, batches.images)
            self._teacher = device.compiled(teacher, epochs * batches.steps, length=batch)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.inner.steps

    @steps.setter
    def steps(self, steps: int) -> None:
        self.inner.steps = steps

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Any]]:
        """(inputs, target) of every step.

        A target is the store's encoded rows, the teacher's logits, or (own class, partner's class,
        own share).
        """
        rows: Iterator[Tensor] | None = None
        for inputs, (_, placed, index) in self.inner.epoch(epoch, first_step):
            if self.store.mode == "stored":
                rows = rows or self._rows(epoch, placed.plan.order, first_step)
                yield inputs, next(rows)
            else:
                online = self.store.mode == "online"
                yield inputs, self._online(inputs) if online else self._hard(placed, index)

    def _rows(self, epoch: int, order: NDArray[np.int64], first_step: int) -> Iterator[Tensor]:
        """The store's rows [B, width] of every step; many steps' go to the device at once."""
        size = self.inner.batch_size
        sizes = batch_sizes(self.images, self.steps, size)
        a_row = self.store.codec.width * np.dtype(self.store.codec.dtype).itemsize
        at_once = max(1, LABEL_BYTES // (a_row * size))
        for step in range(first_step, self.steps, at_once):
            several = sizes[step : step + at_once]
            rows = self.store.rows(epoch, order[step * size : step * size + sum(several)])
            yield from to_device(rows, self.device.torch_device).split(several)

    def _online(self, inputs: Tensor) -> Tensor:
        """The teacher's logits [B, C], encoded and decoded as in a store."""
        with torch.no_grad(), self.device.autocast():
            logits = self._teacher(inputs)
        return self.store.codec.decode(self.store.codec.encode(logits))

    def _hard(self, placed: Placed, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        labels = self.inner.set.labels
        return labels[index], labels[placed.partners[index]], placed.mixing[index, 4]


class SoftLabelled:
    """The epochs of a label store, for a PyTorch loop of one's own.

    `images` is the folder of a recover run, `labels` the label store made from it. The store's
    header has all else. Raises ArtifactError if one is damaged, if they do not belong together, or
    if the store holds no logits.
    """

    def __init__(
        self, images: str | Path, labels: str | Path, batch_size: int, device: str = "cpu"
    ) -> None:
        store, header = LabelStore(Path(labels)), Path(labels) / "header.json"
        if store.mode != "stored":
            fix = "raise labels.max_gb, or choose relabel.labels: stored, and relabel"
            if store.mode == "hard":
                fix = "name the labels of a run without -hard (cda list)"
            raise ArtifactError(f"{header}: holds no logits (labels: {store.mode}); {fix}")
        data, ipc = _described(store, header)
        pixels, targets, self.classes, digest = load_distilled(
            Path(images), ipc, data.name, size=data.resolution
        )
        store.check(store.header.get("run", ""), digest, self.classes, epochs=1)
        store.verify()
        # Compiled code would change rounding alone, and take a minute before the first batch.
        place = Device(Runtime(compile="never"), torch.device(device), None)
        batches = DistilledBatches(Images(pixels, targets, data, place), store.recipe, batch_size)
        self._batches, self._codec = LabelledBatches(batches, store, None, place), store.codec
        self.epochs: int = store.header["epochs"]
        self.temperature: float = store.header["temperature"]
        self.mean, self.std = data.mean, data.std

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return self._batches.steps

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of `epoch`, a pure function of it: (images [B, 3, R, R], logits [B, C]).

        Images are float32, augmented and mixed as the teacher saw them, and normalised by `mean`
        and `std`. Raises ValueError unless 0 <= epoch < `epochs`.
        """
        if not 0 <= epoch < self.epochs:
            raise ValueError(f"epoch {epoch}: the label store has epochs 0 to {self.epochs - 1}")
        for images, rows in self._batches.epoch(epoch):
            yield images, self._codec.decode(rows)


def _described(store: LabelStore, header: Path) -> tuple[Dataset, int]:
    """The data set and the IPC of a store; raises ArtifactError."""
    fix = f"delete {header.parent} and relabel again"
    spec, ipc = store.header.get("spec"), store.header.get("ipc")
    identity = spec.get("dataset") if isinstance(spec, dict) else None
    if not isinstance(identity, dict) or type(ipc) is not int:
        raise ArtifactError(f"{header}: lacks its data set or ipc; {fix}")
    if not isinstance(store.header.get("temperature"), int | float):
        raise ArtifactError(f"{header}: lacks temperature; {fix}")
    keys = ("name", "classes", "resolution", "mean", "std")
    values = {key: identity[key] for key in keys if key in identity}
    try:
        values |= {"layout": "image_folder", "get": "its images are here"}
        return parse(Dataset, values, f"{header}: spec.dataset"), ipc
    except ConfigError as error:
        raise ArtifactError(f"{error}; {fix}") from None
