"""On a GPU: the compiled step at batch 8, its launches replayed as graphs, against eager fp32.

Evaluation; resuming.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cda.config.recipe import Architecture, Relabel, Squeeze
from cda.config.settings import Dataset, Runtime
from cda.engine.batches import DistilledBatches, SqueezeBatches
from cda.engine.checkpoint import Checkpoint
from cda.engine.device import Device, open_device
from cda.engine.images import Images
from cda.engine.signals import Stop
from cda.engine.trainer import Trainer, fit
from cda.errors import Interrupted
from cda.method import networks
from cda.stages.squeeze import smoothed_ce

pytestmark = [
    pytest.mark.gpu,
]

DATA = Dataset(
    name="toy", layout="digits", classes=10, resolution=32, mean=(0.5,) * 3,
    std=(0.25,) * 3, get="made up",
)  # fmt: skip
COUNT = 44  # five batches of 8 and a smaller one
RECIPE = Squeeze(
    epochs=4, batch_size=8, lr=0.01, augment="random_resized_crop", cutout=0.3, evaluate_every=1
)


def device(compile: str, precision: str = "fp32") -> Device:
    return open_device(Runtime(device="cuda", precision=precision, compile=compile))


def images(on: Device, count: int = COUNT) -> Images:
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return Images(pixels, draws.integers(0, 10, count), DATA, on)


def network(on: Device) -> torch.nn.Module:
    torch.manual_seed(0)
    return on.place(networks.build("resnet18", 10, 32, Architecture(stem="small", width=0.25)))


class Stopping(SqueezeBatches):
    """Asks `stop` to stop after so many batches."""

    def __init__(self, of: Images, stop: Stop, stop_after: int) -> None:
        super().__init__(of, RECIPE)
        self.stop, self.left = stop, stop_after

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Any]]:
        for batch in super().epoch(epoch, first_step):
            self.left -= 1
            self.stop.signal = self.stop.signal or signal.SIGTERM * (self.left == 0)
            yield batch


def train(on: Device, folder: Path, stop_after: int = -1) -> Trainer:
    real, stop = images(on), Stop()
    trainer = Trainer(network(on), RECIPE, on, ("toy", 0))
    checkpoint = Checkpoint(folder / "state.safetensors", "toy", 1e9)
    fit(
        trainer,
        Stopping(real, stop, stop_after),
        smoothed_ce(0.1),
        real.evaluate,
        checkpoint,
        stop,
        "toy",
    )
    return trainer


def losses(trainer: Trainer) -> list[float]:
    return [row["loss"] for row in trainer.history.curve]


def test_steps_of_eight_have_the_losses_of_eager_fp32(tmp_path, capsys):
    plain, fast = (
        train(device("never"), tmp_path / "plain"),
        train(device("always"), tmp_path / "fast"),
    )
    assert "cannot compile" not in capsys.readouterr().err
    assert losses(fast)[:2] == pytest.approx(
        losses(plain)[:2], rel=0.02
    )  # rounding grows from step to step
    half = train(device("always", "bf16"), tmp_path / "half")
    assert losses(half)[:2] == pytest.approx(losses(plain)[:2], rel=0.05)


def test_a_first_step_differs_in_rounding_alone():
    found = []
    for compiling in ("never", "always"):
        on = device(compiling)
        trainer = Trainer(network(on), RECIPE, on, ("toy", 0))
        inputs, labels = next(SqueezeBatches(images(on), RECIPE).epoch(0))
        trainer.model.train()
        trainer.step(inputs, labels, smoothed_ce(0.1), 0.01)
        found.append(
            (
                inputs,
                trainer.loss_sum,
                torch.cat([p.detach().flatten() for p in trainer.model.parameters()]),
            )
        )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mixing", ["none", "cutmix", "mixup"])
def test_compiled_augmentation_is_the_cpus(mixing):
    cpu = open_device(Runtime(device="cpu"))
    recipe = Relabel(mixing=mixing, batch_size=16, cutout=0.4)
    epochs = [
        DistilledBatches(images(on), recipe, 8, 10**4).epoch(2) for on in (cpu, device("auto"))
    ]
    for (one, _), (other, _) in zip(*epochs, strict=True):
        torch.testing.assert_close(other.cpu(), one, rtol=0, atol=1e-4)


def test_evaluation_agrees_with_the_cpus():
    cpu = open_device(Runtime(device="cpu"))
    on = [cpu, device("always")]
    found = [images(one, 200).evaluate(network(one)) for one in on]
    assert found[1] == pytest.approx(found[0], abs=1.0)  # an image or two may change sides


def test_a_resumed_training_ends_as_an_undisturbed_one_up_to_rounding(tmp_path):
    undisturbed = train(device("always"), tmp_path / "undisturbed")
    with pytest.raises(Interrupted):
        train(device("always"), tmp_path, stop_after=8)
    assert losses(train(device("always"), tmp_path)) == pytest.approx(losses(undisturbed), rel=0.05)
