"""The label store: soft labels of every image under every epoch's augmentation.

The augmentation of image i in epoch e (crop, flip, cutout, partner, patch) is a pure function of
the relabel seed, e and i (for mixing also of the label batch and the number of images), so a store
holds logits and a header and no coordinates. Mixing partners come from the same block of
`batch_size` images in the epoch's order, so that one store serves every batch size of
post-training.

Labels belong to the augmentation they were made under. So epochs of training that share an epoch of
labels (`reuse`) see the same images, but in different orders, so that their batches differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cda.config.recipe import Relabel
from cda.config.types import parse
from cda.data.label_codec import Codec
from cda.data.memmap import allocate, open_map, pieces_done
from cda.errors import ArtifactError, ConfigError
from cda.files import file_digest, read_json, write_json

FORMAT = "cda-labels/1"
FIRST = "fp16"  # the name of stored labels in the first stores
# epoch, images, whether the logits fit fp16, rows, and the event after which those are on the host
Pending = tuple[int, NDArray[np.int64], Tensor, Tensor, torch.cuda.Event | None]


def logits_file(folder: Path) -> Path:
    """The stored rows [epochs of labels, images, width]: fp16 logits, or a codec's bytes."""
    return folder / "logits.npy"


def read_header(folder: Path) -> dict[str, Any]:
    """A label store's header; raises ArtifactError if it is none."""
    path, fix = folder / "header.json", f"delete {folder} and relabel again"
    header = read_json(path, "the label store's header", fix)
    if header.get("format") != FORMAT:
        raise ArtifactError(
            f"{path}: not a label store of format {FORMAT} (found {header.get('format')!r}); {fix}"
        )
    kinds = {"labels": str, "classes": list, "images_digest": str, "epochs": int, "recipe": dict}
    if wrong := [key for key, kind in kinds.items() if not isinstance(header.get(key), kind)]:
        raise ArtifactError(f"{path}: lacks {', '.join(wrong)}; {fix}")
    if not header["classes"] or not all(isinstance(name, str) for name in header["classes"]):
        raise ArtifactError(f"{path}: its classes are no list of names; {fix}")
    if header["labels"] == FIRST:
        header |= {"labels": "stored", "recipe": header["recipe"] | {"labels": "stored"}}
    if header["labels"] not in ("stored", "online", "hard"):
        raise ArtifactError(f"{path}: has unknown labels {header['labels']!r}; {fix}")
    return header


