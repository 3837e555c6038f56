"""Soft labels in a loop of one's own: the validate stage's batches and logits, and its refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cda.data import sources
from cda.data.shards import write_shard
from cda.engine.soft_labels import SoftLabelled
from cda.errors import ArtifactError
from cda.stages import relabel, squeeze, validate
from cda.stages.models import fresh_model

torch.set_num_threads(1)

README = Path(__file__).parents[3] / "README.md"
IMAGES, LABELS = Path("images"), Path("labels")


@pytest.fixture
def runs(tree: Any) -> dict[str, Any]:
    """A cell's runs, with two shards of real digits and their labels by a network of no merit."""
    tree.few_images()
    found: dict[str, Any] = tree.runs(ipc=2)
    context = tree.context(found["squeeze"])
    teacher = fresh_model(context.run, context.open_device(), ("a teacher", 0))
    squeeze.write_model(context, teacher, list("0123456789"), Path("model.safetensors"), {})
    train = sources.load(found["squeeze"].data, "train", Path("data/digits"))
    for ipc in range(2):
        chosen = [np.flatnonzero(train.labels == label)[ipc] for label in range(10)]
        path = IMAGES / "part-0" / f"ipc-{ipc:03d}.tar"
        write_shard(path, train.images[chosen], train.classes, ipc, found["recover"].id, "digits")
    relabel.run(tree.context(found["relabel"]), IMAGES, Path("model.safetensors"), LABELS)
    return found


def test_batches_logits_and_losses_are_those_of_the_validate_stage(tree, runs, monkeypatch):
    trained_on: list[Any] = []

    def capture(_trainer: Any, batches: Any, loss: Any, *_others: Any) -> Any:
        trained_on.extend([batches, loss])
        raise ArtifactError("enough")

    monkeypatch.setattr(validate, "fit", capture)
    with pytest.raises(ArtifactError, match="enough"):
        validate.run(tree.context(runs["validate"]), IMAGES, LABELS, None, {0: Path("out.json")})
    batches, loss = trained_on
    recipe = runs["validate"].recipe.validate_
    soft = SoftLabelled(IMAGES, LABELS, recipe.batch_size)
    assert (soft.epochs, soft.steps, soft.temperature) == (5, batches.steps, recipe.temperature)
    assert (soft.mean, soft.std) == (runs["validate"].data.mean, runs["validate"].data.std)
    assert soft.classes == list("0123456789")
    for epoch in range(recipe.epochs):
        own, others = list(soft.epoch(epoch)), list(batches.epoch(epoch))
        assert len(own) == len(others) == soft.steps
        for (images, logits), (inputs, rows) in zip(own, others, strict=True):
            assert torch.equal(images, inputs)
            assert torch.equal(logits, batches.store.codec.decode(rows))
            student = torch.randn(logits.shape, generator=torch.Generator().manual_seed(epoch))
            softened = F.softmax(logits / soft.temperature, 1)
            mine = F.kl_div(
                F.log_softmax(student / soft.temperature, 1), softened, reduction="batchmean"
            )
            assert mine.item() == pytest.approx(loss(student, rows).item(), rel=1e-5)


@pytest.mark.usefixtures("runs")
def test_the_readme_s_lines_train_a_network_of_torchvision():
    text = README.read_text(encoding="utf-8")
    (code,) = (
        c for c in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "SoftLabelled(" in c
    )
    code = re.sub(r'"artifacts/\S*recover/[^"]+"', f'"{IMAGES}"', code)
    code = re.sub(r'"artifacts/\S*relabel/[^"]+"', f'"{LABELS}"', code)
    variables: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), variables)
    assert torch.isfinite(variables["loss"])
    assert variables["optimizer"].state  # it has made steps

    assert variables["model"].fc.out_features == 10


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"labels": "hard"},
            r"holds no logits \(labels: hard\); name the labels of a run without -hard",
        ),
        ({"labels": "online"}, r"holds no logits \(labels: online\); raise labels.max_gb"),
        ({"images_digest": "abc"}, "these labels belong to another set of images"),
        ({"classes": [*"9876543210"]}, "classes are in another order"),
        ({"sha256": "abc"}, "differs from its header's digest"),
        ({"spec": {}}, "lacks its data set or ipc; delete labels and relabel again"),
        ({"ipc": "2"}, "lacks its data set or ipc"),
        ({"temperature": None}, "lacks temperature"),
        ({"spec": {"dataset": {"name": "digits"}}}, r"spec.dataset.*delete labels and relabel"),
    ],
)
@pytest.mark.usefixtures("runs")
def test_labels_that_do_not_serve_are_refused_in_one_line(values, message):
    header = json.loads((LABELS / "header.json").read_text(encoding="utf-8"))
    (LABELS / "header.json").write_text(json.dumps(header | values), encoding="utf-8")
    with pytest.raises(ArtifactError, match=message) as caught:
        SoftLabelled(IMAGES, LABELS, 6)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("runs")
def test_an_epoch_without_labels_is_refused():
    soft = SoftLabelled(IMAGES, LABELS, 6)
    for epoch in (-1, 5):
        with pytest.raises(ValueError, match=f"epoch {epoch}: the label store has epochs 0 to 4"):
            next(soft.epoch(epoch))
