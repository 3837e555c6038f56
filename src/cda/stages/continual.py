"""Continual (Tables 14, 15, Figure 7): class-incremental learning on distilled images.

Classes come in equal steps. After each step a fresh model is trained on the first distilled images
of every class seen so far and tested on the real validation images of those classes. Reads shards
and a squeezed model, the teacher; writes one JSON. As in the paper, and as its tables state, the
teacher knows all classes, those of later steps too. Here it is in evaluation mode, in the authors'
code it is not (fidelity 26).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cda.config.recipe import Continual
from cda.data.shards import load_distilled
from cda.engine.batches import batch_at
from cda.engine.checkpoint import Checkpoint
from cda.engine.device import Device
from cda.engine.images import Images, channels_last, to_unit
from cda.engine.lock import work_folder
from cda.engine.signals import Stop
from cda.engine.trainer import Trainer, fit
from cda.errors import ArtifactError, ConfigError, DataError
from cda.experiments.runs import Run
from cda.files import read_json, write_json
from cda.method import dsa
from cda.method.losses import kd_loss
from cda.rng import generator
from cda.stages.context import Context
from cda.stages.models import fresh_model, least_batch, load_squeezed, read_description

Labels = NDArray[np.int64]
Curve = list[dict[str, float]]


def class_order(seed: int, classes: int) -> Labels:
    """Class indices in the order in which they come, by numpy's legacy stream as the authors'.

    >>> class_order(0, 200)[:5].tolist()
    [18, 170, 107, 98, 177]
    """
    return np.random.RandomState(seed).permutation(classes)


def seen_classes(run: Run) -> list[Labels]:
    """The classes seen after every step, in the order in which they came.

    Raises ConfigError if the steps cannot have equal numbers of classes.
    """
    recipe, classes = run.recipe.continual, run.data.classes
    assert recipe is not None
    if classes % recipe.steps:
        able = ", ".join(str(steps) for steps in range(1, classes + 1) if classes % steps == 0)
        raise ConfigError(
            f"recipe of {run.dataset}: continual.steps ({recipe.steps}) must divide its "
            f"{classes} classes; use {able}"
        )
    order = class_order(recipe.order, classes)
    return [order[: classes * step // recipe.steps] for step in range(1, recipe.steps + 1)]


class SeenBatches:
    """The memory of the seen classes, shuffled and augmented, with the teacher's logits."""

    def __init__(
        self,
        memory: Images,
        seen: Labels,
        recipe: Continual,
        teacher: nn.Module,
        purpose: tuple[object, ...],
    ) -> None:
        self.set, self.recipe, self.purpose = memory, recipe, purpose
        self.index = np.flatnonzero(np.isin(memory.labels.cpu().numpy(), seen))
        self.images = len(self.index)
        self.steps = -(-self.images // recipe.batch_size)
        batch, device = min(recipe.batch_size, self.images), memory.device
        self.teacher = device.compiled(teacher, recipe.epochs * self.steps, length=batch)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs [B, 3, R, R], the teacher's logits [B, C]) of every step."""
        size = self.recipe.batch_size
        order = self.index[generator(*self.purpose, epoch, "order").permutation(self.images)]
        resident = self.set.resident(order)
        for step in range(first_step, self.steps):
            batch = batch_at(step, self.steps, size)
            inputs = self.set.normalised(to_unit(self.set.taken(resident[batch], order[batch])))
            if self.recipe.augment == "dsa":
                inputs = dsa.augment(inputs, generator(*self.purpose, epoch, "dsa", step))
            with torch.no_grad(), self.set.device.autocast():
                logits = self.teacher(channels_last(inputs))
            yield inputs, logits


@torch.inference_mode()
def accuracy(model: nn.Module, test: Images, seen: Labels, batch: int = 512) -> dict[str, float]:
    """Accuracy in percent of `model` on the test images of the classes `seen`, not augmented.

    `top1` ranks all classes, as the paper does; `top1_masked` ranks the seen classes alone.
    """
    model.eval()
    classes = torch.from_numpy(seen).to(test.torch_device)
    index = torch.isin(test.labels, classes).nonzero()[:, 0]
    correct = torch.zeros(2, device=test.torch_device, dtype=torch.long)
    for chosen in index.split(batch):
        logits = test.logits(model, chosen)
        guesses = torch.stack([logits.argmax(dim=1), classes[logits[:, classes].argmax(dim=1)]])
        correct += (guesses == test.labels[chosen]).sum(dim=1)
    top1, masked = (correct.double() * 100 / len(index)).tolist()
    return {"top1": top1, "top1_masked": masked}


@dataclass(frozen=True)
class Learner:
    """One seed of the run: the memory, the teacher and the test set of every step."""

    context: Context
    device: Device
    memory: Images
    teacher: nn.Module
    test: Images
    seed: int
    key: str  # differs for work that began with other inputs

    def learn(self, seen: Labels, stop: Stop) -> Curve:
        """Train a fresh model on the memory of the classes `seen`.

        A step that an earlier start finished is read from the work folder.
        """
        run, work = self.context.run, self.context.work(f"seed-{self.seed}")
        recipe = run.recipe.continual
        assert recipe is not None
        finished, key = work / f"seen-{len(seen)}.json", f"{self.key} {seen.tolist()}"
        if finished.is_file():
            record = read_json(finished, "a finished step")
            if record["key"] == key:
                curve: Curve = record["curve"]
                return curve
        purpose = ("continual", self.seed, "seen", len(seen))
        checkpoint = Checkpoint(
            work / "state.safetensors", key, self.context.settings.runtime.checkpoint_seconds
        )
        batches = SeenBatches(self.memory, seen, recipe, self.teacher, purpose)
        least = least_batch(run, batches.images, recipe.batch_size)
        model = fresh_model(run, self.device, purpose)
        trainer = Trainer(model, recipe, self.device, purpose, least=least)
        history = fit(
            trainer,
            batches,
            lambda logits, target: kd_loss(
                logits, target, recipe.temperature, recipe.temperature_squared
            ),
            lambda model: accuracy(model, self.test, seen),
            checkpoint,
            stop,
            f"continual {run.id} seed {self.seed}, {len(seen)} classes",
        )
        trainer.release()
        write_json(finished, {"key": key, "curve": history.curve})
        return history.curve


def run(context: Context, images_folder: Path, model_path: Path, seed: int, out: Path) -> None:
    """Train and test after every step with one seed; write the run's JSON to `out`.

    Raises ConfigError, DataError or ArtifactError if the inputs do not fit together, Interrupted
    after a signal, with the state saved.
    """
    run = context.run
    if seed < 0:
        raise ConfigError(f"--seed {seed}: seeds are counted from 0")
    steps = seen_classes(run)
    source, size = run.upstream["images"].id, run.data.resolution
    pixels, labels, classes, digest = load_distilled(
        images_folder, run.ipc, run.dataset, source, size
    )
    device = context.open_device()
    teacher, sha256 = _load_teacher(model_path, run.upstream["model"], classes, device)
    test = context.validation(device)
    if test.classes != classes:
        raise DataError(
            f"{images_folder}: not the classes of {run.dataset} at hand; point config key "
            "data at the right one"
        )
    memory = Images(pixels, labels, run.data, device)
    learner = Learner(
        context, device, memory, teacher, test, seed, f"{run.id} {seed} {digest} {sha256}"
    )
    with work_folder(context.work(f"seed-{seed}")) as stop:
        curves = {str(len(seen)): learner.learn(seen, stop) for seen in steps}
        write_json(
            out, _record(context, curves, [classes[label] for label in steps[-1]], seed, device)
        )


def _load_teacher(
    path: Path, run: Run, classes: list[str], device: Device
) -> tuple[nn.Module, str]:
    """The teacher, frozen, and its digest.

    Raises ArtifactError unless its classes are the shards', in their order.
    """
    teacher = load_squeezed(path, run, device)
    described = read_description(path, run)
    if described.get("classes") != classes:
        raise ArtifactError(
            f"{path}: its classes, or their order, are not those of the distilled images; "
            "squeeze it again or pull it"
        )
    return teacher, str(described["sha256"])


def _record(
    context: Context, curves: dict[str, Curve], order: list[str], seed: int, device: Device
) -> dict[str, Any]:
    """The run's JSON; all but `provenance` is the same on the same kind of CPU."""
    run = context.run
    record = {"model": run.model, "ipc": run.ipc, "seed": seed, "class_order": order}
    for metric in ("top1", "top1_masked"):
        record[metric] = {seen: curve[-1][metric] for seen, curve in curves.items()}
    return context.description() | record | {"curve": curves, "provenance": device.provenance()}
