"""The label store: soft labels of every image in every epoch, and the rule that makes each epoch's images again.

What image i looks like in epoch e (crop, flip, cutout, partner, patch) is a pure function of the relabel seed, e and
i (for mixing also of the label batch and the number of images), so a store holds logits and a header and no
coordinates.
Mixing partners come from the same block of `batch_size` images in the epoch's order, so that one store serves every
batch size of post- training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cda.config import Relabel
from cda.errors import ArtifactError
from cda.files import file_digest, read_json
from cda.method.augment import Cutouts, Views, draw_cutouts, draw_views, generator, mixing_boxes

FORMAT = "cda-labels/1"


class EpochPlan(NamedTuple):
    """How one epoch sees N images; everything but `order` is indexed by image."""

    order: NDArray[np.int64]  # [N] the epoch's order
    views: Views
    partners: NDArray[np.int64]  # [N] whom each image is mixed with
    ratios: NDArray[np.float64]  # [N] share of the image itself in the mixed label; 1 without mixing
    boxes: NDArray[np.int64]  # [N, 4] CutMix patch: top, bottom, left, right
    cutouts: Cutouts | None = None


def epoch_plan(recipe: Relabel, size: int, count: int, epoch: int) -> EpochPlan:
    """The plan of `epoch` for `count` images of `size` pixels; the same on every machine."""
    views = draw_views(
        generator("relabel", recipe.seed, epoch, "views"), count, size,
        crop=recipe.augment, scale=recipe.crop_scale, padding=recipe.padding, flip=recipe.flip,
    )  # fmt: skip
    order = generator("relabel", recipe.seed, epoch, "order").permutation(count)
    partners, ratios = np.arange(count), np.ones(count)
    boxes = np.zeros((count, 4), dtype=np.int64)
    draws = generator("relabel", recipe.seed, epoch, "mixing")
    for start in range(0, count if recipe.mixing != "none" else 0, recipe.batch_size):
        block = order[start : start + recipe.batch_size]
        partners[block] = block[draws.permutation(len(block))]
        ratio = draws.beta(recipe.mixing_alpha, recipe.mixing_alpha)
        ratios[block] = ratio
        boxes[block] = mixing_boxes(np.array([ratio]), draws.random((1, 2)), size)
    if recipe.mixing == "cutmix":  # the patch was clipped at the border: what counts is the area that is left
        ratios = 1 - (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / size**2
    draws, cutouts = generator("relabel", recipe.seed, epoch, "cutout"), None
    if recipe.cutout:
        cutouts = draw_cutouts(draws, count, size, recipe.cutout)
    return EpochPlan(order, views, partners, ratios, boxes, cutouts)


def logits_file(folder: Path) -> Path:
    """The stored logits, fp16 [epochs, images, classes]."""
    return folder / "logits.npy"


def header_of(folder: Path) -> dict[str, Any]:
    """A label store's header; raises ArtifactError if it is none."""
    path = folder / "header.json"
    header = read_json(path, "the label store's header")
    if header.get("format") != FORMAT:
        raise ArtifactError(
            f"{path}: not a label store of format {FORMAT} (found {header.get('format')!r}); make it again"
        )
    missing = {"labels", "classes", "images_digest", "epochs", "recipe"} - set(header)
    if missing or header["labels"] not in ("fp16", "online", "hard"):
        what = f"lacks {', '.join(sorted(missing))}" if missing else f"has unknown labels {header['labels']!r}"
        raise ArtifactError(f"{path}: {what}; delete the store and relabel again")
    return header


class LabelStore:
    """A finished label store, read by (epoch, images) through a memory map; raises ArtifactError if it is damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.header = folder, header_of(folder)
        self.mode: str = self.header["labels"]
        self.logits: NDArray[np.float16] | None = self._map() if self.mode == "fp16" else None

    @property
    def recipe(self) -> Relabel:
        """The relabel recipe that the header records: what its augmentations are drawn by."""
        return Relabel.model_validate(self.header["recipe"])

    def _map(self) -> NDArray[np.float16]:
        path, shape = logits_file(self.folder), tuple(self.header.get("shape", ()))
        if not shape or shape[0] != self.header["epochs"]:
            raise ArtifactError(f"{path.with_name('header.json')}: its shape does not hold its epochs; relabel again")
        try:
            logits = np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"{path}: damaged label store ({error}); delete {self.folder} and relabel again"
            ) from None
        if logits.shape != shape or logits.dtype != np.float16:
            raise ArtifactError(
                f"{path}: holds {logits.dtype} {logits.shape}, its header says fp16 {shape}; relabel again"
            )
        return logits

    def verify(self) -> None:
        """Raises ArtifactError if the stored logits are not the bytes that were written: reads all of them once."""
        if self.logits is not None and file_digest(logits_file(self.folder)) != self.header.get("sha256"):
            raise ArtifactError(
                f"{logits_file(self.folder)}: differs from its header's digest; delete it and relabel again"
            )

    def check(self, run: str, images: str, classes: list[str], epochs: int) -> None:
        """Raises ArtifactError unless it is that run's, for these images (digest) and classes, with enough epochs."""
        where = self.folder / "header.json"
        if self.header.get("run") != run:
            raise ArtifactError(
                f"{where}: holds the labels of run {self.header.get('run')}, not of {run}; relabel again"
            )
        if self.header["images_digest"] != images:
            raise ArtifactError(f"{where}: these labels belong to another set of images; relabel the shards at hand")
        if self.header["classes"] != classes:
            raise ArtifactError(f"{where}: classes are in another order than the shards'; relabel the shards at hand")
        if self.header["epochs"] < epochs:
            raise ArtifactError(
                f"{where}: labels for {self.header['epochs']} epochs, the recipe's validate.epochs is {epochs}; relabel"
            )

    def read(self, epoch: int, images: NDArray[np.int64]) -> NDArray[np.float16]:
        """Logits [n, classes] of `images` [n] in `epoch`."""
        assert self.logits is not None
        return self.logits[epoch, images]
