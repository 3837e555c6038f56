"""Class blocks of a shard, and the random draws of each: starting images and views.

A block's draws depend on the run's seed, its shard and its first class alone, so that a shard has
the same content however its blocks are packed or shared out among jobs (docs/fidelity.md, item 4).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cda.config.recipe import Recover
from cda.method.augment import Views, draw_views, stack_views
from cda.method.curriculum import min_crop
from cda.rng import generator


@dataclass(frozen=True)
class Block:
    """The classes `first` to `last` (exclusive) of one shard, optimised together."""

    shard: int
    first: int
    last: int

    @property
    def size(self) -> int:
        """Number of classes, which is the number of images."""
        return self.last - self.first

    def purpose(self, seed: int) -> tuple[object, ...]:
        """The purpose (`cda.rng`) of the block's draws."""
        return ("recover", seed, "shard", self.shard, "from", self.first)


def blocks_of(shard: int, classes: int, size: int) -> list[Block]:
    """Cut a shard into blocks of `size` consecutive classes; the last block may be smaller."""
    return [Block(shard, first, min(first + size, classes)) for first in range(0, classes, size)]


def group_blocks(blocks: Sequence[Block], count: int) -> Iterator[list[Block]]:
    """Groups of at most `count` blocks of equal size, large blocks first."""
    by_size = sorted(blocks, key=lambda block: -block.size)
    for _, same in itertools.groupby(by_size, key=lambda block: block.size):
        equal = list(same)
        yield from (equal[start : start + count] for start in range(0, len(equal), count))


def start_images(block: Block, seed: int, resolution: int) -> NDArray[np.float64]:
    """N(0, 1) images [classes of the block, 3, R, R] in normalised space."""
    draws = generator(*block.purpose(seed), "start")
    return draws.standard_normal((block.size, 3, resolution, resolution))


def step_views(block: Block, recipe: Recover, step: int, resolution: int) -> Views:
    """Crop, flip and roll of a block at `step`.

    All images of the block share one view (fidelity 3), unless the recipe sets `per_image`.
    """
    low = min_crop(
        step, recipe.iterations, mode=recipe.mode, scheduler=recipe.scheduler,
        milestone=recipe.milestone, low=recipe.min_crop, high=recipe.max_crop,
    )  # fmt: skip
    draws = generator(*block.purpose(recipe.seed), "step", step)
    return draw_views(
        draws, block.size if recipe.per_image else 1, resolution,
        crop="random_resized_crop", scale=(low, recipe.max_crop), flip=recipe.flip,
        jitter=recipe.jitter,
    )  # fmt: skip


def stack_steps(
    blocks: Sequence[Block], recipe: Recover, steps: range, resolution: int
) -> NDArray[np.int64]:
    """The views of `steps` [S, N, 5 or 7] as `stack_views` stacks them, N those of all `blocks`.

    Their width is the recipe's, and not that of the rolls that were drawn: a step is compiled and
    recorded for one shape.
    """
    drawn = [step_views(block, recipe, step, resolution) for step in steps for block in blocks]
    views = Views(*(np.concatenate(parts) for parts in zip(*drawn, strict=True)))
    stacked = stack_views(views, resolution, rolls=recipe.jitter > 0)
    return stacked.reshape(len(steps), -1, stacked.shape[1])
