"""Recover: synthesise the images of consecutive shards, or take real or released images instead.

Reads a squeezed model (or images); writes a part folder with shards `ipc-000.tar`, `ipc-000.json`
beside each, and the snapshots of the first shard under `snapshots/`. A job makes those shards that
tables read and the folder lacks. A shard depends on the run and its index alone. The work folder
holds finished blocks and the newest state of the unfinished ones, so that a killed job continues
there.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cda.data.shards import shard_name, write_shard
from cda.engine.blocks import Block, blocks_of
from cda.engine.device import Device
from cda.engine.lock import work_folder
from cda.engine.recovery import RecoverJob, recover_blocks
from cda.engine.signals import Stop
from cda.errors import ConfigError
from cda.experiments.runs import part_shards
from cda.files import atomic_write, file_digest, publish, publish_into, read_json, write_json
from cda.method.bn_matching import bn_layers
from cda.rng import generator
from cda.stages.context import Context
from cda.stages.models import load_squeezed, outputs_for, read_description

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class BlockFiles:
    """Blocks' images, and the losses beside them, in the work folder of a part."""

    work: Path

    def path(self, block: Block, step: int | None = None) -> Path:
        """The finished images, or the snapshot after `step` iterations."""
        after = "" if step is None else f"-step-{step}"
        return self.work / "blocks" / f"shard-{block.shard}-class-{block.first}{after}.npy"

    def has(self, block: Block) -> bool:
        """Whether the block is finished."""
        return self.path(block).is_file()

    def finish(self, block: Block, pixels: Pixels, trace: list[dict[str, Any]]) -> None:
        """Write the losses, then the images, which mark the block as finished."""
        write_json(self.path(block).with_suffix(".json"), {"trace": trace})
        self.snapshot(block, None, pixels)

    def snapshot(self, block: Block, step: int | None, pixels: Pixels) -> None:
        """Write the images after `step` iterations (None: after the last)."""
        with atomic_write(self.path(block, step)) as temporary, temporary.open("wb") as file:
            np.save(file, pixels, allow_pickle=False)

    def read(self, blocks: list[Block], step: int | None = None) -> Pixels:
        """The images [N, R, R, 3] of a shard's `blocks`."""
        parts = [np.load(self.path(block, step), allow_pickle=False) for block in blocks]
        return np.concatenate(parts)

    def losses(self, blocks: list[Block]) -> list[dict[str, Any]]:
        """The losses of `blocks`; empty for images that were not synthesised."""
        paths = [self.path(block).with_suffix(".json") for block in blocks]
        return [read_json(path, "a block's losses") for path in paths if path.is_file()]


def run(
    context: Context,
    part: int,
    model_path: Path | None,
    out: Path,
    shards: Sequence[int] = (),
) -> None:
    """Make `shards` (default: all) of part `part` of the run at `out`.

    Those that exist stay; if all of them do, they are made again.
    """
    recipe = context.run.recipe.recover
    if part < 0:
        raise ConfigError(f"--part {part}: parts are counted from 0")
    wanted = shards or part_shards(context.run, part, 0)
    existing = {path.name for path in out.glob("ipc-*.tar")}
    todo = [index for index in wanted if shard_name(index) not in existing] or wanted
    others = existing - {shard_name(index) for index in todo}
    device = context.open_device()
    work = context.work(f"part-{part}")
    with work_folder(work) as stop:
        if recipe.synthetic:
            assert model_path is not None
            classes = _synthesise(context, device, model_path, todo, work, stop)
        else:
            classes = _take_images(context, todo, work)
        _write_part(context, device, todo, classes, work)
        (publish_into if others else publish)(work / "out", out)


def _synthesise(
    context: Context,
    device: Device,
    model_path: Path,
    shards: Sequence[int],
    work: Path,
    stop: Stop,
) -> list[str]:
    """Recover every block that is not finished yet; returns the class names."""
    run, data = context.run, context.run.data
    described = read_description(model_path, run.upstream["model"])
    model = load_squeezed(model_path, run.upstream["model"], device)
    outputs = outputs_for(model_path, described, data)
    bn_layers(model)
    _forget_other_model(work, described["sha256"])
    size, seconds = run.recipe.recover.block_size, context.settings.runtime.checkpoint_seconds
    blocks = [block for shard in shards for block in blocks_of(shard, data.classes, size)]
    job = RecoverJob(run, model, outputs, device, work, seconds, stop, BlockFiles(work))
    recover_blocks(job, blocks)
    return [described["classes"][output] for output in outputs]


