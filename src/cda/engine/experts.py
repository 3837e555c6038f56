"""Experts of trajectory matching: their training batches, and their weights on disk.

An expert is one safetensors file, `expert-007.safetensors`: a tensor `weights` float32
[epochs + 1, P], the network's parameters one after another at initialisation and after each epoch.
A JSON beside it has its digest and accuracies. Every draw is of a generator that names the expert,
so that an expert depends neither on the others nor on the job that trains it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from cda.config.recipe import Expert
from cda.engine.batches import batch_at
from cda.engine.checkpoint import write_tensors
from cda.engine.images import Images, channels_last
from cda.errors import ArtifactError
from cda.files import atomic_write, digest, file_digest, read_json
from cda.method import dsa
from cda.rng import generator

WEIGHTS = "weights"


def expert_name(index: int) -> str:
    """File name of expert `index`.

    >>> expert_name(7)
    'expert-007.safetensors'
    """
    return f"expert-{index:03d}.safetensors"


def flat_weights(model: nn.Module) -> Tensor:
    """A copy of the parameters as one vector float32 [P] on the host.

    A view would follow later steps: the public code's snapshots on a CPU all end as the last epoch.
    """
    parts = [parameter.detach().reshape(-1) for parameter in model.parameters()]
    return torch.cat(parts).float().cpu()


class ExpertBatches:
    """The real training set in an expert's order, each batch under one operation of DSA.

    An epoch is a pure function of the expert and the epoch.
    """

    def __init__(self, images: Images, recipe: Expert, purpose: tuple[object, ...]) -> None:
        self.set, self.recipe, self.purpose = images, recipe, purpose
        self.images = len(images)
        self.steps = -(-len(images) // recipe.batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Any]]:
        """(normalised images [B, 3, R, R], labels [B]) of every step."""
        images, purpose = self.set, (*self.purpose, "epoch", epoch)
        order = generator(*purpose, "order").permutation(len(images))
        index = images.resident(order)
        for step in range(first_step, self.steps):
            chosen = index[batch_at(step, self.steps, self.recipe.batch_size)]
            batch = images.normalised(images.at(chosen))
            if self.recipe.augment == "dsa":
                batch = dsa.augment(batch, generator(*purpose, "dsa", step))
            yield channels_last(batch), images.labels[chosen]


def write_expert(path: Path, snapshots: list[Tensor], run: str) -> None:
    """Write an expert's weights [P] at initialisation and after each epoch; ArtifactError."""
    with atomic_write(path) as temporary:
        write_tensors({WEIGHTS: torch.stack(snapshots)}, temporary, {"run": run})


@dataclass(frozen=True)
class Experts:
    """The experts of a run: `count` files in the part folders below `folder`."""

    folder: Path
    run: str
    count: int

    @cached_property
    def _paths(self) -> list[Path]:
        """The files in order; experts of two layouts of parts are equal, and the first counts."""
        found: dict[str, Path] = {}
        for path in sorted(self.folder.glob("part-*/expert-*.safetensors")):
            found.setdefault(path.name, path)
        names = [expert_name(index) for index in range(self.count)]
        missing = [name for name in names if name not in found]
        if missing:
            raise ArtifactError(
                f"{self.folder}: {len(missing)} of {self.count} experts are missing ({missing[0]} "
                "first); train them (cda expert) or pull them; after a change of expert.per_job "
                "delete the folder's parts first"
            )
        return [found[name] for name in names]

    def verify(self, epochs: int, size: int) -> str:
        """Check each file against its digest and [epochs + 1, size]; returns a digest of all.

        Raises ArtifactError for a missing, damaged or foreign file.
        """
        found = []
        for path in self._paths:
            fix = f"delete {path.parent} and train its experts again, or pull it"
            described = read_json(path.with_suffix(".json"), "the expert's description", fix)
            if described.get("run") != self.run:
                owner = described.get("run")
                raise ArtifactError(
                    f"{path}: is an expert of run {owner}, not of {self.run}; {fix}"
                )
            found.append(file_digest(path))
            if described.get("sha256") != found[-1]:
                raise ArtifactError(f"{path}: differs from the digest in its JSON; {fix}")
            shape, expected = self._shape(path, fix), [epochs + 1, size]
            if shape != expected:
                raise ArtifactError(f"{path}: has weights {shape}, not {expected}; {fix}")
        return digest("".join(found).encode())

    def _shape(self, path: Path, fix: str) -> list[int]:
        try:
            with safe_open(path, framework="pt") as file:
                return list(file.get_slice(WEIGHTS).get_shape())
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{path}: damaged expert ({error}); {fix}") from None

    def weights(self, expert: int, epoch: int) -> Tensor:
        """Weights float32 [P] of an expert after `epoch` epochs; reads these alone."""
        with safe_open(self._paths[expert], framework="pt") as file:
            row: Tensor = file.get_slice(WEIGHTS)[epoch]
            return row
