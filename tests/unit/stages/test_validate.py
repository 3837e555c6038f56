"""Validate's loss, for every kind of label; the stage trains with it and divides its batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cda.config.recipe import Relabel, Validate
from cda.data import sources
from cda.data.label_codec import Codec
from cda.data.label_store import FORMAT, LabelStore, LabelWriter
from cda.data.shards import write_shard
from cda.stages import relabel, squeeze, validate
from cda.stages.models import fresh_model
from cda.stages.validate import loss_of

torch.set_num_threads(1)

CLASSES, COUNT = 7, 6


def recipe(**values: Any) -> Validate:
    return Validate(**({"epochs": 1, "batch_size": COUNT, "lr": 0.1} | values))


def logits(seed: int) -> torch.Tensor:
    draws = np.random.default_rng(seed).standard_normal((COUNT, CLASSES)) * 4
    return torch.from_numpy(draws.astype(np.float32)).half().float()


def store_of(folder: Path, mode: str, teacher: torch.Tensor) -> LabelStore:
    """A store of one epoch, whose rows are the teacher's logits."""
    values = Relabel(labels=mode, epochs=1)  # type: ignore[arg-type]
    header = {
        "format": FORMAT,
        "labels": mode,
        "classes": [str(label) for label in range(CLASSES)],
        "images_digest": "abc",
        "epochs": 1,
        "recipe": values.model_dump(mode="json"),
        "temperature": 4.0,
        "shape": [1, COUNT, CLASSES],
    }
    writer = LabelWriter(folder, Codec(CLASSES), 1, COUNT)
    writer.write(0, np.arange(COUNT), teacher)
    writer.close()
    (folder / "header.json").write_text(json.dumps(header), encoding="utf-8")
    return LabelStore(folder)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("mode", ["stored", "online"])
def test_soft_labels_are_distilled_at_the_recipe_s_temperature(tmp_path, mode, squared, smoothing):
    student, teacher, temperature = logits(0), logits(1), 4.0
    values = recipe(temperature=temperature, temperature_squared=squared, label_smoothing=smoothing)
    store = store_of(tmp_path / "labels", mode, teacher)
    target = torch.from_numpy(store.rows(0, np.arange(COUNT))) if mode == "stored" else teacher
    taught = (1 - smoothing) * F.softmax(teacher.double() / temperature, 1) + smoothing / CLASSES
    logs = F.log_softmax(student.double() / temperature, 1)
    expected = (taught * (taught.log() - logs)).sum() / COUNT * (16 if squared else 1)
    found = loss_of(values, store)(student, target)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_hard_labels_are_the_mixture_s_classes(tmp_path, smoothing):
    student, own, partner = logits(2), torch.arange(COUNT), torch.arange(COUNT).flip(0)
    share = torch.tensor([1.0, 0.9, 0.5, 0.3, 0.7, 0.0])
    values = recipe(label_smoothing=smoothing, temperature_squared=True)
    mixed = share[:, None] * F.one_hot(own, CLASSES) + (1 - share[:, None]) * F.one_hot(
        partner, CLASSES
    )
    target = (1 - smoothing) * mixed + smoothing / CLASSES
    expected = -(target * F.log_softmax(student, 1)).sum() / COUNT
    store = store_of(tmp_path / "labels", "hard", student)
    found = loss_of(values, store)(student, (own, partner, share))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def first_loss(tree: Any) -> float:
    """The mean loss of the stage's first epoch, whose learning rate is next to nothing."""
    images, model, labels, out = (
        Path("images"),
        Path("model.safetensors"),
        Path("labels"),
        Path("o"),
    )
    runs = tree.runs()
    if not model.exists():
        context = tree.context(runs["squeeze"])
        teacher = fresh_model(context.run, context.open_device(), ("a teacher", 0))
        squeeze.write_model(context, teacher, list("0123456789"), model, {})
        train = sources.load(runs["squeeze"].data, "train", Path("data/digits"))
        pixels = train.images[[np.flatnonzero(train.labels == label)[0] for label in range(10)]]
        path = images / "part-0" / "ipc-000.tar"
        write_shard(path, pixels, train.classes, 0, runs["recover"].id, "digits")
        relabel.run(tree.context(runs["relabel"]), images, model, labels)
    validate.run(tree.context(runs["validate"]), images, labels, None, {0: out})
    loss: float = json.loads(out.read_text(encoding="utf-8"))["curve"][0]["loss"]
    return loss


def test_the_stage_trains_with_the_recipe_s_loss(tree):
    tree.few_images()
    tree.edit("recipes/digits.yaml", "lr: 2.0e-3 ", "lr: 1.0e-12\n  evaluate_every: 1 ")
    plain = first_loss(tree)
    line = "  warmup_epochs: 1 "
    tree.edit("recipes/digits.yaml", line, f"  temperature_squared: true\n{line}")
    assert first_loss(tree) == pytest.approx(16 * plain, rel=1e-3)
    tree.edit("recipes/digits.yaml", line, f"  label_smoothing: 0.9\n{line}")
    assert first_loss(tree) != pytest.approx(16 * plain, rel=0.02)


@pytest.mark.parametrize("labels", ["stored", "hard"])
def test_the_stage_divides_its_batches(labels, tree):
    """Each part is normalised by its own statistics, which shows in the first loss."""
    tree.few_images()
    tree.edit("recipes/digits.yaml", "labels: stored ", f"labels: {labels} ")
    tree.edit("recipes/digits.yaml", "batch_size: 6 ", "batch_size: 10 ")
    tree.edit("recipes/digits.yaml", "lr: 2.0e-3 ", "lr: 1.0e-12\n  evaluate_every: 1 ")
    one = first_loss(tree)
    line = "  warmup_epochs: 1 "
    tree.edit("recipes/digits.yaml", line, f"  batch_parts: 1\n{line}")
    assert first_loss(tree) == one
    tree.edit("recipes/digits.yaml", "batch_parts: 1", "batch_parts: 2")
    assert first_loss(tree) == pytest.approx(one, rel=0.5)
    assert first_loss(tree) != pytest.approx(one, rel=1e-3)


@pytest.mark.parametrize("labels", ["stored", "hard"])
@pytest.mark.parametrize(("size", "parts", "equal"), [(9, 1, 10), (18, 2, 10), (3, 1, 5)])
def test_a_last_image_alone_joins_the_batch_before(size, parts, equal, labels, tree):
    """Ten images, of which torch refuses the last one alone: the network's last maps are 1×1.

    9 + 1 and one batch's parts of 9 + 1 are a batch of 10; 3 + 3 + 3 + 1 are 3 + 3 + 4.
    """
    tree.few_images()
    tree.edit("recipes/digits.yaml", "labels: stored ", f"labels: {labels} ")
    batch = f"batch_size: {size}\n  batch_parts: {parts} "
    tree.edit("recipes/digits.yaml", "batch_size: 6 ", batch)
    tree.edit("recipes/digits.yaml", "lr: 2.0e-3 ", "lr: 1.0e-12\n  evaluate_every: 1 ")
    joined = first_loss(tree)
    tree.edit("recipes/digits.yaml", batch, f"batch_size: {equal} ")
    assert joined == pytest.approx(first_loss(tree), rel=1e-6 if equal == 10 else 0.5)
