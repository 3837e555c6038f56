"""The recover loop (paper Section 2.3, Eq. 6): images of their classes, with real BN statistics.

The recovery model classifies the images as their classes, and their BN statistics match those of
the real data. Several class blocks go through the network together; draws, BN statistics and losses
are per block, so that packing changes rounding alone. docs/fidelity.md gives the order of the
loop's operations; its items 3 to 9 list where the loop follows the authors' code. `recover_blocks`
also chooses how many blocks are packed, retries with fewer where memory does not suffice, and
resumes killed jobs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cda.config.recipe import Recover
from cda.config.settings import Dataset
from cda.engine.blocks import Block, group_blocks, stack_steps, start_images
from cda.engine.checkpoint import Checkpoint
from cda.engine.device import Device
from cda.engine.memory import Memory, Packing, measure_memory, out_of_memory
from cda.engine.objective import Objective
from cda.engine.optimizers import make_optimizer, restore_optimizer, set_lr
from cda.engine.signals import Stop
from cda.errors import ArtifactError
from cda.experiments.runs import Run
from cda.method.augment import to_device
from cda.method.curriculum import image_lr
from cda.progress import Progress, log

Pixels = NDArray[np.uint8]
AHEAD = 64  # steps whose views are drawn, and copied to the device, at once


class Recovery:
    """Equal-sized class blocks between noise and finished images; `step` is one iteration of all.

    `outputs` are the model's outputs for the classes of `data`, in order; by default the model has
    those classes alone. `label` names the job in messages.
    """

    def __init__(
        self,
        objective: Objective,
        blocks: list[Block],
        recipe: Recover,
        data: Dataset,
        dtype: torch.dtype = torch.float32,
        label: str = "recover",
        outputs: Sequence[int] | None = None,
    ) -> None:
        assert len(blocks) == objective.blocks
        self.objective, self.blocks, self.recipe, self.data = objective, blocks, recipe, data
        self.torch_device = device = objective.device.torch_device
        self.label, self.done = label, 0
        self.trace: list[dict[str, Any]] = []
        self.images = self._start(dtype).requires_grad_()
        own = range(data.classes) if outputs is None else outputs
        labels = [own[label] for block in blocks for label in range(block.first, block.last)]
        self.labels = torch.tensor(labels, device=device)
        self.mean, self.std = (
            torch.tensor(values, dtype=dtype, device=device).view(3, 1, 1)
            for values in (data.mean, data.std)
        )
        self.optimizer = make_optimizer(
            torch.optim.Adam, [self.images], recipe.lr, device, betas=(0.5, 0.9), eps=1e-8
        )
        self.iterate = self._iteration()
        self._ahead, self._drawn = torch.empty(0), range(0)  # views of these steps
        self._last: tuple[Tensor, Tensor] | None = None

    def _start(self, dtype: torch.dtype) -> Tensor:
        """The blocks' start images, drawn block by block: in float64 all would fill the host."""
        size = self.data.resolution
        count = sum(block.size for block in self.blocks)
        images = torch.empty(count, 3, size, size, dtype=dtype, device=self.torch_device)
        places = images.split([block.size for block in self.blocks])
        for block, place in zip(self.blocks, places, strict=True):
            place.copy_(torch.from_numpy(start_images(block, self.recipe.seed, size)).to(dtype))
        return images

    def _iteration(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """One iteration under `views`: gradient, optimiser and clamp; it returns both losses [K].

        A GPU records it. It does not refer to `self`, which would make a cycle: a group's memory
        has to be free before the next group begins.
        """
        objective, images, labels = self.objective, self.images, self.labels
        optimizer, alpha = self.optimizer, self.recipe.alpha_bn
        low, high = -self.mean / self.std, (1 - self.mean) / self.std

        def iterate(views: Tensor) -> tuple[Tensor, Tensor]:
            entropy, distance = objective(images, views, labels)
            optimizer.zero_grad(set_to_none=True)
            (entropy + alpha * distance).sum().backward()
            optimizer.step()
            with torch.no_grad():
                torch.clamp(images, low, high, out=images)
            return entropy.detach(), distance.detach()

        steps = self.recipe.iterations
        views = len(images) if self.recipe.per_image else len(self.blocks)
        return objective.device.graphed(iterate, steps, views)

    def step(self) -> None:
        """One iteration; raises ArtifactError if a block's loss is no longer finite."""
        recipe, step = self.recipe, self.done
        if step not in self._drawn:
            self._drawn = range(step, max(step + 1, min(step + AHEAD, recipe.iterations)))
            views = stack_steps(self.blocks, recipe, self._drawn, self.data.resolution)
            self._ahead = to_device(views, self.torch_device)
        set_lr(self.optimizer, image_lr(step, recipe.iterations, recipe.lr))
        self._last = self.iterate(self._ahead[step - self._drawn.start])
        self.done += 1
        if self.done in (1, recipe.iterations) or self.done % max(1, recipe.iterations // 20) == 0:
            ce, bn = self.losses()
            self.trace.append({"step": self.done, "ce": ce, "bn": bn})

    def losses(self) -> tuple[list[float], list[float]]:
        """Cross-entropy and BN distance of each block at the last step.

        Raises ArtifactError if a loss is not finite.
        """
        assert self._last is not None
        entropy, distance = (part.tolist() for part in self._last)
        for block, ce, bn in zip(self.blocks, entropy, distance, strict=True):
            if not (math.isfinite(ce) and math.isfinite(bn)):
                raise ArtifactError(
                    f"{self.label}: the loss is no number at shard {block.shard}, classes "
                    f"{block.first} to {block.last - 1}, step {self.done}; lower recover.lr or use "
                    "precision fp32"
                )
        return entropy, distance

    def summary(self) -> str:
        """The losses last recorded in the trace, mean over the blocks, for the progress line."""
        ce, bn = (float(np.mean(self.trace[-1][key])) for key in ("ce", "bn"))
        return f"loss {ce:.3f} + α·{bn:.2f}"

    def pixels(self) -> Pixels:
        """The images as uint8 [K · B, R, R, 3], truncated as in the authors' code (fidelity 9)."""
        unit = (self.images.detach() * self.std + self.mean).clamp(0, 1)
        return (unit * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def by_block(self) -> Iterator[tuple[Block, Pixels, list[dict[str, Any]]]]:
        """Every block with its images [B, R, R, 3] and its own losses at the noted steps."""
        pixels = np.split(self.pixels(), len(self.blocks))
        for index, (block, own) in enumerate(zip(self.blocks, pixels, strict=True)):
            trace = [
                {"step": row["step"], "ce": row["ce"][index], "bn": row["bn"][index]}
                for row in self.trace
            ]
            yield block, own, trace

    def state(self) -> dict[str, Any]:
        """Everything that the remaining iterations depend on.

        Raises ArtifactError if a loss is not finite: a diverged state must not replace a good one.
        """
        if self._last is not None:
            self.losses()
        return {
            "done": self.done,
            "images": self.images,
            "optimizer": self.optimizer.state_dict(),
            "trace": self.trace,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.done, self.trace = state["done"], state["trace"]
        with torch.no_grad():
            self.images.copy_(state["images"])
        restore_optimizer(self.optimizer, state["optimizer"])
        self.iterate = self._iteration()  # a recorded one would use the optimiser's former state


class Results(Protocol):
    """Storage of images; it also knows which blocks an earlier start finished."""

    def has(self, block: Block) -> bool:
        """Whether the block is finished."""
        ...

    def finish(self, block: Block, pixels: Pixels, trace: list[dict[str, Any]]) -> None:
        """Store a block's finished images [B, R, R, 3] and its losses, a row per noted step."""
        ...

    def snapshot(self, block: Block, step: int, pixels: Pixels) -> None:
        """Store a block's images [B, R, R, 3] after `step` iterations; called for shard 0 alone."""
        ...


@dataclass
class RecoverJob:
    """What the blocks of one part have in common."""

    run: Run
    model: nn.Module  # the frozen recovery model, on the device
    outputs: Sequence[int]  # the model's output for each class of the run's data set
    device: Device
    work: Path  # folder of the checkpoint and of the number of packed blocks
    checkpoint_seconds: float
    stop: Stop
    results: Results

    @property
    def label(self) -> str:
        """The job's name in messages."""
        return f"recover {self.run.id}"


def recover_blocks(job: RecoverJob, blocks: Sequence[Block]) -> None:
    """Recover every block that `job.results` does not have yet, as many at a time as memory holds.

    A job that was killed or stopped continues from its checkpoint. Raises ArtifactError if a loss
    is not finite, ConfigError if a single block does not fit into memory, and Interrupted, with the
    state saved, after a signal.
    """
    recipe, runtime = job.run.recipe.recover, job.device.runtime
    left = [block for block in blocks if not job.results.has(block)]
    done = len(blocks) - len(left)
    total = len(blocks) * recipe.iterations
    progress = Progress(total, job.label, "block-steps", done * recipe.iterations)
    if done:
        log(f"{job.label}: {done} of {len(blocks)} class blocks are done already")
    objectives = _Objectives(job, len(blocks))
    packing = Packing(
        job.work, job.label, runtime.blocks, len(blocks), recipe.block_size,
        3 * 3 * 4 * recipe.block_size * job.run.data.resolution**2, job.device.torch_device.type,
    )  # fmt: skip
    count = packing.choose(lambda: objectives.measure(left[0])) if left else 0
    count = min(count, len(left))
    while left:
        group = next(group_blocks(left, count))
        if _recover_if_it_fits(job, objectives, group, progress):
            left = [block for block in left if block not in group]
        else:  # the failed attempt has released its memory only now
            objectives.close()
            count = packing.halve(count)
    objectives.close()
    progress.close()


class _Objectives:
    """The objective of the present number of blocks, compiled once for all groups of that size."""

    def __init__(self, job: RecoverJob, blocks: int) -> None:
        self.job, self.blocks = job, blocks
        self._open: Objective | None = None

    def of(self, count: int) -> Objective:
        """The objective of `count` blocks; closes the one of another number."""
        if self._open is None or self._open.blocks != count:
            self.close()
            recipe = self.job.run.recipe.recover
            steps = recipe.iterations * -(-self.blocks // count)
            self._open = Objective(self.job.model, count, recipe, self.job.device, steps)
        return self._open

    def measure(self, block: Block) -> Memory:
        """Memory that `block` needs without compilation, which costs time and saves memory."""
        run, device = self.job.run, self.job.device.uncompiled()
        recipe = run.recipe.recover
        objective = Objective(self.job.model, 1, recipe, device, recipe.iterations)
        try:
            return measure_memory(lambda: Recovery(objective, [block], recipe, run.data).step)
        finally:
            objective.close()

    def close(self) -> None:
        """Remove hooks and kernels from the model."""
        if self._open is not None:
            self._open.close()
        self._open = None


def _recover_if_it_fits(
    job: RecoverJob, objectives: _Objectives, group: list[Block], progress: Progress
) -> bool:
    """Recover the group; False if memory does not suffice."""
    try:
        _recover_group(job, objectives.of(len(group)), group, progress)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return False
    return True


def _recover_group(
    job: RecoverJob, objective: Objective, group: list[Block], progress: Progress
) -> None:
    """Take one group of blocks to its last step, from its checkpoint if there is one."""
    run, recipe = job.run, job.run.recipe.recover
    key = f"{run.id} {[(block.shard, block.first) for block in group]}"
    checkpoint = Checkpoint(job.work / "state.safetensors", key, job.checkpoint_seconds)
    recovery = Recovery(objective, group, recipe, run.data, label=job.label, outputs=job.outputs)
    if (state := checkpoint.load()) is not None:
        recovery.restore(state)
        log(f"{job.label}: going on from step {recovery.done} of {recipe.iterations}")
        progress.update(recovery.done * len(group))
    while recovery.done < recipe.iterations:
        recovery.step()
        if recovery.done in recipe.snapshots and any(block.shard == 0 for block in group):
            for block, pixels, _ in recovery.by_block():
                if block.shard == 0:
                    job.results.snapshot(block, recovery.done, pixels)
        if job.stop.signal or checkpoint.due():
            checkpoint.save(recovery.state())
            job.stop.check()
        progress.note = recovery.summary()
        progress.update(len(group))
    for block, pixels, trace in recovery.by_block():
        job.results.finish(block, pixels, trace)
    checkpoint.clear()
