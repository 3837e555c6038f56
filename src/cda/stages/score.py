"""Score: accuracy on distilled images of a squeezed model that took no part in making them.

It is paper Section 3.7, Table 9. Reads a squeezed model and the first shards of a recover run, or
the real validation images; writes one JSON, as validate does. The paper reports the "mean of random
10-crop and global images": here `top1_global` is the accuracy on complete images and `top1_10crop`
the mean accuracy on `score.crops` random resized crops of each, without flips. A crop is drawn for
(seed, crop number, image), so that every method's images have the same crops.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from cda.config.recipe import Score
from cda.data.shards import load_distilled
from cda.engine.images import Images
from cda.errors import ArtifactError
from cda.files import write_json
from cda.method.augment import draw_views, resample, resampling
from cda.progress import Progress, log
from cda.rng import generator
from cda.stages.context import Context
from cda.stages.models import load_squeezed, outputs_for, read_description

BATCH = 256  # images a forward pass; changes speed and rounding alone


def run(context: Context, images_folder: Path | None, model_path: Path, out: Path) -> None:
    """Classify and write the run's JSON at `out`.

    Args:
        context: The job; its run is a `cda.experiments.runs.score_run`.
        images_folder: Folder of the recover run; None for the real validation images.
        model_path: The squeezed `model.safetensors`, with its description beside it.
        out: The JSON: accuracies in percent; for shards also `top1_global` and `top1_10crop`.

    Raises:
        ArtifactError: The model or a shard is missing, damaged, another run's, or has other
            classes.
        DataError: The real validation images are missing or damaged.
    """
    run = context.run
    device = context.open_device()
    sampled = None
    if "images" in run.upstream:
        assert images_folder is not None
        source = run.upstream["images"].id
        pixels, labels, classes, _ = load_distilled(
            images_folder, run.ipc, run.dataset, source, run.data.resolution
        )
        described = read_description(model_path, run.upstream["model"])
        outputs = np.array(outputs_for(model_path, described, run.data))
        images = Images(pixels, outputs[labels], run.data, device, classes)
        sampled = run.recipe.score
    else:
        images = context.validation(device)
    _check(context, model_path, images.classes)
    model = load_squeezed(model_path, run.upstream["model"], device)
    log(f"score {run.id}: {len(images)} images")
    measured = images.evaluate(model)
    if sampled is not None:
        crops = crop_accuracies(model, images, sampled, f"score {run.id}")
        measured |= {"top1_global": measured["top1"], "top1_10crop": sum(crops) / len(crops)}
    record = context.description() | {"model": run.model, "ipc": run.ipc, "seed": 0}
    record["images"] = len(images)
    write_json(out, record | measured | {"provenance": device.provenance()})


@torch.inference_mode()
def crop_accuracies(model: nn.Module, images: Images, values: Score, label: str) -> list[float]:
    """Top-1 accuracy in percent for each of the `values.crops` random resized crops of an image."""
    model.eval()
    progress = Progress(values.crops * len(images), label, "crops")
    accuracies = []
    for crop in range(values.crops):
        draws = generator("score", values.seed, crop)
        views = draw_views(
            draws,
            len(images),
            images.size,
            crop="random_resized_crop",
            scale=values.crop_scale,
            flip=0.0,
        )
        correct = torch.zeros((), device=images.torch_device, dtype=torch.long)
        for start in range(0, len(images), BATCH):
            chosen = np.arange(start, min(start + BATCH, len(images)))
            index = torch.from_numpy(chosen).to(images.torch_device)
            seen = resample(
                images.at(index), resampling(views.of(chosen), images.size, images.torch_device)
            )
            with images.device.autocast():
                logits = model(
                    images.normalised(seen).contiguous(memory_format=torch.channels_last)
                )
            correct += (logits.float().argmax(dim=1) == images.labels[index]).sum()
            progress.update(len(chosen))
        accuracies.append(float(correct) * 100 / len(images))
        progress.note = f"top-1 {accuracies[-1]:.2f} %"
    progress.close()
    return accuracies


def _check(context: Context, path: Path, classes: list[str]) -> None:
    """Raise ArtifactError unless the model has the images' classes and their normalisation."""
    data = context.run.data
    described = read_description(path, context.run.upstream["model"])
    if [described["classes"][output] for output in outputs_for(path, described, data)] != classes:
        raise ArtifactError(
            f"{path}: its classes are not those of the {context.run.dataset} images to score; "
            "squeeze it on the same"
        )
    if (described.get("mean"), described.get("std")) != (list(data.mean), list(data.std)):
        raise ArtifactError(
            f"{path}: was trained under another mean and std than {context.run.dataset}'s; "
            "squeeze it again"
        )
