"""Matching against plain loops in float64, and what its draws depend on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cda.config.recipe import Architecture, Distill
from cda.config.settings import Dataset, Runtime
from cda.engine.device import Device, seed_everything
from cda.engine.distillation import Distillation, RealImages, start_images
from cda.engine.images import Images
from cda.errors import ArtifactError
from cda.method import dsa
from cda.method.networks import build
from cda.rng import generator

SIZE, CLASSES, IPC, EACH = 8, 3, 2, 7
DATA = Dataset(
    name="toy", layout="digits", classes=CLASSES, resolution=SIZE, mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.3, 0.25), get="x",
)  # fmt: skip
CPU = Device(Runtime(device="cpu"), torch.device("cpu"), None)
MEAN, STD = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (DATA.mean, DATA.std))


def network() -> nn.Module:
    return build("convnet2", CLASSES, SIZE, Architecture(stem="small", width=0.0625)).double()


def real_pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (CLASSES * EACH, SIZE, SIZE, 3), np.uint8)


def recipe(**values: Any) -> Distill:
    usual = {"match": "embedding", "iterations": 10, "lr": 0.5, "real_batch": 4, "augment": "dsa"}
    return Distill.model_validate(usual | values)


class Doubled(RealImages):
    """Real images in float64: uint8 over 255, normalised."""

    def batch(self, label: int, count: int, draws: np.random.Generator) -> torch.Tensor:
        own = self.of_class[label][torch.from_numpy(draws.permutation(EACH)[:count])]
        return plain(self.images.pixels[own].numpy())


def plain(pixels: np.ndarray) -> torch.Tensor:
    unit = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 255
    return (unit - MEAN) / STD


def begin(values: Distill, make: Callable[[], nn.Module] = network) -> Distillation:
    labels = np.repeat(np.arange(CLASSES), EACH)
    images = Images(real_pixels(), labels, DATA, CPU)
    by_class = Doubled.of(images, CLASSES)
    first = real_pixels().reshape(CLASSES, EACH, SIZE, SIZE, 3)[:, :IPC].reshape(-1, SIZE, SIZE, 3)
    start = start_images(values, CLASSES, IPC, SIZE, first)
    made = Distillation(by_class, start, values, make, torch.float64)
    if values.start == "real":
        with torch.no_grad():
            made.images.copy_(plain(first))
    return made


def real_batch(values: Distill, purpose: tuple[object, ...], label: int) -> torch.Tensor:
    order = generator(*purpose, "class", label, "real").permutation(EACH)[: values.real_batch]
    return plain(real_pixels().reshape(CLASSES, EACH, SIZE, SIZE, 3)[label][order])


def siamese(
    values: Distill, purpose: tuple[object, ...], label: int, images: torch.Tensor
) -> torch.Tensor:
    """Every image under the parameters that one image draws."""
    if values.augment == "none":
        return images
    operation = dsa.draw(generator(*purpose, "class", label, "dsa"), 1, SIZE)
    return torch.cat([dsa.apply(image[None], operation) for image in images])


def plain_momentum(
    images: torch.Tensor, buffer: torch.Tensor | None, values: Distill
) -> torch.Tensor:
    """SGD as torch defines it."""
    assert images.grad is not None
    buffer = images.grad if buffer is None else values.momentum * buffer + images.grad
    with torch.no_grad():
        images -= values.lr * buffer
    images.grad = None
    return buffer.clone()


@pytest.mark.parametrize("augment", ["dsa", "none"])
def test_ten_iterations_of_embeddings_are_the_plain_loop(augment):
    """One loss for all classes, and the gradient of their sum."""
    values = recipe(augment=augment)
    made = begin(values)
    images, buffer = made.images.detach().clone().requires_grad_(), None
    for iteration in range(10):
        purpose = ("distill", 0, iteration)
        seed_everything(*purpose, "weights")
        net: Any = network()
        total = torch.zeros((), dtype=torch.float64)
        for label in range(CLASSES):
            own = siamese(values, purpose, label, images[label * IPC : (label + 1) * IPC])
            real = siamese(values, purpose, label, real_batch(values, purpose, label))
            means = [net.features(batch).flatten(1).mean(0) for batch in (own, real)]
            total = total + ((means[0] - means[1].detach()) ** 2).sum()
        total.backward()
        buffer = plain_momentum(images, buffer, values)
        assert made.step() == pytest.approx(total.item(), abs=1e-10)
        torch.testing.assert_close(made.images, images, rtol=0, atol=1e-10)


def train(
    net: nn.Module, images: torch.Tensor, values: Distill, purpose: tuple[object, ...]
) -> None:
    """The network's own epochs, by SGD without momentum."""
    labels = torch.arange(CLASSES).repeat_interleave(IPC)
    for epoch in range(values.inner_epochs):
        order = generator(*purpose, "epoch", epoch, "order").permutation(len(images))
        for number in range(-(-len(images) // values.model_batch)):
            at = order[number * values.model_batch : (number + 1) * values.model_batch]
            batch = images[at]
            if values.augment == "dsa":
                batch = dsa.augment(batch, generator(*purpose, "epoch", epoch, "dsa", number))
            F.cross_entropy(net(batch), labels[at]).backward()
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter -= values.model_lr * parameter.grad
            net.zero_grad()


@pytest.mark.parametrize(
    "changed",
    [
        {"augment": "none", "start": "noise"},
        {"augment": "dsa"},
        {"augment": "none", "outer_steps": 3, "inner_epochs": 2, "model_batch": 4},
        {"augment": "dsa", "outer_steps": 2, "inner_epochs": 1, "model_batch": 4},
    ],
)
def test_iterations_of_gradients_are_the_plain_loop(changed):
    values = recipe(match="gradient", lr=0.1, **changed)
    made = begin(values)
    images, buffer = made.images.detach().clone().requires_grad_(), None
    for iteration in range(3):
        seed_everything("distill", 0, iteration, "weights")
        net = network()
        for outer in range(values.outer_steps):
            purpose = ("distill", 0, iteration, "outer", outer)
            total = torch.zeros((), dtype=torch.float64)
            for label in range(CLASSES):
                own = siamese(values, purpose, label, images[label * IPC : (label + 1) * IPC])
                real = siamese(values, purpose, label, real_batch(values, purpose, label))
                pair = []
                for batch in (own, real):
                    loss = F.cross_entropy(net(batch), torch.full((len(batch),), label))
                    pair.append(
                        torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
                    )
                for ours, reals in zip(*pair, strict=True):
                    for row, other in zip(ours, reals, strict=True) if ours.dim() > 1 else ():
                        a, b = row.flatten(), other.flatten().detach()
                        total = total + 1 - (a @ b) / (a.norm() * b.norm() + 1e-6)
            total.backward()
            net.zero_grad()
            buffer = plain_momentum(images, buffer, values)
            if outer + 1 < values.outer_steps:
                train(net, images.detach(), values, purpose)
        assert made.step() == pytest.approx(total.item(), abs=1e-8)
        torch.testing.assert_close(made.images, images, rtol=0, atol=1e-8)


def test_images_equal_to_all_real_ones_stay():
    """DM's distance is 0 where the distilled batch is the real one."""
    values = recipe(real_batch=IPC, augment="dsa")
    labels = np.repeat(np.arange(CLASSES), IPC)
    pixels = real_pixels()[: CLASSES * IPC]
    real = Doubled.of(Images(pixels, labels, DATA, CPU), CLASSES)
    real = Distillation(_All(real.images, real.of_class), pixels, values, network, torch.float64)
    with torch.no_grad():
        real.images.copy_(plain(pixels))
    before = real.images.detach().clone()
    assert real.step() == pytest.approx(0, abs=1e-20)
    torch.testing.assert_close(real.images.detach(), before, rtol=0, atol=1e-9)


class _All(Doubled):
    def batch(self, label: int, count: int, _draws: np.random.Generator) -> torch.Tensor:
        assert count == IPC
        return plain(self.images.pixels[self.of_class[label]].numpy())


@pytest.mark.parametrize("match", ["embedding", "gradient"])
def test_stopped_after_any_iteration_it_goes_on_to_the_same_bits(match):
    values = recipe(match=match, outer_steps=2, inner_epochs=1, model_batch=4)
    undisturbed = begin(values)
    states = []
    for _ in range(4):
        states.append(undisturbed.state() | {"images": undisturbed.images.detach().clone()})
        undisturbed.step()
    state = states[2] | {"optimizer": _halfway(values, 2)}
    other = begin(values)
    torch.manual_seed(99)
    other.restore(state)
    other.step()
    other.step()
    assert other.done == 4
    assert torch.equal(other.images, undisturbed.images)


def _halfway(values: Distill, iterations: int) -> dict[str, Any]:
    made = begin(values)
    for _ in range(iterations):
        made.step()
    return made.optimizer.state_dict()


def test_noise_is_drawn_class_by_class_and_is_normalised_already():
    values = recipe(start="noise", seed=5)
    noise = start_images(values, 50, 4, SIZE, np.empty(0, np.uint8))
    assert noise.dtype == np.float32
    assert noise.std() == pytest.approx(1, abs=0.02)
    few = start_images(values, 2, 4, SIZE, np.empty(0, np.uint8))
    np.testing.assert_array_equal(few, noise[:8])
    made = begin(values)
    first = start_images(values, CLASSES, IPC, SIZE, np.empty(0, np.uint8))
    np.testing.assert_array_equal(made.images.detach().permute(0, 2, 3, 1).float(), first)


def test_images_come_back_by_shard_and_class_as_shards_hold_them():
    made = begin(recipe(lr=1e-9))
    made.step()
    unit = made.unit_images()
    assert unit.shape == (IPC, CLASSES, SIZE, SIZE, 3)
    pixels = real_pixels().reshape(CLASSES, EACH, SIZE, SIZE, 3)[:, :IPC].swapaxes(0, 1)
    np.testing.assert_allclose(unit, pixels / 255, atol=1e-6)


def test_a_distance_that_is_no_number_ends_in_one_line():
    made = begin(recipe())
    with torch.no_grad():
        made.images[0] = float("nan")
    with pytest.raises(ArtifactError, match=r"distance is nan in iteration 0; lower .*distill\.lr"):
        made.step()
