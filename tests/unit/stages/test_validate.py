"""Validate: the stage divides its batches as the recipe has it, for soft and for hard labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cda.data import sources
from cda.data.shards import write_shard
from cda.stages import relabel, squeeze, validate
from cda.stages.models import fresh_model

torch.set_num_threads(1)


def first_loss(tree: Any) -> float:
    """The mean loss of the stage's first epoch, whose learning rate is next to nothing."""
    images, model, labels, out = (
        Path("images"),
        Path("model.safetensors"),
        Path("labels"),
        Path("out.json"),
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
    validate.run(tree.context(runs["validate"]), images, labels, None, 0, out)
    loss: float = json.loads(out.read_text(encoding="utf-8"))["curve"][0]["loss"]
    return loss


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
