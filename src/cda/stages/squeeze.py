"""Squeeze: train the recovery model on the real data, or take published weights (paper Sec. 2.2).

Reads the real data set; writes `model.safetensors` and, beside it, `squeeze.json` (accuracy,
network, classes, normalisation). Weights that are trained here are stored in half precision, and
the accuracy is that of the stored ones; published weights are stored as they are. Under torchrun
the processes share every batch, and rank 0 writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cda.data import sources
from cda.engine.batches import SqueezeBatches
from cda.engine.checkpoint import Checkpoint, load_state, write_tensors
from cda.engine.device import Device, world_size
from cda.engine.images import place_images
from cda.engine.lock import work_folder
from cda.engine.signals import Stop
from cda.engine.trainer import Batches, Loss, Trainer, fit
from cda.errors import ConfigError, DataError
from cda.experiments.paths import data_root
from cda.files import atomic_write, file_digest, write_json
from cda.method import networks
from cda.method.bn_matching import bn_layers
from cda.method.losses import precise
from cda.stages.context import Context
from cda.stages.models import fresh_model, least_batch


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
    record["best_top1"] = history.best["top1"]
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
    """Write published weights, and their name and stated accuracy, as the run's model."""
    from cda.engine.pretrained import state_of

    run = context.run
    state, stated, classes = state_of(weights, run.model, context.class_names())
    model = networks.build(run.model, len(classes), run.data.resolution, run.recipe.architecture)
    try:
        load_state(model, state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ConfigError(
            f"squeeze.weights: {weights} does not fit {run.model} with {len(classes)} classes "
            f"({reason})"
        ) from None
    record = {"top1": stated, "weights": weights, "provenance": context.open_device().provenance()}
    write_model(context, model, classes, out, record)
