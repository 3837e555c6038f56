"""Relabel: the relabel model's logits for distilled images in every epoch's augmentation (FKD).

Reads the first shards of a recover run and a squeezed model; writes a label store: `header.json`,
and `logits.npy` in the recipe's codec. For hard and online labels the store is the header alone,
which is the rule of the augmentations.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from cda.config.recipe import Relabel
from cda.data.label_codec import Codec
from cda.data.label_store import FORMAT, LabelWriter
from cda.data.shards import load_distilled
from cda.engine.batches import DistilledBatches
from cda.engine.device import Device
from cda.engine.images import Images
from cda.engine.lock import work_folder
from cda.engine.signals import Stop
from cda.experiments.runs import Run, label_epochs, label_gigabytes, label_mode, served_epochs
from cda.files import publish, write_json
from cda.progress import Progress, log
from cda.stages.context import Context
from cda.stages.models import accelerate, load_squeezed, read_description, require_classes

BATCH = 256  # images a forward pass; changes speed and rounding alone


def run(context: Context, images_folder: Path, model_path: Path | None, out: Path) -> None:
    """Write the run's label store at `out`."""
    run, data = context.run, context.run.data
    device = context.open_device()
    mode = label_mode(run, context.settings.labels.max_gb)
    if mode != run.recipe.relabel.labels:
        size, limit = label_gigabytes(run), context.settings.labels.max_gb
        instead = (
            "the model will run while validating; relabel.bits, top_k and reuse make a "
            "store smaller"
        )
        log(f"relabel {run.id}: {size:.3g} GB exceed labels.max_gb = {limit:.3g}; {instead}")
    pixels, labels, classes, images_digest = load_distilled(
        images_folder, run.ipc, data.name, run.upstream["images"].id, data.resolution
    )
    with work_folder(context.work("labels")) as stop:
        folder = context.work("labels") / "out"
        record: dict[str, Any] = {"labels": mode, "classes": classes}
        record["images_digest"] = images_digest
        if mode == "stored":
            assert model_path is not None
            require_classes(model_path, run.upstream["model"], classes)
            images = Images(pixels, labels, data, device)
            batches = DistilledBatches(images, recipe_of(run), BATCH, label_epochs(run))
            record |= _write_logits(
                context, device, batches, model_path, folder, stop, images_digest
            )
        _write_header(context, device, folder, record)
        publish(folder, out)


def recipe_of(run: Run) -> Relabel:
    """A relabel run's values, with the number of training epochs that its labels serve."""
    return run.recipe.relabel.model_copy(update={"epochs": served_epochs(run)})


def _write_header(context: Context, device: Device, folder: Path, record: dict[str, Any]) -> None:
    run = context.run
    header = {
        "format": FORMAT,
        **context.description(),
        "ipc": run.ipc,
        "epochs": served_epochs(run),
    }
    header |= {
        "recipe": recipe_of(run).model_dump(mode="json"),
        "temperature": run.recipe.validate_.temperature,
    }
    write_json(folder / "header.json", header | record | {"provenance": device.provenance()})


@torch.inference_mode()
def _write_logits(
    context: Context,
    device: Device,
    batches: DistilledBatches,
    model_path: Path,
    folder: Path,
    stop: Stop,
    images_digest: str,
) -> dict[str, Any]:
    """Stream the logits of every label epoch to disk, but for those that an earlier start wrote."""
    run, recipe = context.run, context.run.recipe
    described = read_description(model_path, run.upstream["model"])
    key = f"{images_digest} {described.get('sha256')}"
    epochs = label_epochs(run)
    model = load_squeezed(model_path, run.upstream["model"], device)
    logits_of = accelerate(model, device, epochs * batches.steps, BATCH)
    codec = Codec(
        run.data.classes, recipe.relabel.bits, recipe.relabel.top_k, recipe.validate_.temperature
    )
    writer = LabelWriter(folder, codec, epochs, batches.images, key)
    if writer.done:
        log(f"relabel {run.id}: going on from epoch {writer.done} of {epochs}")
    progress, saved = Progress(epochs, f"relabel {run.id}", "epochs", writer.done), time.monotonic()
    for epoch in range(writer.done, epochs):
        plan = batches.plan(epoch)
        for start in range(0, batches.images, BATCH):
            chosen = plan.order[start : start + BATCH]
            with device.autocast():
                logits = logits_of(batches.inputs(plan, chosen))
            writer.write(epoch, chosen, logits)
        if stop.signal or time.monotonic() - saved >= context.settings.runtime.checkpoint_seconds:
            writer.mark(epoch + 1)
            saved = time.monotonic()
            stop.check()
        progress.update()
    return writer.close()
