"""Recover: synthesise the images of some consecutive shards; or take real or released images in
their place.

Reads a squeezed model (or images); writes a part folder of shards `ipc-000.tar` with `ipc-000.json`
beside each, and the first shard's snapshots under `snapshots/`. A shard depends on the run and its
index alone. Finished blocks and the newest state of the unfinished ones wait in the work folder, so
that a killed job goes on where it was.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cda.data.shards import shard_name, write_shard
from cda.engine import memory
from cda.engine.checkpoint import Checkpoint
from cda.engine.device import Device, out_of_memory
from cda.engine.lock import work_folder
from cda.engine.recovery import Block, Objective, Recovery, blocks_of
from cda.engine.signals import Stop
from cda.errors import ConfigError
from cda.files import atomic_write, file_digest, publish, read_json, write_json
from cda.method.bn_matching import bn_layers
from cda.progress import Progress, log
from cda.rng import generator
from cda.stages.context import Context
from cda.stages.models import load_squeezed, outputs_for

Pixels = NDArray[np.uint8]


def groups(blocks: list[Block], together: int) -> Iterator[list[Block]]:
    """Blocks of equal size, at most `together` at a time."""
    for _, same in itertools.groupby(
        sorted(blocks, key=lambda b: b.first - b.last), key=lambda b: b.last - b.first
    ):
        equal = list(same)
        yield from (equal[start : start + together] for start in range(0, len(equal), together))


def _block_file(work: Path, block: Block, step: int | None = None) -> Path:
    at = "" if step is None else f"-step-{step}"
    return work / "blocks" / f"shard-{block.shard}-class-{block.first}{at}.npy"


def _save_pixels(path: Path, pixels: Pixels) -> None:
    with atomic_write(path) as aside, aside.open("wb") as file:
        np.save(file, pixels, allow_pickle=False)


def run(context: Context, part: int, model_path: Path | None, out: Path) -> None:
    """Make part `part` of the run at `out`."""
    data, recipe = context.run.data, context.run.recipe.recover
    if part < 0:
        raise ConfigError(f"--part {part}: parts are counted from 0")
    shards = range(part * data.shards_per_job, (part + 1) * data.shards_per_job)
    device = context.open_device()
    work = context.work(f"part-{part}")
    with work_folder(work) as stop:
        if recipe.synthetic:
            assert model_path is not None
            classes = _synthesise(context, device, model_path, shards, work, stop)
        else:
            classes = _take(context, shards, work)
        _write_part(context, device, shards, classes, work)
        publish(work / "out", out)


def _synthesise(
    context: Context, device: Device, model_path: Path, shards: range, work: Path, stop: Stop
) -> list[str]:
    """Recover every block that is not finished yet; returns the class names."""
    run, recipe = context.run, context.run.recipe.recover
    described = read_json(model_path.with_name("squeeze.json"), "the squeezed model's description")
    model = load_squeezed(model_path, run.upstream["model"], device)
    outputs = outputs_for(model_path, described, run.data)
    bn_layers(model)
    _forget_other_model(work, described["sha256"])
    blocks = [b for shard in shards for b in blocks_of(shard, run.data.classes, recipe.block_size)]
    left = [b for b in blocks if not _block_file(work, b).is_file()]
    progress = Progress(
        len(blocks) * recipe.iterations,
        f"recover {run.id}",
        "block-steps",
        (len(blocks) - len(left)) * recipe.iterations,
    )
    if len(left) < len(blocks):
        log(
            f"recover {run.id}: {len(blocks) - len(left)} of {len(blocks)} class blocks are "
            "done already"
        )
    if left:
        Job(context, device, model, outputs, work, stop, progress, len(blocks)).recover(left)
    progress.close()
    return [described["classes"][output] for output in outputs]


def _forget_other_model(work: Path, sha256: str) -> None:
    """Drop what was begun with another model's bytes.

    Blocks of two models must not share a shard.
    """
    mark = work / "model.json"
    if mark.is_file() and read_json(mark, "the mark of the model")["sha256"] != sha256:
        shutil.rmtree(work / "blocks", ignore_errors=True)
        (work / "state.safetensors").unlink(missing_ok=True)
    write_json(mark, {"sha256": sha256})


@dataclass
class Job:
    """The blocks of one part, on their way through one model."""

    context: Context
    device: Device
    model: nn.Module
    outputs: list[int]  # the model's, of the data set's classes
    work: Path
    stop: Stop
    progress: Progress
    blocks: int  # of the part
    _made: Objective | None = None

    def recover(self, left: list[Block]) -> None:
        """Take all blocks to their last step, as many together as fit.

        Where memory does not suffice, fewer.
        """
        together = min(self._together(left[0]), len(left))
        while left:
            done = self._tried(next(groups(left, together)))
            if not done:  # only now has the failed attempt let go of its memory
                together = self._fewer(together)
            left = [block for block in left if block not in done]
        self._close()

    def _tried(self, group: list[Block]) -> list[Block]:
        """The group, at its last step; none of it if memory did not suffice."""
        try:
            self._recover_group(self._objective(len(group)), group)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return []
        return group

    def _together(self, block: Block) -> int:
        """How many blocks are packed: the setting, or what an earlier start found, or what fits."""
        setting, mark = self.device.runtime.blocks, self.work / "packed.json"
        if setting != "auto":
            return setting
        if self.device.torch_device.type == "cpu":
            return 1
        if mark.is_file():
            return int(read_json(mark, "the number of packed blocks")["together"])
        run = self.context.run
        try:
            needed = memory.measure_memory(self._objective(1), block, run.recipe.recover, run.data)
        except torch.OutOfMemoryError:
            return self._fewer(1)
        together = min(self.blocks, needed.most(memory.free_bytes()))
        log(
            f"recover {run.id}: {together} class blocks together, "
            f"{needed.of(together) / 1e9:.1f} GB"
        )
        write_json(mark, {"together": together})
        return together

    def _fewer(self, together: int) -> int:
        """Half as many blocks, from now on; raises ConfigError if it was one."""
        self._close()
        if self.device.torch_device.type == "cuda":
            torch.cuda.empty_cache()
        run = self.context.run
        if together == 1:
            problem = (
                f"recover {run.id}: a class block of {run.recipe.recover.block_size} "
                "does not fit into memory"
            )
            raise ConfigError(
                f"{problem}; lower recover.block_size or use a {self.device.torch_device.type} with more"
            )
        log(
            f"recover {run.id}: {together} class blocks do not fit into memory; going on with "
            f"{together // 2}"
        )
        write_json(self.work / "packed.json", {"together": together // 2})
        return together // 2

    def _objective(self, blocks: int) -> Objective:
        """The losses of so many blocks, compiled once for all groups of that size."""
        if self._made is None or self._made.blocks != blocks:
            self._close()
            recipe = self.context.run.recipe.recover
            steps = recipe.iterations * -(-self.blocks // blocks)
            self._made = Objective(self.model, blocks, recipe, self.device, steps)
        return self._made

    def _close(self) -> None:
        if self._made is not None:
            self._made.close()
        self._made = None

    def _recover_group(self, objective: Objective, group: list[Block]) -> None:
        """Take one group of blocks to its last step, from its checkpoint if there is one."""
        run, recipe, work = self.context.run, self.context.run.recipe.recover, self.work
        key = f"{run.id} {[(b.shard, b.first) for b in group]}"
        checkpoint = Checkpoint(
            work / "state.safetensors", key, self.context.settings.runtime.checkpoint_seconds
        )
        recovery = Recovery(
            objective, group, recipe, run.data, label=f"recover {run.id}", outputs=self.outputs
        )
        if (state := checkpoint.load()) is not None:
            recovery.restore(state)
            log(f"recover {run.id}: going on from step {recovery.done} of {recipe.iterations}")
            self.progress.update(recovery.done * len(group))
        while recovery.done < recipe.iterations:
            recovery.step()
            if recovery.done in recipe.snapshots and any(block.shard == 0 for block in group):
                _keep(work, group, recovery.pixels(), recovery.done)
            if self.stop.signal or checkpoint.due():
                checkpoint.save(recovery.state())
                self.stop.check()
            self.progress.note = recovery.summary()
            self.progress.update(len(group))
        for index, block in enumerate(group):
            trace = [
                {"step": row["step"], "ce": row["ce"][index], "bn": row["bn"][index]}
                for row in recovery.trace
            ]
            write_json(_block_file(work, block).with_suffix(".json"), {"trace": trace})
        _keep(work, group, recovery.pixels(), None)
        checkpoint.clear()


def _keep(work: Path, group: list[Block], pixels: Pixels, step: int | None) -> None:
    """Keep each block's images: the finished ones, or a snapshot of the first shard's."""
    for index, block in enumerate(group):
        if step is None or block.shard == 0:
            size = block.last - block.first
            _save_pixels(_block_file(work, block, step), pixels[index * size : (index + 1) * size])


def _take(context: Context, shards: range, work: Path) -> list[str]:
    """Real images (the random control) or released ones (the authors' folder) as the blocks'
    finished images.
    """
    run, recipe = context.run, context.run.recipe.recover
    made = (
        _random_shards(context, shards)
        if recipe.mode == "random"
        else _released_shards(context, shards)
    )
    for shard, images in zip(shards, made, strict=True):
        _save_pixels(_block_file(work, Block(shard, 0, run.data.classes)), images)
    return context.class_names()


def _released_shards(context: Context, shards: range) -> Iterator[Pixels]:
    from cda.data.released import released_images

    for shard in shards:
        yield released_images(context.released_folder(), shard, context.run.data)


def _random_shards(context: Context, shards: range) -> Iterator[Pixels]:
    """Real images of every class, a shard at a time.

    The train split is listed whole and the chosen images are read.
    """
    classes, seed = context.run.data.classes, context.run.recipe.recover.seed
    labels = context.real_labels("train")
    chosen = [_random_choice(labels, classes, shard, seed) for shard in shards]
    images = context.real_images("train", np.concatenate(chosen))
    for _ in shards:
        yield np.stack(list(itertools.islice(images, classes)))


def _random_choice(
    labels: NDArray[np.int64], classes: int, shard: int, seed: int
) -> NDArray[np.int64]:
    """Index [classes] of every class's `shard`-th image in a fixed random order; raises ConfigError
    if one has fewer.

    `labels` [N] are sorted, as all layouts' are.
    """
    first = np.searchsorted(labels, np.arange(classes + 1))
    chosen = []
    for label in range(classes):
        own = range(first[label], first[label + 1])
        if shard >= len(own):
            found = f"class {label} has {len(own)} images, too few for shard {shard}"
            raise ConfigError(
                f"recover mode random: {found}; lower the data set's shards_per_job or the IPC"
            )
        chosen.append(own[generator("random", seed, "class", label).permutation(len(own))[shard]])
    return np.array(chosen, dtype=np.int64)


def _write_part(
    context: Context, device: Device, shards: range, classes: list[str], work: Path
) -> None:
    """Join finished blocks into the part's shards, with what was measured beside each."""
    run, recipe = context.run, context.run.recipe.recover
    shutil.rmtree(work / "out", ignore_errors=True)
    size = recipe.block_size if recipe.synthetic else run.data.classes
    for shard in shards:
        blocks = blocks_of(shard, run.data.classes, size)
        target = work / "out" / shard_name(shard)
        _join(context, target, work, blocks, classes)
        traces = [_block_file(work, block).with_suffix(".json") for block in blocks]
        told: dict[str, Any] = {
            "blocks": [read_json(path, "a block's losses") for path in traces if path.is_file()]
        }
        told |= {"sha256": file_digest(target), "provenance": device.provenance()}
        write_json(target.with_suffix(".json"), context.described() | {"ipc": shard} | told)
        if shard == 0 and recipe.synthetic:
            for step in [s for s in recipe.snapshots if s <= recipe.iterations]:
                _join(
                    context,
                    work / "out" / "snapshots" / f"step-{step:05d}.tar",
                    work,
                    blocks,
                    classes,
                    step,
                )


def _join(
    context: Context,
    target: Path,
    work: Path,
    blocks: list[Block],
    classes: list[str],
    step: int | None = None,
) -> None:
    images = np.concatenate(
        [np.load(_block_file(work, block, step), allow_pickle=False) for block in blocks]
    )
    kind = context.run.recipe.recover.image
    write_shard(target, images, classes, blocks[0].shard, context.run.id, context.run.dataset, kind)
