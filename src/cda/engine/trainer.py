"""The one training loop; squeeze, validate and continual differ in batches and loss alone.

The ranks of a job (`cda.engine.device`) share every batch, and the gradient is the mean over the
complete batch. As in torch's DistributedDataParallel without SyncBatchNorm, a rank's batch
statistics come from its share; the running statistics that are tested and saved are rank 0's.

Where a job is long enough (`runtime.compile`), the forward pass, loss and backward pass of a full
batch are compiled, and a GPU replays the step, the optimiser's included, as one launch. Such a step
differs in rounding alone, and on a CPU a resumed job has the same bits as an undisturbed one. The
last, smaller batch of an epoch runs uncompiled.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cda.config.recipe import Optimisation
from cda.engine.batches import batch_count, batch_sizes, split_batch
from cda.engine.checkpoint import Checkpoint, load_state
from cda.engine.device import Device, seed_everything
from cda.engine.memory import enough_memory
from cda.engine.optimizers import (
    build_optimizer,
    forget_steps,
    lr_at,
    restarts,
    restore_optimizer,
    set_lr,
)
from cda.engine.signals import Stop
from cda.errors import ArtifactError
from cda.progress import Progress, log

Loss = Callable[[Tensor, Any], Tensor]
Step = Callable[..., None]
Evaluate = Callable[[nn.Module], dict[str, float]]


class Batches(Protocol):
    """Training images.

    `epoch` is a pure function of its arguments, so that a resumed epoch has the same batches.
    `fit` lowers `steps` where a last, too small batch joins the one before.
    """

    steps: int
    images: int

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Any]]:
        """(images, target) of every step from `first_step` on."""
        ...


@dataclass
class History:
    """A row per evaluation, and the wall seconds of the training, over all starts."""

    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def last(self) -> dict[str, float]:
        """The last epoch's row: what is reported (fidelity 19)."""
        return self.curve[-1]

    @property
    def best(self) -> dict[str, float]:
        """The row with the best top-1, the first of equals."""
        return max(self.curve, key=lambda row: row["top1"])


