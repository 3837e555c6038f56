"""Relabel: the relabel model's logits for every distilled image under every epoch's augmentation (FKD).

Reads the first shards of a recover run and a squeezed model; writes a label store (`header.json`, `logits.npy`). Hard
and online labels leave a header only: it is the augmentations' rule all the same.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cda.checkpoint import Stop, working
from cda.data.arrays import room, written
from cda.data.labels import FORMAT, logits_file
from cda.data.loaders import DistilledBatches, Images
from cda.data.shards import load_distilled
from cda.files import file_digest, publish, read_json, write_json
from cda.progress import Progress, say
from cda.runs import label_epochs, label_gigabytes, label_mode
from cda.runtime import Machine
from cda.stages.context import Context
from cda.stages.networks import load_squeezed

BATCH = 256  # images the relabel model sees at a time; changes nothing but speed and rounding


def run(context: Context, images_folder: Path, model_path: Path | None, out: Path) -> None:
    """Write the run's label store at `out`."""
    run, data = context.run, context.run.data
    machine = context.machine()
    mode = label_mode(run, context.settings.labels.max_gb)
    if mode != run.recipe.relabel.labels:
        size, limit = label_gigabytes(run), context.settings.labels.max_gb
        say(f"relabel {run.id}: {size:.0f} GB exceed labels.max_gb = {limit:.0f}; the model will run while validating")
    pixels, labels, classes, images_digest = load_distilled(
        images_folder, run.ipc, data.name, run.upstream["images"].id
    )
    with working(context.work("labels")) as stop:
        out_aside = context.work("labels") / "out"
        told: dict[str, Any] = {}
        if mode == "fp16":
            assert model_path is not None
            described = read_json(model_path.with_name("squeeze.json"), "the squeezed model's description")
            key = f"{images_digest} {described.get('sha256')}"
            batches = DistilledBatches(Images(pixels, labels, data, machine), run.recipe.relabel, BATCH)
            told = _write_logits(context, machine, batches, model_path, out_aside, stop, key)
        _write_header(
            context, machine, out_aside, {"labels": mode, "classes": classes, "images_digest": images_digest, **told}
        )
        publish(out_aside, out)


def _write_header(context: Context, machine: Machine, folder: Path, told: dict[str, Any]) -> None:
    run = context.run
    header = {"format": FORMAT, **context.described(), "ipc": run.ipc, "epochs": label_epochs(run)}
    header["recipe"] = run.recipe.relabel.model_dump(mode="json")
    write_json(folder / "header.json", header | told | {"provenance": machine.provenance()})


@torch.inference_mode()
def _write_logits(
    context: Context, machine: Machine, batches: DistilledBatches, model_path: Path, folder: Path, stop: Stop, key: str
) -> dict[str, Any]:
    """Stream the logits of every epoch to disk; epochs that an earlier start finished are kept."""
    run = context.run
    model = load_squeezed(model_path, run.upstream["model"], machine)
    shape = (label_epochs(run), batches.images, run.data.classes)
    path, mark = logits_file(folder), folder.with_name("epochs.json")
    folder.mkdir(parents=True, exist_ok=True)
    done = written(mark, path, key)
    store = room(path, shape, np.float16, fresh=not done, mend="make room or lower labels.max_gb")
    progress, saved = Progress(shape[0], f"relabel {run.id}", "epochs", done), time.monotonic()
    for epoch in range(done, shape[0]):
        plan = batches.plan(epoch)
        for start in range(0, batches.images, BATCH):
            chosen = plan.order[start : start + BATCH]
            with machine.autocast():
                logits = model(batches.inputs(plan, chosen).contiguous(memory_format=torch.channels_last))
            store[epoch, chosen] = logits.half().cpu().numpy()
        if stop.signal or time.monotonic() - saved >= context.settings.runtime.checkpoint_seconds:
            store.flush()
            write_json(mark, {"done": epoch + 1, "key": key})
            saved = time.monotonic()
            stop.check()
        progress.update()
    store.flush()
    return {"shape": list(shape), "sha256": file_digest(path)}
