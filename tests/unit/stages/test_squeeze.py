"""Squeeze's loss, that the stage trains with it, and the rounding of what it stores."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cda.engine.images import Images
from cda.stages import squeeze
from cda.stages.squeeze import round_to_half, smoothed_ce

torch.set_num_threads(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_cross_entropy_with_smoothed_labels(smoothing):
    logits, labels = np.random.default_rng(0).standard_normal((6, 5)) * 3, np.arange(6) % 5
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        logs = row - np.log(np.exp(row).sum())
        target = (1 - smoothing) * np.eye(5)[label] + smoothing / 5
        total -= target @ logs
    found = smoothed_ce(smoothing)(torch.from_numpy(logits).float(), torch.from_numpy(labels))
    assert found.item() == pytest.approx(total / 6, rel=1e-5)


def test_the_loss_of_half_precision_logits_is_float32():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = smoothed_ce(0.1)(logits, torch.arange(4) % 3)
    assert found.dtype == torch.float32
    assert torch.equal(found, smoothed_ce(0.1)(logits.float(), torch.arange(4) % 3))


def test_matrices_are_rounded_to_half_and_vectors_are_not():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1 / 3)
    round_to_half(model)
    third, half = torch.tensor(1 / 3), torch.tensor(1 / 3).half().float()
    for name, parameter in model.named_parameters():
        assert (parameter == (half if parameter.ndim > 1 else third)).all(), name


def first_loss(tree: Any) -> float:
    """The mean loss of the stage's first epoch, whose learning rate is next to nothing."""
    squeeze.run(tree.context(tree.runs()["squeeze"]), Path("model.safetensors"))
    loss: float = json.loads(Path("squeeze.json").read_text(encoding="utf-8"))["curve"][0]["loss"]
    return loss


def test_the_stage_trains_with_the_recipe_s_smoothing(tree):
    """A half-smoothed label's loss lies midway between a plain label's and a uniform one's."""
    tree.few_images()
    tree.edit("recipes/digits.yaml", "lr: 0.1 ", "lr: 1.0e-12\n  evaluate_every: 1 ")
    plain = first_loss(tree)
    line = "  augment: pad_crop "
    tree.edit("recipes/digits.yaml", line, f"  label_smoothing: 0.5\n{line}")
    half = first_loss(tree)
    tree.edit("recipes/digits.yaml", "label_smoothing: 0.5", "label_smoothing: 1.0")
    assert half == pytest.approx((plain + first_loss(tree)) / 2, rel=1e-4)
    assert half != pytest.approx(plain, rel=1e-3)


def test_the_best_accuracy_is_never_below_that_of_the_rounded_weights(tree, monkeypatch):
    tree.few_images()
    better = itertools.count(10)
    monkeypatch.setattr(
        Images, "evaluate", lambda _images, _model: {"top1": float(next(better)), "top5": 100.0}
    )
    squeeze.run(tree.context(tree.runs()["squeeze"]), Path("model.safetensors"))
    record = json.loads(Path("squeeze.json").read_text(encoding="utf-8"))
    assert record["best_top1"] == record["top1"] > max(row["top1"] for row in record["curve"])