class Trainer:
    """One model in training: its optimiser and position, which `state` saves.

    A batch, or part of one, has at least `least` images: a smaller last one joins the one before.
    """

    def __init__(
        self,
        model: nn.Module,
        values: Optimisation,
        device: Device,
        seed: tuple[object, ...],
        batch_parts: int = 1,
        least: int = 1,
    ) -> None:
        self.model, self.values, self.device, self.seed = model, values, device, seed
        self.batch_parts, self.least = batch_parts, least
        self.shared = device.parallel(model)
        self.optimizer = build_optimizer(model, values)
        self.history = History()
        self.at = (0, 0)  # the next epoch and the next step in it
        self.job = (values.epochs, values.batch_size)  # steps (at least) and images of a batch
        self._step: tuple[Loss, Step] | None = None  # the step of a loss
        self.loss_sum = torch.zeros((), device=device.torch_device)

    def state(self) -> dict[str, Any]:
        """Everything that the remaining steps depend on."""
        cuda = self.device.torch_device.type == "cuda"
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": {"curve": self.history.curve, "seconds": self.history.seconds},
            "at": list(self.at),
            "loss_sum": self.loss_sum,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if cuda else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        load_state(self.model, state["model"])
        restore_optimizer(self.optimizer, state["optimizer"])
        self._step = None  # a recorded step would use the state's former place in memory
        self.history = History(**state["history"])
        self.at = (state["at"][0], state["at"][1])
        self.loss_sum.copy_(state["loss_sum"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self.device.torch_device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"])

    def release(self) -> None:
        """Drop the compiled and recorded step with its memory, before another model's."""
        self._step = None
        self.device.forget()

    def restart(self, model: nn.Module, seed: tuple[object, ...]) -> None:
        """Begin another training, with the weights of `model`, an equal network.

        Compiled steps refer to the module's and the optimiser's tensors, so that these are
        overwritten in place: the next training runs what this one compiled.
        """
        with torch.no_grad():
            for own, fresh in zip(_tensors(self.model), _tensors(model), strict=True):
                own.copy_(fresh)
        for state in self.optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    value.zero_()
        self.seed, self.history, self.at = seed, History(), (0, 0)
        self.loss_sum.zero_()

    def seed_epoch(self, epoch: int) -> None:
        """Seed torch's own generators (dropout) at the start of an epoch."""
        seed_everything(*self.seed, "epoch", epoch)

    def seed_step(self, epoch: int, step: int) -> None:
        """Seed torch's own generators at every step if there are ranks.

        Each rank has a generator of its own, and a checkpoint has the state of rank 0's alone.
        """
        if self.device.world > 1:
            seed_everything(*self.seed, "epoch", epoch, "step", step, "rank", self.device.rank)

    def step(self, images: Tensor, target: Any, loss: Loss, lr: float, weight: float = 1.0) -> None:
        """One optimiser step; `weight` is the loss's in the mean over the ranks.

        With `batch_parts` the gradient is the mean of the parts' gradients (fidelity 27).
        """
        set_lr(self.optimizer, lr)
        if self._step is None or self._step[0] is not loss:
            self._step = (loss, self._build_step(loss))
        self._step[1](images, target, *(() if weight == 1 else (weight,)))

    def _build_step(self, loss: Loss) -> Step:
        """The function of (images, target, weight) that makes a step.

        Where that pays in this `job`, forward pass, loss and backward pass are compiled, and a GPU
        replays the step as one launch.
        """

        def forward(images: Tensor, target: Any) -> Tensor:
            with self.device.autocast():
                logits = self.shared(images.contiguous(memory_format=torch.channels_last))
            return loss(logits, target)

        steps, batch = self.job
        own = len(self.device.share(torch.arange(batch)))
        size = own if self.batch_parts == 1 else self.values.batch_size // self.batch_parts
        objective = self.device.compiled(forward, steps, length=size)

        def step(images: Tensor, target: Any, weight: float = 1.0) -> None:
            self.optimizer.zero_grad(set_to_none=True)
            parts = [(images, target)]
            if self.batch_parts > 1:
                parts = split_batch(images, target, size, self.least)
            share = weight / len(parts)
            for part in parts:
                value = objective(*part)
                if share != 1:
                    value = value * share
                value.backward()
                self.loss_sum += value.detach()
            self.optimizer.step()

        return self.device.graphed(step, steps, own)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers."""
    yield from model.parameters()
    yield from model.buffers()


def fit(
    trainer: Trainer,
    batches: Batches,
    loss: Loss,
    evaluate: Evaluate,
    checkpoint: Checkpoint,
    stop: Stop,
    label: str,
) -> History:
    """Train to the last epoch, from the checkpoint if there is one.

    Raises Interrupted after a signal, with the state saved; ArtifactError if the loss is not
    finite; ConfigError if memory runs out.
    """
    state = checkpoint.load()
    if state is not None:
        trainer.restore(state)
        if trainer.device.leads:
            log(
                f"{label}: going on from epoch {trainer.at[0]} of {trainer.values.epochs}, "
                f"step {trainer.at[1]}"
            )
    values = trainer.values
    if trainer.least > 1:
        batches.steps = batch_count(batches.images, values.batch_size, trainer.least)
    trainer.job = (values.epochs * batches.steps, min(values.batch_size, batches.images))
    key = f"{type(values).__name__.lower()}.batch_size"

    def too_large() -> str:
        epoch, step = trainer.at
        return (
            f"{label}: no memory left in epoch {epoch}, step {step}; "
            f"lower {key} ({values.batch_size}), or set runtime.precision to bf16"
        )

    with enough_memory(too_large):
        _train(trainer, batches, loss, evaluate, checkpoint, stop, label)
    return trainer.history


def _train(
    trainer: Trainer,
    batches: Batches,
    loss: Loss,
    evaluate: Evaluate,
    checkpoint: Checkpoint,
    stop: Stop,
    label: str,
) -> None:
    """Make every step and evaluation that remains."""
    values, device = trainer.values, trainer.device
    began = time.monotonic() - trainer.history.seconds
    sizes = batch_sizes(batches.images, batches.steps, values.batch_size)
    progress = _Progress(values.epochs, sizes, trainer.at, label, device.leads)
    for epoch in range(trainer.at[0], values.epochs):
        first = trainer.at[1]
        if first == 0:
            trainer.seed_epoch(epoch)
            trainer.loss_sum.zero_()
            if restarts(values, epoch):
                forget_steps(trainer.optimizer)
        trainer.model.train()
        for step, (images, target) in enumerate(batches.epoch(epoch, first), start=first):
            trainer.seed_step(epoch, step)
            lr = lr_at(values, epoch, step, batches.steps)
            trainer.step(images, target, loss, lr, device.weight(sizes[step]))
            trainer.at = (epoch, step + 1)
            # a signal to any rank stops all of them
            request = device.agree(2 * stop.signal + checkpoint.due())
            if request:
                mean_loss(trainer, step + 1, label)
                trainer.history.seconds = time.monotonic() - began
                # every rank continues from the mean
                device.total(trainer.loss_sum).div_(device.world)
                checkpoint.save(trainer.state())
            if request > 1:
                device.agree(0)  # torchrun kills the rank that still writes if another has ended
                stop.signal = request // 2
                stop.check()
            progress.update(sizes[step])
        _close_epoch(trainer, epoch, batches.steps, evaluate, progress)
    trainer.history.seconds = time.monotonic() - began
    progress.close()


class _Progress(Progress):
    """Counts images; prints nothing unless `visible`."""

    def __init__(
        self, epochs: int, sizes: list[int], at: tuple[int, int], label: str, visible: bool
    ) -> None:
        if visible:
            done = at[0] * sum(sizes) + sum(sizes[: at[1]])
            super().__init__(epochs * sum(sizes), label, "images", done)
        self.label, self.note, self.visible = label, "", visible

    def update(self, count: int = 1) -> None:
        """Count `count` more images."""
        if self.visible:
            super().update(count)

    def close(self) -> None:
        """Remove the bar."""
        if self.visible:
            super().close()


def mean_loss(trainer: Trainer, steps: int, label: str) -> float:
    """Mean loss of an epoch's first `steps`.

    Raises ArtifactError if it is not finite: a diverged state must not replace a good checkpoint.
    """
    device = trainer.device
    mean = float(device.total(trainer.loss_sum.clone())) / device.world / steps
    if not math.isfinite(mean):
        epoch = trainer.at[0]
        raise ArtifactError(
            f"{label}: the loss is {mean} in epoch {epoch}; lower the recipe's lr or use "
            "precision fp32"
        )
    return mean


def _close_epoch(
    trainer: Trainer, epoch: int, steps: int, evaluate: Evaluate, progress: Progress
) -> None:
    """Evaluate if the epoch is due for it, and move on to the next."""
    loss = mean_loss(trainer, steps, progress.label)
    last = epoch + 1 == trainer.values.epochs
    if last or (epoch + 1) % trainer.values.evaluate_every == 0:
        trainer.device.take_buffers(trainer.model)
        row = {"epoch": epoch + 1, "loss": loss, **evaluate(trainer.model)}
        trainer.history.curve.append(row)
        progress.note = f"top-1 {row['top1']:.2f} %"
    trainer.at = (epoch + 1, 0)