def _forget_other_model(work: Path, sha256: str) -> None:
    """Delete work that began with another model: a shard must not mix blocks of two models."""
    mark = work / "model.json"
    if mark.is_file() and read_json(mark, "the mark of the model")["sha256"] != sha256:
        shutil.rmtree(work / "blocks", ignore_errors=True)
        (work / "state.safetensors").unlink(missing_ok=True)
    write_json(mark, {"sha256": sha256})


def _take_images(context: Context, shards: Sequence[int], work: Path) -> list[str]:
    """Store real images (the random control) or released ones as finished blocks, one a shard."""
    run, classes = context.run, context.class_names()
    random = run.recipe.recover.mode == "random"
    made = _random_shards(context, shards) if random else _released_shards(context, classes, shards)
    for shard, images in zip(shards, made, strict=True):
        BlockFiles(work).snapshot(Block(shard, 0, run.data.classes), None, images)
    return classes


def _released_shards(
    context: Context, classes: list[str], shards: Sequence[int]
) -> Iterator[Pixels]:
    from cda.data.released import released_images, require_order

    require_order(context.run.data, classes)
    for shard in shards:
        yield released_images(context.released_folder(), shard, context.run.data)


def _random_shards(context: Context, shards: Sequence[int]) -> Iterator[Pixels]:
    """Random real images, one of each class a shard; reads the chosen images alone."""
    classes, seed = context.run.data.classes, context.run.recipe.recover.seed
    labels = context.real_labels("train")
    chosen = [random_choice(labels, classes, shard, seed) for shard in shards]
    images = context.real_images("train", np.concatenate(chosen))
    for _ in shards:
        yield np.stack(list(itertools.islice(images, classes)))


def random_choice(
    labels: NDArray[np.int64], classes: int, shard: int, seed: int
) -> NDArray[np.int64]:
    """Index [classes] of the `shard`-th image of each class in a fixed random order.

    `labels` [N] must be sorted, as every layout sorts them. Raises ConfigError if a class has too
    few images.
    """
    first = np.searchsorted(labels, np.arange(classes + 1))
    chosen = []
    for label in range(classes):
        own = range(first[label], first[label + 1])
        if shard >= len(own):
            found = f"class {label} has {len(own)} images, too few for shard {shard}"
            raise ConfigError(f"recover mode random: {found}; lower the IPC")
        chosen.append(own[generator("random", seed, "class", label).permutation(len(own))[shard]])
    return np.array(chosen, dtype=np.int64)


def _write_part(
    context: Context, device: Device, shards: Sequence[int], classes: list[str], work: Path
) -> None:
    """Join finished blocks to the part's shards, each with its description beside it."""
    run, recipe, files = context.run, context.run.recipe.recover, BlockFiles(work)
    shutil.rmtree(work / "out", ignore_errors=True)
    size = recipe.block_size if recipe.synthetic else run.data.classes

    def write(target: Path, images: Pixels, shard: int) -> None:
        write_shard(target, images, classes, shard, run.id, run.dataset, recipe.image)

    for shard in shards:
        blocks, target = blocks_of(shard, run.data.classes, size), work / "out" / shard_name(shard)
        write(target, files.read(blocks), shard)
        described = context.description() | {"ipc": shard, "blocks": files.losses(blocks)}
        described |= {"sha256": file_digest(target), "shards": len(shards)}  # of this job
        described["provenance"] = device.provenance()
        write_json(target.with_suffix(".json"), described)
        if shard == 0 and recipe.synthetic:
            for step in (step for step in recipe.snapshots if step <= recipe.iterations):
                snapshot = work / "out" / "snapshots" / f"step-{step:05d}.tar"
                write(snapshot, files.read(blocks, step), shard)
