"""Validate (post-train): train a fresh model on distilled images alone, test it on the real validation set.

Reads shards, a label store and, for online labels, the relabel model; writes one JSON, the only thing a table reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cda.checkpoint import Checkpoint, working
from cda.data.labels import LabelStore
from cda.data.loaders import DistilledBatches, Images
from cda.data.shards import load_distilled
from cda.errors import ConfigError, DataError
from cda.files import write_json
from cda.method.kd import kd_loss, mixed_ce
from cda.runtime import Machine
from cda.stages.context import Context
from cda.stages.networks import fresh_model, load_squeezed
from cda.training import Batches, History, Loss, Trainer, fit


class LabelledBatches:
    """Distilled batches with what the loss needs: soft labels, or hard labels of the mixture."""

    def __init__(
        self, batches: DistilledBatches, store: LabelStore, teacher: torch.nn.Module | None, machine: Machine
    ) -> None:
        self.inner, self.store, self.teacher, self.machine = batches, store, teacher, machine
        self.steps, self.images = batches.steps, batches.images

    def epoch(self, epoch: int, first_step: int = 0):  # type: ignore[no-untyped-def]
        """(inputs, target) of every step; a target is teacher logits, or (own class, partner's class, own share)."""
        for inputs, (_, plan, chosen) in self.inner.epoch(epoch, first_step):
            yield inputs, self._target(inputs, epoch, plan, chosen)

    def _target(self, inputs: Tensor, epoch: int, plan: Any, chosen: Any) -> Any:
        device = self.machine.device
        if self.store.mode == "fp16":
            return torch.from_numpy(self.store.read(epoch, chosen)).to(device)
        if self.store.mode == "online":
            assert self.teacher is not None
            with torch.inference_mode(), self.machine.autocast():
                logits = self.teacher(inputs.contiguous(memory_format=torch.channels_last))
            return logits.clone()
        labels = self.inner.set.labels
        own, partner = (labels[torch.from_numpy(index).to(device)] for index in (chosen, plan.partners[chosen]))
        return own, partner, torch.from_numpy(plan.ratios[chosen]).float().to(device)


def loss_of(context: Context, store: LabelStore) -> Loss:
    """The recipe's loss for the store's kind of labels."""
    recipe = context.run.recipe.validate_

    def soft(logits: Tensor, target: Any) -> Tensor:
        return kd_loss(logits, target, recipe.temperature, recipe.temperature_squared, recipe.label_smoothing)

    def hard(logits: Tensor, target: Any) -> Tensor:
        own, partner, share = target
        return mixed_ce(logits, own, partner, share, recipe.label_smoothing)

    return hard if store.mode == "hard" else soft


def run(context: Context, images_folder: Path, labels: Path, model_path: Path | None, seed: int, out: Path) -> None:
    """Train and test with one seed; write the run's JSON at `out`."""
    run, recipe = context.run, context.run.recipe.validate_
    if seed < 0:
        raise ConfigError(f"--seed {seed}: seeds are counted from 0")
    store = LabelStore(labels)
    pixels, targets, classes, images_digest = load_distilled(
        images_folder, run.ipc, run.dataset, run.upstream["labels"].upstream["images"].id
    )
    store.check(run.upstream["labels"].id, images_digest, classes, recipe.epochs)
    store.verify()
    machine = context.machine()
    test = context.validation(machine)
    if test.classes != classes:
        raise DataError(
            f"{images_folder}: not the classes of {run.dataset} at hand; point config key data at the right one"
        )
    teacher = (
        load_squeezed(model_path, run.upstream["labels"].upstream["model"], machine)
        if store.mode == "online" and model_path
        else None
    )
    with working(context.work(f"seed-{seed}")) as stop:
        path = context.work(f"seed-{seed}") / "state.safetensors"
        key = f"{run.id} {seed} {images_digest} {store.header.get('sha256')}"
        checkpoint = Checkpoint(path, key, context.settings.runtime.checkpoint_seconds)
        distilled = DistilledBatches(Images(pixels, targets, run.data, machine), store.recipe, recipe.batch_size)
        trainer = Trainer(fresh_model(run, machine, ("validate", seed)), recipe, machine, ("validate", seed))
        batches: Batches = LabelledBatches(distilled, store, teacher, machine)
        label = f"validate {run.id} seed {seed}"
        history = fit(trainer, batches, loss_of(context, store), test.evaluate, checkpoint, stop, label)
        write_json(out, _record(context, history, seed, machine))


def _record(context: Context, history: History, seed: int, machine: Machine) -> dict[str, Any]:
    """What the run's JSON says; everything outside `provenance` is the same on the same kind of CPU."""
    run, last, best = context.run, history.last, history.best
    measured = {"top1": last["top1"], "top5": last["top5"], "best_top1": best["top1"], "best_epoch": best["epoch"]}
    described = context.described() | {"model": run.model, "ipc": run.ipc, "seed": seed}
    return described | measured | {"curve": history.curve, "provenance": machine.provenance()}