class LabelStore:
    """A finished label store, read by (epoch, images) through a memory map.

    Raises ArtifactError if it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.header = folder, read_header(folder)
        self.mode: str = self.header["labels"]
        self.recipe = self._recipe()
        self.codec = Codec(
            len(self.header["classes"]),
            self.recipe.bits,
            self.recipe.top_k,
            self.header.get("temperature", 1.0),
        )
        self._rows: NDArray[Any] | None = self._map() if self.mode == "stored" else None

    @property
    def _fix(self) -> str:
        return f"delete {self.folder} and relabel again"

    def _recipe(self) -> Relabel:
        """The header's recipe of augmentations and codec."""
        path, header = self.folder / "header.json", self.header
        try:
            recipe = parse(
                Relabel, header["recipe"] | {"epochs": header["epochs"]}, f"{path}: recipe"
            )
        except ConfigError as error:
            raise ArtifactError(f"{error}; {self._fix}") from None
        temperature = header.get("temperature")
        known = isinstance(temperature, int | float) and 0 < temperature < 1e6
        if recipe.top_k and not (known and recipe.top_k < len(header["classes"])):
            raise ArtifactError(
                f"{path}: its classes or temperature do not fit its top_k {recipe.top_k}; "
                f"{self._fix}"
            )
        return recipe

    def _map(self) -> NDArray[Any]:
        path, codec = logits_file(self.folder), self.codec
        declared = self.header.get("shape")
        shape = tuple(declared) if isinstance(declared, list) else ()
        if not shape or shape[0] != self.recipe.label_epochs(self.header["epochs"]):
            raise ArtifactError(
                f"{path.with_name('header.json')}: its shape does not hold its epochs; {self._fix}"
            )
        rows = open_map(path, "label store", self._fix)
        if rows.shape != shape or shape[2:] != (codec.width,) or rows.dtype != codec.dtype:
            wanted = f"{np.dtype(codec.dtype)} {shape} of {codec.width} a row"
            raise ArtifactError(
                f"{path}: holds {rows.dtype} {rows.shape}, its header has {wanted}; {self._fix}"
            )
        return rows

    def verify(self) -> None:
        """Raise ArtifactError unless the stored logits have the header's digest; reads them all."""
        path = logits_file(self.folder)
        if self._rows is not None and file_digest(path) != self.header.get("sha256"):
            raise ArtifactError(f"{path}: differs from its header's digest; {self._fix}")

    def check(self, run: str, images: str, classes: list[str], epochs: int) -> None:
        """Raise ArtifactError unless the store is of `run`, these images and classes, and `epochs`.

        `images` is the digest of the distilled set; more epochs than `epochs` are fine.
        """
        where = self.folder / "header.json"
        if self.header.get("run") != run:
            raise ArtifactError(
                f"{where}: holds the labels of run {self.header.get('run')}, not of {run}; "
                "relabel again"
            )
        if self.header["images_digest"] != images:
            raise ArtifactError(
                f"{where}: these labels belong to another set of images; relabel the shards at hand"
            )
        if self.header["classes"] != classes:
            raise ArtifactError(
                f"{where}: classes are in another order than the shards'; relabel the shards "
                "at hand"
            )
        if self.header["epochs"] < epochs:
            raise ArtifactError(
                f"{where}: labels for {self.header['epochs']} epochs, the recipe's "
                f"validate.epochs is {epochs}; relabel"
            )

    def rows(self, epoch: int, images: NDArray[np.int64]) -> NDArray[Any]:
        """Encoded rows [n, width] of `images` [n] in `epoch` of training.

        `codec.decode` decodes them on any device.
        """
        assert self._rows is not None
        return self._rows[self.recipe.label_epoch(epoch), images]

    def read(self, epoch: int, images: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits [n, classes] of `images` [n] in `epoch` of training."""
        return self.codec.decode(torch.from_numpy(self.rows(epoch, images))).numpy()


class LabelWriter:
    """Writes a store's rows epoch after epoch; an interrupted one continues from its last `mark`.

    Rows go through a memory map, so that memory does not grow with the store; its disk space is
    allocated first. `key` identifies the inputs: rows made from other inputs are discarded.
    """

    def __init__(self, folder: Path, codec: Codec, epochs: int, images: int, key: str = "") -> None:
        self.codec, self.path = codec, logits_file(folder)
        self.shape = (epochs, images, codec.width)
        self._mark = folder.with_name("epochs.json")
        self._key = f"{key} {self.shape} {np.dtype(codec.dtype)}"
        self.done = pieces_done(self._mark, self.path, self._key)
        fix = "make room, lower labels.max_gb or store smaller labels (relabel.bits, top_k, reuse)"
        self._pending: Pending | None = None  # a batch that a GPU may still be computing
        self._rows = allocate(self.path, self.shape, codec.dtype, fresh=not self.done, fix=fix)

    def write(self, epoch: int, images: NDArray[np.int64], logits: Tensor) -> None:
        """Write the logits [n, classes] of `images` [n] in the label epoch `epoch`.

        A GPU's batch is stored at the next call, so that the GPU computes meanwhile. Raises
        ArtifactError for NaN and for numbers that fp16 cannot hold.
        """
        fits = (logits.abs().amax() <= torch.finfo(torch.float16).max).all()
        rows = self.codec.encode(logits)
        copies = fits.to("cpu", non_blocking=True), rows.to("cpu", non_blocking=True)
        copied = torch.cuda.current_stream().record_event() if rows.is_cuda else None
        self._store()
        self._pending = (epoch, images, *copies, copied)
        if copied is None:
            self._store()

    def _store(self) -> None:
        """Write the pending batch to the map once its copy from the device has ended."""
        if self._pending is None:
            return
        (epoch, images, fits, rows, copied), self._pending = self._pending, None
        if copied is not None:
            copied.synchronize()
        if not bool(fits):
            raise ArtifactError(
                f"{self.path}: logits of epoch {epoch} do not fit fp16; "
                "squeeze the relabel model again"
            )
        self._rows[epoch, images] = rows.numpy()

    def mark(self, done: int) -> None:
        """Flush the first `done` epochs to the disk and record their number."""
        self._store()
        self._rows.flush()
        write_json(self._mark, {"done": done, "key": self._key})

    def close(self) -> dict[str, Any]:
        """Flush everything to the disk; returns the header's entries on the rows."""
        self._store()
        self._rows.flush()
        return {"shape": list(self.shape), "sha256": file_digest(self.path)}
