"""Validate: images a second in post-training with mixing and soft labels, against the plain way.

The plain way reads fp16 soft labels a batch at a time and mixes the batch with its own permutation
(MixUp, as the authors' CIFAR-100 code does). Its labels belong to other augmentations, which does
not change its speed.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.harness import Case, Setting, Work
from benchmarks.pictures import Pictures, loader_of, synthetic, transform_of
from benchmarks.precision import as_torch_ships_it
from benchmarks.squeeze import EPOCHS, PlainTraining, Problem, problems, sides
from cda.config.recipe import Relabel, Validate
from cda.data.label_codec import Codec
from cda.data.label_store import FORMAT, LabelStore, LabelWriter
from cda.engine.batches import DistilledBatches
from cda.engine.device import Device
from cda.engine.images import Images
from cda.engine.soft_labels import LabelledBatches
from cda.engine.trainer import Trainer
from cda.files import write_json
from cda.rng import generator
from cda.stages.validate import loss_of

LABEL_EPOCHS = 4  # stored; a longer training reads them again
POST = Validate(
    epochs=EPOCHS, batch_size=64, optimizer="adamw", lr=1e-3, weight_decay=0.01, schedule="constant"
)


def relabel_of(problem: Problem) -> Relabel:
    """CIFAR-100's values at 32 px, Tiny-ImageNet's crop above."""
    crop = "pad_crop" if problem.resolution <= 32 else "random_resized_crop"
    return Relabel.model_validate(
        {"epochs": LABEL_EPOCHS, "mixing": "mixup", "mixing_alpha": 0.8, "augment": crop}
    )


def logits_of(problem: Problem) -> NDArray[np.float16]:
    """Random soft labels [epochs, images, classes]."""
    draws = generator("benchmark", "logits")
    return draws.standard_normal(
        (LABEL_EPOCHS, problem.images, problem.classes), dtype=np.float32
    ).astype(np.float16)


def mixed(images: Tensor, order: Tensor, share: float) -> Tensor:
    """MixUp of a batch with itself in another order."""
    return share * images + (1 - share) * images[order]


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence of the softened predictions from the teacher's, a mean over the batch."""
    target = F.softmax(teacher / temperature, dim=1)
    return F.kl_div(F.log_softmax(logits / temperature, dim=1), target, reduction="batchmean")


def plain(problem: Problem, setting: Setting, tf32: bool = True) -> Work:
    """DataLoader, mixing and eager step; on a GPU with TF32, torch's default, or true fp32."""
    setting.reference()
    data, recipe = problem.data, relabel_of(problem)
    pictures = Pictures(*synthetic(problem.images, data), transform_of(recipe, data))
    loader, stored = loader_of(pictures, problem.batch_size, setting), logits_of(problem)
    model = problem.network().to(setting.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=POST.lr, weight_decay=POST.weight_decay)
    training, epochs = PlainTraining(model, optimizer, setting.device), itertools.count()

    def epoch() -> float:
        now = next(epochs) % LABEL_EPOCHS
        model.train()
        with as_torch_ships_it(tf32):
            for images, _, index in loader:
                images = images.to(setting.device, non_blocking=True)
                teacher = torch.from_numpy(stored[now, index.numpy()]).to(setting.device).float()
                share = float(np.random.beta(recipe.mixing_alpha, recipe.mixing_alpha))
                images = mixed(images, torch.randperm(len(images), device=setting.device), share)
                training.step(
                    images,
                    partial(distillation, teacher=teacher, temperature=POST.temperature),
                )
        return problem.images

    return epoch


def store_of(problem: Problem, folder: Path) -> LabelStore:
    """A label store of random fp16 logits in `folder`."""
    logits, recipe = torch.from_numpy(logits_of(problem)), relabel_of(problem)
    writer = LabelWriter(folder, Codec(problem.classes), LABEL_EPOCHS, problem.images)
    for epoch in range(LABEL_EPOCHS):
        writer.write(epoch, np.arange(problem.images), logits[epoch])
    header = {
        "format": FORMAT,
        "run": "benchmark",
        "labels": "stored",
        "epochs": LABEL_EPOCHS,
        "images_digest": "",
    }
    header |= {
        "classes": [str(label) for label in range(problem.classes)],
        "temperature": POST.temperature,
    }
    write_json(
        folder / "header.json", header | writer.close() | {"recipe": recipe.model_dump(mode="json")}
    )
    return LabelStore(folder)


def engine(problem: Problem, open_device: Callable[[], Device]) -> Work:
    """The engine: resident images, a memory-mapped label store, batched augmentation and mixing."""
    device, recipe = open_device(), POST.model_copy(update={"batch_size": problem.batch_size})
    folder = tempfile.mkdtemp(prefix="cda-benchmark-")
    store = store_of(problem, Path(folder) / "labels")
    images = Images(*synthetic(problem.images, problem.data), problem.data, device)
    distilled = DistilledBatches(images, store.recipe, problem.batch_size, recipe.epochs)
    batches = LabelledBatches(distilled, store, None, device, recipe.epochs)
    trainer = Trainer(device.place(problem.network()), recipe, device, ("benchmark",))
    loss, epochs = loss_of(recipe, store), itertools.count()

    def epoch() -> float:
        device.use_precision()
        trainer.model.train()
        for seen, target in batches.epoch(next(epochs) % LABEL_EPOCHS):
            trainer.step(seen, target, loss, recipe.lr)
        return problem.images

    weakref.finalize(epoch, shutil.rmtree, folder, ignore_errors=True)
    return epoch


def cases(setting: Setting) -> list[Case]:
    """Squeeze's problems, then one by number of classes."""
    usual = problems(setting)
    found = [_case(f"batch {p.batch_size} at {p.resolution} px", p, setting) for p in usual]
    if not setting.quick:
        few = 5000 if setting.cuda else 320
        growing = [
            replace(usual[0], batch_size=64, images=few, classes=classes)
            for classes in (10, 100, 1000)
        ]
        found += [
            _case(f"{problem.classes} classes", problem, setting, growing=True)
            for problem in growing
        ]
    return found


def _case(what: str, problem: Problem, setting: Setting, growing: bool = False) -> Case:
    measured = sides(
        problem,
        setting,
        lambda tf32: plain(problem, setting, tf32),
        lambda open_device: engine(problem, open_device),
    )
    if growing:
        measured = tuple(side for side in measured if side.name in ("plain", "ours"))
    seconds, rounds = (0.0, 2) if setting.quick else (1.0, 3 if growing else 5)
    return Case(
        "validate",
        what,
        "images/s",
        measured,
        problem.parameters,
        rounds=rounds,
        seconds=seconds,
        memory=not growing,
    )
