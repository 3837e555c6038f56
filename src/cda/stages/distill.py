"""Distill: images of every class by matching (DC, DSA, DM), for one IPC.

Reads the real training images; writes a part folder with a shard for each IPC index, as recover
does, whose images are float32 (`cda.data.shards`). Their labels are the classes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from cda.data.shards import shard_name, write_shard
from cda.engine.checkpoint import Checkpoint
from cda.engine.device import Device
from cda.engine.distillation import Distillation, RealImages, start_images
from cda.engine.images import place_images
from cda.engine.lock import work_folder
from cda.engine.signals import Stop
from cda.errors import ConfigError
from cda.files import file_digest, publish, write_json
from cda.method import networks
from cda.progress import Progress, log
from cda.stages.context import Context
from cda.stages.recover import random_choice

TRACED = 100  # distances in a shard's description


def run(context: Context, out: Path) -> None:
    """Make the run's shards at `out`.

    Raises ConfigError for a network without embeddings, DataError for missing images, Interrupted
    after a signal, with the state saved.
    """
    device, work = context.open_device(), context.work("part-0")
    build = _builder(context, device)
    with work_folder(work) as stop:
        distillation = _begin(context, device, build)
        checkpoint = Checkpoint(
            work / "state.safetensors", context.run.id, context.settings.runtime.checkpoint_seconds
        )
        distil(distillation, checkpoint, stop, f"distill {context.run.id}")
        _write(context, device, distillation, work)
        publish(work / "out", out)


def _builder(context: Context, device: Device) -> Callable[[], nn.Module]:
    run = context.run

    def build() -> nn.Module:
        own = networks.build(
            run.model, run.data.classes, run.data.resolution, run.recipe.architecture
        )
        return own.to(device.torch_device)

    if not hasattr(build(), "embed"):
        raise ConfigError(
            f"recovery model {run.model!r} cannot distil by matching; use a ConvNet: convnet3 at "
            "32 pixels, convnet4 at 64"
        )
    return build


def _begin(context: Context, device: Device, build: Callable[[], nn.Module]) -> Distillation:
    """The images to begin with, beside all real ones."""
    run, recipe = context.run, context.run.recipe.distill
    assert recipe is not None
    if run.data.stream:
        raise ConfigError(
            f"data set {run.dataset} is streamed: matching needs all of its training images in "
            "memory; drop stream, or use another method"
        )
    source, classes = context.real("train"), run.data.classes
    labels = np.asarray(source.labels)
    chosen = [random_choice(labels, classes, shard, recipe.seed) for shard in range(run.ipc)]
    real = np.stack([source.images[index] for index in chosen], axis=1)  # [classes, ipc, …]
    start = start_images(
        recipe, classes, run.ipc, run.data.resolution, real.reshape(-1, *real.shape[2:])
    )
    images = place_images(source, run.data, device)
    return Distillation(RealImages.of(images, classes), start, recipe, build)


def distil(distillation: Distillation, checkpoint: Checkpoint, stop: Stop, label: str) -> None:
    """Take the images to their last iteration, from the checkpoint if there is one."""
    iterations = distillation.recipe.iterations
    if (state := checkpoint.load()) is not None:
        distillation.restore(state)
        log(f"{label}: going on from iteration {distillation.done} of {iterations}")
    progress = Progress(iterations, label, "iterations", distillation.done)
    every = max(1, iterations // TRACED)
    try:
        while distillation.done < iterations:
            distance = distillation.step()
            if distillation.done % every == 0 or distillation.done == iterations:
                distillation.trace.append({"iteration": distillation.done, "distance": distance})
            if stop.signal or checkpoint.due():
                checkpoint.save(distillation.state())
                stop.check()
            progress.note = f"distance {distance:.4g}"
            progress.update()
    finally:
        progress.close()


def _write(context: Context, device: Device, distillation: Distillation, work: Path) -> None:
    """The shards, each with its description beside it."""
    run, classes = context.run, context.class_names()
    shutil.rmtree(work / "out", ignore_errors=True)
    for ipc, images in enumerate(distillation.unit_images()):
        target = work / "out" / shard_name(ipc)
        write_shard(target, images, classes, ipc, run.id, run.dataset)
        described = context.description() | {"ipc": ipc, "trace": distillation.trace}
        described |= {"sha256": file_digest(target), "provenance": device.provenance()}
        write_json(target.with_suffix(".json"), described)
