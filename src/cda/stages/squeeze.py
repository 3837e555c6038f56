"""Squeeze: train the recovery model on the real data, or take published weights (paper Section 2.2).

Reads the real data set; writes `model.safetensors` and, beside it, `squeeze.json` (accuracy, network, classes,
normalisation).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cda import models
from cda.checkpoint import Checkpoint, working, write_tensors
from cda.data.loaders import SqueezeBatches, images_of
from cda.errors import ConfigError
from cda.files import file_digest, whole, write_json
from cda.stages.context import Context
from cda.stages.networks import fresh_model
from cda.training import Loss, Trainer, fit


def smoothed_ce(smoothing: float) -> Loss:
    """Cross-entropy with label smoothing, in float32."""

    def loss(logits: Tensor, target: Any) -> Tensor:
        return F.cross_entropy(logits.float(), target, label_smoothing=smoothing)

    return loss


def write_model(context: Context, model: nn.Module, classes: list[str], out: Path, told: dict[str, Any]) -> None:
    """Write the weights and their description, the description last."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with whole(out) as aside:
        write_tensors(tensors, aside)
    data = context.run.data
    described = context.described() | {
        "model": context.run.model,
        "classes": classes,
        "mean": data.mean,
        "std": data.std,
    }
    write_json(out.with_name("squeeze.json"), described | {"sha256": file_digest(out)} | told)


def run(context: Context, out: Path) -> None:
    """Train the run's model to `out` (model.safetensors), or fetch its published weights."""
    recipe = context.run.recipe.squeeze
    if recipe.weights:
        _published(context, recipe.weights, out)
        return
    machine = context.machine()
    train, val = context.real("train"), context.real("val")
    with working(context.work("model")) as stop:
        checkpoint = Checkpoint(
            context.work("model") / "state.safetensors", context.run.id, context.settings.runtime.checkpoint_seconds
        )
        trainer = Trainer(
            fresh_model(context.run, machine, ("squeeze", recipe.seed)), recipe, machine, ("squeeze", recipe.seed)
        )
        test = images_of(val, context.run.data, machine)
        batches = SqueezeBatches(images_of(train, context.run.data, machine), recipe)
        history = fit(
            trainer,
            batches,
            smoothed_ce(recipe.label_smoothing),
            test.evaluate,
            checkpoint,
            stop,
            f"squeeze {context.run.id}",
        )
        last = history.last
        told = {"top1": last["top1"], "top5": last["top5"], "best_top1": history.best["top1"], "curve": history.curve}
        write_model(context, trainer.model, list(train.classes), out, told | {"provenance": machine.provenance()})


def _published(context: Context, weights: str, out: Path) -> None:
    """Published weights as a squeeze run: their name, digest and the accuracy their publisher states."""
    run = context.run
    library, _, name = weights.partition(":")
    fetch = {"torchvision": _from_torchvision, "timm": _from_timm}.get(library)
    if fetch is None or not name:
        raise ConfigError(
            f"squeeze.weights: {weights!r} is neither torchvision:<Weights.NAME> nor timm:<tag>; name it so"
        )
    state, stated = fetch(run.model, name)
    model = models.build(run.model, run.data.classes, run.data.resolution, run.recipe.architecture)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ConfigError(
            f"squeeze.weights: {weights} does not fit {run.model} with {run.data.classes} classes ({reason})"
        ) from None
    write_model(
        context,
        model,
        context.class_names(),
        out,
        {"top1": stated, "weights": weights, "provenance": context.machine().provenance()},
    )


def _from_torchvision(_model: str, name: str) -> tuple[dict[str, Tensor], float | None]:
    from torchvision.models import get_weight

    try:
        weight = get_weight(name)
    except (ValueError, KeyError):
        mend = "torchvision.models.list_models() and get_model_weights() name what there is"
        raise ConfigError(f"squeeze.weights: torchvision has no weights {name!r}; {mend}") from None
    metrics = weight.meta.get("_metrics", {}).get("ImageNet-1K", {})
    try:
        return dict(weight.get_state_dict(progress=True, check_hash=True)), metrics.get("acc@1")
    except (OSError, RuntimeError) as error:
        raise _not_fetched(f"torchvision:{name}", error) from None


def _from_timm(model: str, tag: str) -> tuple[dict[str, Tensor], float | None]:
    import timm

    try:
        return dict(timm.create_model(f"{model}.{tag}", pretrained=True).state_dict()), None
    except (OSError, RuntimeError) as error:
        raise _not_fetched(f"timm:{tag}", error) from None


def _not_fetched(weights: str, error: Exception) -> ConfigError:
    reason = str(error).strip().splitlines()[0]
    return ConfigError(
        f"squeeze.weights: {weights} cannot be had ({reason}); check the name, or fetch it where there is internet"
    )
