"""Squeeze: train the recovery model on the real data, or take published weights (paper Sec. 2.2).

Reads the real data set; writes `model.safetensors` and, beside it, `squeeze.json` (accuracy,
network, classes, normalisation). Weights that are trained here are stored in half precision, and
the accuracy is that of the stored ones; published weights are stored as they are, and tested on
validation images: `top1` is measured, `published_top1` is the publisher's. Under torchrun the
processes share every batch, and rank 0 writes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cda.data import sources
from cda.engine.batches import SqueezeBatches
from cda.engine.checkpoint import Checkpoint, load_state, write_tensors
from cda.engine.device import Device, world_size
from cda.engine.images import Images, place_images
from cda.engine.lock import work_folder
from cda.engine.signals import Stop
from cda.engine.trainer import Batches, Loss, Trainer, fit
from cda.errors import ConfigError, DataError
from cda.experiments.paths import data_root
from cda.files import atomic_write, file_digest, write_json
from cda.method import networks
from cda.method.bn_matching import bn_layers
from cda.method.losses import precise
from cda.progress import log
from cda.stages.context import Context
from cda.stages.models import fresh_model, least_batch

TESTED_IMAGES = 2000  # of published weights: minutes on a CPU, a standard error of a point
TESTED_BATCH = 250
GAP = 3.0  # points of top-1 between the measured and the stated accuracy
STATED_CLASSES = 1000  # of the accuracy that publishers state


def smoothed_ce(smoothing: float) -> Loss:
    """Cross-entropy with label smoothing, in float32 or better."""

    def loss(logits: Tensor, target: Any) -> Tensor:
        return F.cross_entropy(precise(logits), target, label_smoothing=smoothing)

    return loss


def round_to_half(model: nn.Module) -> None:
    """Round weights of convolutions and linear layers to half precision, in place."""
    with torch.no_grad():
        for weight in _matrices(model):
            weight.copy_(weight.half())


def _matrices(model: nn.Module) -> Iterator[nn.Parameter]:
    """The weights that are stored in half precision.

    Biases and BN layers are small, and their values span many magnitudes: they stay in float32.
    """
    return (parameter for parameter in model.parameters() if parameter.ndim > 1)


def write_model(
    context: Context, model: nn.Module, classes: list[str], out: Path, record: dict[str, Any]
) -> None:
    """Write the weights and then their description, `record` included.

    Weights that half precision represents exactly are stored so.
    """
    halved = {
        id(weight)
        for weight in _matrices(model)
        if torch.equal(weight.half().to(weight.dtype), weight)
    }
    state = model.state_dict(keep_vars=True)
    tensors = {
        name: (t.half() if id(t) in halved else t).detach().cpu().contiguous()
        for name, t in state.items()
    }
    with atomic_write(out) as temporary:
        write_tensors(tensors, temporary)
    data = context.run.data
    described = context.description() | {"model": context.run.model, "classes": classes}
    described |= {"mean": data.mean, "std": data.std, "sha256": file_digest(out)}
    write_json(out.with_name("squeeze.json"), described | record)


def run(context: Context, out: Path, recovered: bool = False) -> None:
    """Train the run's model and write it to `out` (model.safetensors), or its published weights.

    Raises ConfigError before any work if images are to be `recovered` from the model and it has no
    BN layers, or if the recipe does not suit the data set.
    """
    recipe = context.run.recipe.squeeze
    if recovered:
        bn_layers(_network(context))
    if recipe.weights:
        if world_size() > 1:
            raise ConfigError(
                "squeeze.weights: published weights are fetched by one process; start it "
                "without torchrun"
            )
        _published(context, recipe.weights, out)
        return
    if recipe.randaugment and not context.run.data.stream:
        raise ConfigError(
            f"squeeze.randaugment: {recipe.randaugment}, but data set {context.run.dataset} is "
            "not streamed; set it to 0, or stream: true in the data set's file"
        )
    device = context.open_device()
    with work_folder(context.work("model"), device.leads) as stop:
        _train(context, device, stop, out)
        device.leave()


def _network(context: Context) -> nn.Module:
    run = context.run
    return networks.build(run.model, run.data.classes, run.data.resolution, run.recipe.architecture)


def _train(context: Context, device: Device, stop: Stop, out: Path) -> None:
    """Train to the last epoch, from the checkpoint if there is one; rank 0 writes the model."""
    run, recipe = context.run, context.run.recipe.squeeze
    test, batches = context.validation(device), _batches(context, device)
    if test.classes != context.class_names():
        raise DataError(
            f"{run.dataset}: not the classes of the decoded validation images; decode the "
            "data set at hand"
        )
    path, seconds = context.work("model"), context.settings.runtime.checkpoint_seconds
    checkpoint = Checkpoint(path / "state.safetensors", run.id, seconds, device.leads)
    model = fresh_model(run, device, ("squeeze", recipe.seed))
    if recipe.init and device.leads and checkpoint.load() is None:  # others get rank 0's weights
        from cda.engine.pretrained import start_from

        start_from(model, recipe.init, run.model)
    least = least_batch(run, batches.images, recipe.batch_size)
    trainer = Trainer(model, recipe, device, ("squeeze", recipe.seed), least=least)
    loss = smoothed_ce(recipe.label_smoothing)
    history = fit(trainer, batches, loss, test.evaluate, checkpoint, stop, f"squeeze {run.id}")
    round_to_half(trainer.model)
    record: dict[str, Any] = dict(test.evaluate(trainer.model))
    record["best_top1"] = max(history.best["top1"], record["top1"])  # of the rounded weights too
    if device.leads:
        record |= {"curve": history.curve, "provenance": device.provenance()}
        write_model(context, trainer.model, test.classes, out, record)


def _batches(context: Context, device: Device) -> Batches:
    """The training images: on the device, or decoded batch by batch."""
    data, recipe = context.run.data, context.run.recipe.squeeze
    if not data.stream:
        return SqueezeBatches(place_images(context.real("train"), data, device), recipe)
    from cda.engine.streaming import StreamedBatches

    return StreamedBatches(
        sources.files(data, data_root(context.settings, data.name)), recipe, device
    )


def _published(context: Context, weights: str, out: Path) -> None:
    """Write published weights as the run's model, with their stated and their measured accuracy."""
    from cda.engine.pretrained import state_of

    run, data = context.run, context.run.data
    names = data.published_names()
    wanted = {name: names.get(name, "") for name in context.class_names()}
    has_images = data.layout != "no_images"
    state, stated, classes = state_of(weights, run.model, wanted, cut=has_images)
    model = networks.build(run.model, len(classes), data.resolution, run.recipe.architecture)
    try:
        load_state(model, state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ConfigError(
            f"squeeze.weights: {weights} does not fit {run.model} with {len(classes)} classes "
            f"({reason})"
        ) from None
    device = context.open_device()
    record = {"weights": weights, "published_top1": stated}
    record |= _tested(context, device, model, stated) if has_images else {"top1": None}
    write_model(context, model, classes, out, record | {"provenance": device.provenance()})


def _tested(
    context: Context, device: Device, model: nn.Module, stated: float | None
) -> dict[str, Any]:
    """Top-1 and top-5 of published weights on validation images, at most `TESTED_IMAGES` of them.

    They are evenly spaced, hence of all classes. Logs a warning if they contradict what the
    publisher `stated`: then classes or pixels differ from what the network was trained with.
    """
    data = context.run.data
    try:
        labels = context.real_labels("val")
    except DataError as problem:
        log(f"WARNING: the published weights are not tested: {problem}")
        return {"top1": None}
    chosen = np.unique(np.linspace(0, len(labels) - 1, TESTED_IMAGES).astype(np.int64))
    images, placed = context.real_images("val", chosen), device.place(model)
    found = {"top1": 0.0, "top5": 0.0}
    for part in np.array_split(chosen, -(-len(chosen) // TESTED_BATCH)):
        pixels = np.stack(list(itertools.islice(images, len(part))))
        accuracy = Images(pixels, labels[part], data, device).evaluate(placed)
        for key, value in accuracy.items():
            found[key] += value * len(part) / len(chosen)
    what = f"{context.run.recipe.squeeze.weights} on {len(chosen)} validation images of {data.name}"
    log(f"{what}: {found['top1']:.1f} % top-1; its publisher states {stated or 'nothing'}")
    if problem_found := contradiction(found["top1"], stated, len(chosen), data.classes):
        log(
            f"WARNING: {what}: {problem_found}; compare the order of the classes (class_map), "
            f"mean, std and resolution in config/datasets/{data.name}.yaml with its publisher's"
        )
    return {**found, "tested_images": len(chosen)}


def contradiction(top1: float, stated: float | None, images: int, classes: int) -> str:
    """How a measured top-1 accuracy in percent contradicts the `stated` one; empty if it does not.

    A few points, and twice the standard error of so few `images`, are no contradiction. Publishers
    state the accuracy on ImageNet-1K: fewer classes are easier, so that there only less counts.
    Without a statement, hardly more than chance is a contradiction.

    >>> contradiction(68.0, 69.8, 2000, 1000), contradiction(0.1, 69.8, 2000, 1000)
    ('', 'top-1 is 0.1 %, its publisher states 69.8 %')
    >>> contradiction(11.0, None, 2000, 10), contradiction(80.0, 69.8, 2000, 100)
    ('top-1 is 11.0 %, little more than the 10.0 % of chance', '')
    """
    if stated is None:
        chance = 100 / classes
        text = f"top-1 is {top1:.1f} %, little more than the {chance:.1f} % of chance"
        return text if top1 < 2 * chance and classes > 2 else ""
    room = GAP + 2 * math.sqrt(stated * (100 - stated) / images)
    if stated - room <= top1 and (top1 <= stated + room or classes < STATED_CLASSES):
        return ""
    return f"top-1 is {top1:.1f} %, its publisher states {stated:.1f} %"
