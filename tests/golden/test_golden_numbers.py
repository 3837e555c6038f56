"""Ten steps of the engines in float64 against stored numbers of the plain loops."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.golden.golden_numbers import NUMBERS, numbers
from tests.golden.plain_recovery import BLOCK, DATA, RECOVERIES, STEPS, network
from tests.golden.plain_training import CONTINUAL, TRAININGS, Batches, dsa_draws, some_of
from torch import Tensor

from cda.config.settings import Runtime
from cda.engine.checkpoint import Checkpoint
from cda.engine.device import Device
from cda.engine.objective import Objective
from cda.engine.recovery import Recovery
from cda.engine.signals import Stop
from cda.engine.trainer import Trainer, fit
from cda.method import dsa
from cda.method.losses import kd_loss, mixed_ce
from cda.stages.squeeze import smoothed_ce

torch.set_num_threads(1)

STORED: dict[str, dict[str, list[float]]] = json.loads(NUMBERS.read_text(encoding="utf-8"))
MACHINE = Device(Runtime(device="cpu"), torch.device("cpu"), None)
CLOSE = {"rel": 1e-9, "abs": 1e-11}  # losses differ by up to 4e-13, weights by 2e-12

LOSSES = {
    "sgd, T²": lambda x, t: kd_loss(x, t, 20.0, squared=True),
    "adamw": lambda x, t: kd_loss(x, t, 20.0),
    "adam, smoothed": smoothed_ce(0.2),
    "sgd, steps": lambda x, t: mixed_ce(x, *t),
}


def assert_stored(found: dict[str, list[float]], name: str) -> None:
    assert found.keys() == STORED[name].keys()
    for key, values in STORED[name].items():
        assert found[key] == pytest.approx(values, **CLOSE), key


def test_the_plain_loops_give_the_stored_numbers():
    found = numbers()
    assert found.keys() == STORED.keys()
    for name, values in found.items():
        assert_stored(values, name)


@pytest.mark.parametrize("name", RECOVERIES)
def test_recovery(name):
    values, found = RECOVERIES[name], {"ce": [], "bn": []}
    objective = Objective(network(), 1, values, MACHINE, STEPS)
    recovery = Recovery(objective, [BLOCK], values, DATA, torch.float64)
    for _ in range(STEPS):
        recovery.step()
        for key, losses in zip(("ce", "bn"), recovery.losses(), strict=True):
            found[key] += losses
    objective.close()
    assert_stored(found | {"images": some_of([recovery.images])}, f"recover: {name}")


def trained(folder: Path, values: Any, batches: Batches, loss_of: Any) -> dict[str, list[float]]:
    """What the plain `train` gives, by the training loop of the stages."""
    trainer = Trainer(network().requires_grad_(True), values, MACHINE, ("golden",))
    found: dict[str, list[float]] = {"losses": [], "rates": []}

    def loss(logits: Tensor, target: Any) -> Tensor:
        value: Tensor = loss_of(logits, target)
        assert value.dtype == torch.float64
        found["losses"].append(value.item())
        found["rates"].append(trainer.optimizer.param_groups[0]["lr"])
        return value

    checkpoint = Checkpoint(folder / "state.safetensors", "golden", math.inf)
    fit(trainer, batches, loss, lambda _: {"top1": 0.0}, checkpoint, Stop(), "golden")
    return found | {"weights": some_of(trainer.model.parameters())}


@pytest.mark.parametrize("name", TRAININGS)
def test_training(tmp_path, name):
    target = {"adam, smoothed": "label", "sgd, steps": "mixture"}.get(name, "teacher")
    found = trained(tmp_path, TRAININGS[name], Batches(target), LOSSES[name])
    assert_stored(found, f"train: {name}")


def test_continual(tmp_path):
    seen = set()

    def augment(images: Tensor, epoch: int, step: int) -> Tensor:
        seen.add(int(dsa_draws(epoch, step).integers(6)))
        return dsa.augment(images, dsa_draws(epoch, step))

    def loss(logits: Tensor, teacher: Tensor) -> Tensor:
        return kd_loss(logits, teacher, CONTINUAL.temperature, CONTINUAL.temperature_squared)

    found = trained(tmp_path, CONTINUAL, Batches("teacher", augment), loss)
    assert_stored(found, "continual")
    assert len(seen) == 6, "an operation of DSA was not drawn"
