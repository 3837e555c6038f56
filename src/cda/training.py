"""The one training loop: squeeze and validate differ in their batches and their loss, and in nothing else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cda.checkpoint import Checkpoint, Stop
from cda.config import Optimisation
from cda.errors import ArtifactError
from cda.progress import Progress
from cda.runtime import Machine, seed_everything

Loss = Callable[[Tensor, Any], Tensor]
Evaluate = Callable[[nn.Module], dict[str, float]]


class Batches(Protocol):
    """Training images; `epoch` is a pure function of its arguments, so that a resumed epoch sees the same batches."""

    steps: int
    images: int

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Any]]:
        """(images, target) of every step from `first_step` on."""
        ...


def lr_at(values: Optimisation, epoch: int, step: int, steps: int) -> float:
    """Learning rate of `step` (of `steps`) in `epoch`, both from 0: linear warm-up, then the schedule.

    Per epoch it moves between epochs (as torch's LinearLR, then CosineAnnealingLR or StepLR); per step it moves at
    every step.
    """
    now = epoch + (step / steps if values.schedule_per == "step" else 0.0)
    if now < values.warmup_epochs:
        return values.lr * (values.warmup_factor + (1 - values.warmup_factor) * now / values.warmup_epochs)
    now -= values.warmup_epochs
    if values.schedule == "cosine":
        return values.lr * (1 + math.cos(math.pi * now / (values.epochs - values.warmup_epochs))) / 2
    if values.schedule == "step":
        return values.lr * values.step_factor ** int(now // values.step_epochs)
    return values.lr


def optimizer_of(model: nn.Module, values: Optimisation) -> torch.optim.Optimizer:
    """The recipe's optimiser; without `decay_vectors`, 1-D parameters (biases, normalisation) are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if values.decay_vectors or p.ndim > 1]
    free = [p for p in trained if not (values.decay_vectors or p.ndim > 1)]
    groups = [{"params": decayed, "weight_decay": values.weight_decay}, {"params": free, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if values.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=values.lr, momentum=values.momentum)
    kind = torch.optim.AdamW if values.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=values.lr, fused=True)


@dataclass
class History:
    """What a training left: a row per evaluation, and the wall seconds of all its parts."""

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
    """One model's training: where it is, how to save that, how to go on."""

    def __init__(self, model: nn.Module, values: Optimisation, machine: Machine, seed: tuple[object, ...]) -> None:
        self.model, self.values, self.machine, self.seed = model, values, machine, seed
        self.optimizer = optimizer_of(model, values)
        self.history = History()
        self.at = (0, 0)  # the next epoch and the next step in it
        self.loss_sum = torch.zeros((), device=machine.device)

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on."""
        cuda = self.machine.device.type == "cuda"
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
        """Go on from `state`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, kept in self.optimizer.state.items():  # fused steps pair elements as they lie in memory
            for name, value in kept.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    kept[name] = torch.empty_like(parameter).copy_(value)
        self.history = History(**state["history"])
        self.at = (state["at"][0], state["at"][1])
        self.loss_sum = state["loss_sum"].to(self.machine.device)
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self.machine.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"])

    def step(self, images: Tensor, target: Any, loss: Loss, lr: float) -> None:
        """One optimiser step."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        with self.machine.autocast():
            logits = self.model(images.contiguous(memory_format=torch.channels_last))
        value = loss(logits, target)
        value.backward()
        self.optimizer.step()
        self.loss_sum += value.detach()


def fit(
    trainer: Trainer, batches: Batches, loss: Loss, evaluate: Evaluate, checkpoint: Checkpoint, stop: Stop, label: str
) -> History:
    """Train to the last epoch, from the checkpoint if any; raises Interrupted (all saved), ArtifactError (diverged)."""
    state = checkpoint.load()
    if state is not None:
        trainer.restore(state)
    values, began = trainer.values, time.monotonic() - trainer.history.seconds
    done = trainer.at[0] * batches.steps + trainer.at[1]
    progress = Progress(values.epochs * batches.steps, label, "steps", done)
    for epoch in range(trainer.at[0], values.epochs):
        first = trainer.at[1]
        if first == 0:
            seed_everything(*trainer.seed, "epoch", epoch)
            trainer.loss_sum.zero_()
        trainer.model.train()
        for step, (images, target) in enumerate(batches.epoch(epoch, first), start=first):
            trainer.step(images, target, loss, lr_at(values, epoch, step, batches.steps))
            trainer.at = (epoch, step + 1)
            if stop.signal or checkpoint.due():
                mean_loss(trainer, step + 1, label)
                trainer.history.seconds = time.monotonic() - began
                checkpoint.save(trainer.state())
                stop.check()
            progress.update()
        _close_epoch(trainer, epoch, batches.steps, evaluate, progress)
    trainer.history.seconds = time.monotonic() - began
    progress.close()
    return trainer.history


def mean_loss(trainer: Trainer, steps: int, label: str) -> float:
    """Mean loss of an epoch's first `steps`; raises ArtifactError if it is no number: no checkpoint may hold that."""
    mean = float(trainer.loss_sum) / steps
    if not math.isfinite(mean):
        epoch = trainer.at[0]
        raise ArtifactError(
            f"{label}: the loss is {mean} in epoch {epoch}; lower the recipe's lr or use precision fp32"
        )
    return mean


def _close_epoch(trainer: Trainer, epoch: int, steps: int, evaluate: Evaluate, progress: Progress) -> None:
    """Evaluate where the recipe says so, and move on to the next epoch."""
    loss = mean_loss(trainer, steps, progress.label)
    last = epoch + 1 == trainer.values.epochs
    if last or (epoch + 1) % trainer.values.evaluate_every == 0:
        row = {"epoch": epoch + 1, "loss": loss, **evaluate(trainer.model)}
        trainer.history.curve.append(row)
        progress.note = f"top-1 {row['top1']:.2f} %"
    trainer.at = (epoch + 1, 0)
