"""The networks of stages: fresh ones with seeded weights, and squeezed ones from disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cda.config.settings import Dataset
from cda.engine.checkpoint import load_weights
from cda.engine.device import Device, seed_everything
from cda.engine.kernels.winograd import Convolutions
from cda.errors import ArtifactError, ConfigError
from cda.experiments.runs import Run
from cda.files import file_digest, read_json
from cda.method import networks


def fresh_model(run: Run, device: Device, purpose: tuple[object, ...]) -> nn.Module:
    """The run's network on the device, with weights drawn for `purpose` (`cda.rng`).

    Raises ConfigError if the network cannot take images of the data set's size, in evaluation or in
    training, or answers with anything but logits.
    """
    seed_everything(*purpose, "weights")
    model = _build(run)
    for training in (False, True):
        if problem := _problem(model, run, 1 + training, training):
            size = run.data.resolution
            doing = "train on" if training else "take"
            raise ConfigError(
                f"model {run.model!r} cannot {doing} {size}×{size} images ({problem}); use "
                "another model"
            )
    return device.place(model)


def _build(run: Run) -> nn.Module:
    return networks.build(run.model, run.data.classes, run.data.resolution, run.recipe.architecture)


def _problem(model: nn.Module, run: Run, count: int, training: bool) -> str:
    """Why a network does not turn `count` of the run's images into logits; empty if it does.

    They go through it on the CPU, where an error has no other cause. Neither its statistics nor
    torch's generator change.
    """
    size, classes = run.data.resolution, run.data.classes
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    images = torch.zeros(count, 3, size, size)
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            answer = torch.func.functional_call(model.train(training), buffers, (images,))
    except (RuntimeError, ValueError, AssertionError) as error:
        return (str(error) or type(error).__name__).splitlines()[0]
    finally:
        model.eval()
    if isinstance(answer, Tensor) and answer.shape == (count, classes):
        return ""
    kind = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
    return f"it answers with {kind} where logits {[count, classes]} belong"


def require_convnet(model: nn.Module, name: str) -> None:
    """Raise ConfigError unless a network has embeddings and no batch statistics: a ConvNet."""
    if not hasattr(model, "embed"):
        raise ConfigError(
            f"recovery model {name!r} cannot distil by matching; use a ConvNet: convnet3 at "
            "32 pixels, convnet4 at 64"
        )


def least_batch(run: Run, images: int, batch_size: int, parts: int = 1) -> int:
    """The fewest images of a batch: 2 if the network's batch statistics need as many, else 1.

    BN layers over maps of 1×1 do. The network is tried only if an epoch of `images`, or one of a
    batch's `parts`, has a batch of one image. Raises ConfigError if all of them do.
    """
    size = batch_size // parts
    if size > 1 and images % size != 1:
        return 1
    with torch.random.fork_rng(devices=[]):
        problem = _problem(_build(run), run, 1, training=True)
    if problem and size == 1:
        raise ConfigError(
            f"model {run.model!r} cannot train on one image at a time ({problem}); raise the "
            f"recipe's batch_size ({batch_size}){' or lower batch_parts' if parts > 1 else ''}"
        )
    return 2 if problem else 1


def read_description(path: Path, run: Run) -> dict[str, Any]:
    """The `squeeze.json` beside a squeeze run's model.

    Raises ArtifactError if it is missing, damaged or another run's.
    """
    fix = f"delete {path} and squeeze again, or pull both"
    described = read_json(path.with_name("squeeze.json"), "the squeezed model's description", fix)
    if described.get("run") != run.id:
        raise ArtifactError(
            f"{path}: is the model of run {described.get('run')}, not of {run.id}; {fix}"
        )
    names = described.get("classes")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ArtifactError(f"{path}: its squeeze.json has no list of classes; {fix}")
    return described


def outputs_for(path: Path, described: dict[str, Any], data: Dataset) -> list[int]:
    """For each class of `data`, the output of the squeezed model at `path`.

    A published model may have more classes than `data`. Raises ArtifactError if a class is missing.
    """
    names: list[str] = described["classes"]
    if data.class_names:
        unknown = sorted(set(data.class_names) - set(names))
        if unknown:
            raise ArtifactError(
                f"{path}: does not know {data.name}'s class {unknown[0]}; squeeze again"
            )
        return [names.index(name) for name in data.class_names]
    if len(names) != data.classes:
        raise ArtifactError(
            f"{path}: has {len(names)} classes, {data.name} {data.classes}; squeeze again"
        )
    return list(range(data.classes))


def require_classes(path: Path, run: Run, classes: list[str]) -> None:
    """Raise ArtifactError unless output c of a squeeze run's model is class c of distilled images.

    Else its labels would be those of other classes.
    """
    if read_description(path, run)["classes"] != classes:
        raise ArtifactError(
            f"{path}: its classes, or their order, are not those of the distilled images; delete "
            "its folder and squeeze it again, or recover the images again"
        )


def load_squeezed(path: Path, run: Run, device: Device) -> nn.Module:
    """A squeeze run's model on the device, frozen and in evaluation mode.

    Raises ArtifactError if the file is missing, damaged or another run's.
    """
    described = read_description(path, run)
    classes = len(described["classes"])
    model = load_weights(
        networks.build(run.model, classes, run.data.resolution, run.recipe.architecture), path
    )
    if file_digest(path) != described.get("sha256"):
        raise ArtifactError(
            f"{path}: differs from the digest in its squeeze.json; delete it and "
            "squeeze again, or pull it"
        )
    return device.freeze(model)


def accelerate(
    model: nn.Module, device: Device, steps: int, batch: int
) -> Callable[[Tensor], Tensor]:
    """A frozen model for `steps` calls with `batch` images, with our kernels or compiled.

    The results are equal up to rounding.
    """
    if device.native:
        device.compiles |= bool(Convolutions(model).replaced)
        return model
    return device.compiled(model, steps, length=batch)
