"""Distill: images of every class by matching (DC, DSA, DM, MTT, TESLA), for one IPC.

Reads the real training images, or experts for trajectories; writes a part folder with a shard for
each IPC index, as recover does, whose images are float32 (`cda.data.shards`). Their labels are the
classes. A learned step size is in every shard's JSON.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from cda.config.recipe import Distill
from cda.data.shards import shard_name, write_shard
from cda.engine.checkpoint import Checkpoint
from cda.engine.device import Device
from cda.engine.distillation import Distillation, RealImages, start_images
from cda.engine.experts import Experts
from cda.engine.images import Images, place_images
from cda.engine.lock import work_folder
from cda.engine.memory import enough_memory
from cda.engine.signals import Stop
from cda.engine.trajectory import TrajectoryMatching, require_memory, too_large
from cda.errors import ConfigError
from cda.files import file_digest, publish, write_json
from cda.method import networks
from cda.progress import Progress, log
from cda.stages.context import Context
from cda.stages.models import require_convnet
from cda.stages.recover import random_choice

TRACED = 100  # distances in a shard's description


def run(context: Context, experts: Path | None, out: Path) -> None:
    """Make the run's shards at `out`; trajectories are of the run's `experts`.

    Raises ConfigError for a network without embeddings or too little memory, DataError for missing
    images, ArtifactError for damaged experts, Interrupted after a signal, with the state saved.
    """
    run, device, work = context.run, context.open_device(), context.work("part-0")
    recipe = run.recipe.distill
    assert recipe is not None
    build = _builder(context, device)
    distillation: Distillation
    with work_folder(work) as stop:
        if recipe.match == "trajectory":
            assert experts is not None
            distillation, key = _follow(context, recipe, device, build, experts)
        else:
            distillation, key = _begin(context, recipe, device, build), run.id
        checkpoint = Checkpoint(
            work / "state.safetensors", key, context.settings.runtime.checkpoint_seconds
        )
        with enough_memory(lambda: too_large(recipe, len(distillation.images))):
            distil(distillation, checkpoint, stop, f"distill {run.id}")
        _write(context, device, distillation, work)
        publish(work / "out", out)


def _builder(context: Context, device: Device) -> Callable[[], nn.Module]:
    run = context.run

    def build() -> nn.Module:
        own = networks.build(
            run.model, run.data.classes, run.data.resolution, run.recipe.architecture
        )
        return own.to(device.torch_device)

    require_convnet(build(), run.model)
    return build


def _first_images(
    context: Context, recipe: Distill, labels: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Index [classes, ipc] of the real images to begin with: those of the random control."""
    run = context.run
    shards = range(run.ipc)
    return np.stack(
        [random_choice(labels, run.data.classes, shard, recipe.seed) for shard in shards], axis=1
    )


def _begin(
    context: Context, recipe: Distill, device: Device, build: Callable[[], nn.Module]
) -> Distillation:
    """The images to begin with, beside all real ones."""
    run = context.run
    if run.data.stream:
        raise ConfigError(
            f"data set {run.dataset} is streamed: matching needs all of its training images in "
            "memory; drop stream, or use another method"
        )
    source, classes = context.real("train"), run.data.classes
    chosen = _first_images(context, recipe, np.asarray(source.labels)).reshape(-1)
    start = start_images(recipe, classes, run.ipc, run.data.resolution, source.images[chosen])
    images = place_images(source, run.data, device)
    return Distillation(RealImages.of(images, classes), start, recipe, build)


def _follow(
    context: Context,
    recipe: Distill,
    device: Device,
    build: Callable[[], nn.Module],
    folder: Path,
) -> tuple[TrajectoryMatching, str]:
    """The images to begin with and the experts to follow, and the key of their checkpoints."""
    run, data, expert = context.run, context.run.data, context.run.recipe.expert
    assert expert is not None
    classes, size, width = data.classes, data.resolution, run.recipe.architecture.width
    require_memory(recipe, run.ipc * classes, size, width, device.torch_device)
    experts = Experts(folder, run.upstream["experts"].id, expert.count)
    weights = sum(parameter.numel() for parameter in build().parameters())
    digest = experts.verify(expert.epochs, weights)
    chosen = _first_images(context, recipe, context.real_labels("train")).reshape(-1)
    pixels = np.stack(list(context.real_images("train", chosen)))
    images = Images(pixels, np.arange(classes).repeat(run.ipc), data, device)
    start = start_images(recipe, classes, run.ipc, size, pixels)
    real = RealImages.of(images, classes)
    return TrajectoryMatching(real, start, recipe, build, experts), f"{run.id} {digest}"


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
                row = {"iteration": distillation.done, "distance": distance}
                distillation.trace.append(row | distillation.learned())
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
        described |= distillation.learned()
        described |= {"sha256": file_digest(target), "provenance": device.provenance()}
        write_json(target.with_suffix(".json"), described)
