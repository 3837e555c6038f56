"""Validate (post-train): train a fresh model on distilled images, test it on real ones.

The test images are the real validation set. Reads shards, a label store and, for online labels,
the relabel model; writes a JSON a seed, the only file that tables read. Several seeds in one
process share what they read and compile, and train one after another.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cda.config.recipe import Validate
from cda.data.label_store import LabelStore
from cda.data.shards import load_distilled, shard_paths
from cda.engine.batches import DistilledBatches
from cda.engine.checkpoint import Checkpoint
from cda.engine.device import Device
from cda.engine.images import Images
from cda.engine.lock import work_folder
from cda.engine.signals import Stop
from cda.engine.soft_labels import LabelledBatches
from cda.engine.trainer import History, Loss, Trainer, fit
from cda.errors import AlreadyDone, ArtifactError, ConfigError, DataError
from cda.files import is_complete_json, read_json, write_json
from cda.method.losses import kd_loss, mixed_ce
from cda.progress import log
from cda.stages.context import Context
from cda.stages.models import fresh_model, least_batch, load_squeezed, require_classes


def loss_of(recipe: Validate, store: LabelStore) -> Loss:
    """The recipe's loss for the store's kind of labels.

    The loss decodes rows, so that a compiled step includes decoding.
    """
    temperature, squared, smoothing = (
        recipe.temperature,
        recipe.temperature_squared,
        recipe.label_smoothing,
    )
    codec = store.codec

    def stored(logits: Tensor, rows: Any) -> Tensor:
        return kd_loss(logits, codec.decode(rows), temperature, squared, smoothing)

    def online(logits: Tensor, teacher: Any) -> Tensor:
        return kd_loss(logits, teacher, temperature, squared, smoothing)

    def hard(logits: Tensor, target: Any) -> Tensor:
        own, partner, share = target
        return mixed_ce(logits, own, partner, share, smoothing)

    return {"stored": stored, "online": online, "hard": hard}[store.mode]


@dataclass
class PostTraining:
    """What the seeds of a run share: images, labels, test set, and what their steps compile."""

    context: Context
    recipe: Validate
    device: Device
    batches: LabelledBatches
    loss: Loss
    test: Images
    key: str  # of the images and labels
    trainer: Trainer | None = None

    def train(self, seed: int, stop: Stop) -> History:
        """Train a fresh model with `seed`, from its checkpoint if there is one; raises as `fit`."""
        run, purpose = self.context.run, ("validate", seed)
        model = fresh_model(run, self.device, purpose)
        if self.trainer is None:
            recipe = self.recipe
            parts = recipe.batch_parts
            least = least_batch(run, self.batches.images, recipe.batch_size, parts)
            self.trainer = Trainer(model, recipe, self.device, purpose, parts, least)
        else:
            self.trainer.restart(model, purpose)
        path = self.context.work(f"seed-{seed}") / "state.safetensors"
        seconds = self.context.settings.runtime.checkpoint_seconds
        checkpoint = Checkpoint(path, f"{run.id} {seed} {self.key}", seconds)
        label = f"validate {run.id} seed {seed}"
        return fit(
            self.trainer, self.batches, self.loss, self.test.evaluate, checkpoint, stop, label
        )


def run(
    context: Context,
    images_folder: Path,
    labels: Path,
    model_path: Path | None,
    outs: Mapping[int, Path],
) -> None:
    """Train and test with every seed of `outs`; write each one's JSON there when it is done.

    Of several seeds, those whose JSON exists are skipped. A seed that another job works on, or that
    diverges, does not cost the others: its ArtifactError is raised at the end. Raises Interrupted
    after a signal, with the state saved.
    """
    if min(outs) < 0:
        raise ConfigError(f"--seed {min(outs)}: seeds are counted from 0")
    training = _prepare(context, images_folder, labels, model_path)
    errors: list[str] = []
    stop = Stop()
    for seed, out in outs.items():
        if len(outs) > 1 and is_complete_json(out):
            continue
        stop.check()  # a signal that came when the seed before was nearly done
        try:
            with work_folder(context.work(f"seed-{seed}")) as stop:
                history = training.train(seed, stop)
                write_json(out, _record(training, history, seed))
        except AlreadyDone as message:
            log(f"cda: {message}")
        except ArtifactError as error:
            errors.append(str(error))
        training.device.started = time.monotonic()  # of the next seed
    if errors:
        raise ArtifactError("; ".join(errors))


def _prepare(
    context: Context, images_folder: Path, labels: Path, model_path: Path | None
) -> PostTraining:
    """Read and check what all seeds share."""
    run, recipe = context.run, _recipe_of(context, images_folder)
    store = LabelStore(labels)
    pixels, targets, classes, images_digest = load_distilled(
        images_folder,
        run.ipc,
        run.dataset,
        run.upstream["labels"].upstream["images"].id,
        run.data.resolution,
    )
    store.check(run.upstream["labels"].id, images_digest, classes, recipe.epochs)
    store.verify()
    device = context.open_device()
    test = context.validation(device)
    if test.classes != classes:
        raise DataError(
            f"{images_folder}: not the classes of {run.dataset} at hand; point config key "
            "data at the right one"
        )
    teacher = None
    if store.mode == "online" and model_path:
        labelled_by = run.upstream["labels"].upstream["model"]
        require_classes(model_path, labelled_by, classes)
        teacher = load_squeezed(model_path, labelled_by, device)
    images = Images(pixels, targets, run.data, device)
    distilled = DistilledBatches(images, store.recipe, recipe.batch_size, recipe.epochs)
    batches = LabelledBatches(distilled, store, teacher, device, recipe.epochs)
    key = f"{images_digest} {store.header.get('sha256')}"
    return PostTraining(context, recipe, device, batches, loss_of(recipe, store), test, key)


def _recipe_of(context: Context, images_folder: Path) -> Validate:
    """The run's values, with the learning rate that was learned with the images if they say so.

    Raises ArtifactError if the images have none.
    """
    recipe = context.run.recipe.validate_
    if not recipe.learned_lr:
        return recipe
    described = shard_paths(images_folder, 1)[0].with_suffix(".json")
    learned = read_json(described, "the images' description").get("step_size")
    if not isinstance(learned, float) or not 0 < learned < math.inf:
        raise ArtifactError(
            f"{described}: has no step_size, so validate.learned_lr has none to take; use it for "
            "images of trajectory matching (mtt, tesla) alone"
        )
    return recipe.model_copy(update={"lr": learned})


def _record(training: PostTraining, history: History, seed: int) -> dict[str, Any]:
    """The run's JSON; all but `provenance` is the same on the same kind of CPU."""
    context, device = training.context, training.device
    run, last, best = context.run, history.last, history.best
    measured = {
        "top1": last["top1"],
        "top5": last["top5"],
        "best_top1": best["top1"],
        "best_epoch": best["epoch"],
    }
    described = context.description() | {"model": run.model, "ipc": run.ipc, "seed": seed}
    described |= {"lr": training.recipe.lr} if training.recipe.learned_lr else {}
    return described | measured | {"curve": history.curve, "provenance": device.provenance()}
