"""Trajectory matching against plain loops in float64, and what its draws depend on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cda.config.recipe import Architecture, Distill
from cda.config.settings import Dataset, Runtime
from cda.engine.device import Device
from cda.engine.distillation import RealImages, start_images
from cda.engine.images import Images
from cda.engine.trajectory import TrajectoryMatching, require_memory
from cda.errors import ArtifactError, ConfigError
from cda.method import dsa
from cda.method.networks import build
from cda.rng import generator

SIZE, CLASSES, IPC = 8, 3, 2
COUNT = CLASSES * IPC
DATA = Dataset(
    name="toy", layout="digits", classes=CLASSES, resolution=SIZE, mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.3, 0.25), get="x",
)  # fmt: skip
CPU = Device(Runtime(device="cpu"), torch.device("cpu"), None)
LABELS = torch.arange(CLASSES).repeat_interleave(IPC)


def network() -> nn.Module:
    return build("convnet2", CLASSES, SIZE, Architecture(stem="small", width=0.0625)).double()


class Walks:
    """Three experts of six epochs whose weights walk at random."""

    count = 3

    def __init__(self) -> None:
        torch.manual_seed(1)
        size = sum(p.numel() for p in network().parameters())
        self.all = (0.05 * torch.randn(3, 7, size, dtype=torch.float64)).cumsum(1)

    def weights(self, expert: int, epoch: int) -> torch.Tensor:
        return self.all[expert, epoch]


WALKS = Walks()


def recipe(**values: Any) -> Distill:
    usual = {"match": "trajectory", "iterations": 10, "lr": 5.0, "step_lr": 1e-4, "max_start": 4}
    usual |= {"synthetic_steps": 3, "expert_epochs": 2, "step_size": 0.05}
    return Distill.model_validate(usual | values)


def begin(values: Distill) -> TrajectoryMatching:
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3), np.uint8)
    real = RealImages.of(Images(pixels, LABELS.numpy(), DATA, CPU), CLASSES)
    start = start_images(values, CLASSES, IPC, SIZE, pixels)
    return TrajectoryMatching(real, start, values, network, WALKS, torch.float64)


def plain_distance(
    values: Distill, iteration: int, images: torch.Tensor, beta: torch.Tensor
) -> torch.Tensor:
    """An iteration's distance, with the graph that its gradient goes through."""
    at = ("distill", 0, iteration)
    order = generator("distill", 0, "experts", iteration // 3).permutation(3)
    walk = WALKS.all[order[iteration % 3]]
    epoch = generator(*at, "epoch").integers(values.max_start)
    net, chunks, drawn = network(), [], 0
    theta = {}
    offset = 0
    for name, parameter in net.named_parameters():
        own = walk[epoch][offset : offset + parameter.numel()].view(parameter.shape)
        theta[name] = own.clone().requires_grad_()
        offset += parameter.numel()
    first, total = dict(theta), 0
    for step in range(values.synthetic_steps):
        if not chunks:
            permutation = generator(*at, "order", drawn).permutation(COUNT)
            size = values.synthetic_batch or COUNT
            chunks = [permutation[i : i + size] for i in range(0, COUNT, size)]
            drawn += len(chunks)
        chosen = chunks.pop()
        batch = images[chosen]
        if values.augment == "dsa":
            operation = dsa.draw(generator(*at, "step", step, "dsa"), len(chosen), SIZE)
            batch = dsa.apply(batch, operation)
        loss = F.cross_entropy(torch.func.functional_call(net, theta, (batch,)), LABELS[chosen])
        gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        flat = torch.cat([g.flatten() for g in gradients])
        total = total + flat
        theta = {n: w - beta * g for (n, w), g in zip(theta.items(), gradients, strict=True)}
        if values.backward == "two_pass":
            theta = {n: w.detach().requires_grad_() for n, w in theta.items()}
    start, target = walk[epoch], walk[epoch + values.expert_epochs]
    reached = torch.cat([w.flatten() for w in theta.values()])
    if values.backward == "two_pass":
        reached = torch.cat([w.flatten() for w in first.values()]).detach() - beta * total
    return ((reached - target) ** 2).sum() / ((start - target) ** 2).sum()


@pytest.mark.parametrize(
    "changed",
    [
        {"backward": "unrolled"},
        {"backward": "two_pass"},
        {"backward": "unrolled", "synthetic_batch": 4, "augment": "none"},
        {"backward": "two_pass", "synthetic_batch": 4, "synthetic_steps": 5},
    ],
)
def test_ten_iterations_are_the_plain_loop(changed):
    values = recipe(**changed)
    made = begin(values)
    images = made.images.detach().clone().requires_grad_()
    beta = torch.tensor(values.step_size, dtype=torch.float64, requires_grad=True)
    buffers: list[torch.Tensor | None] = [None, None]
    for iteration in range(10):
        distance = plain_distance(values, iteration, images, beta)
        pair = ((images, values.lr), (beta, values.step_lr))
        gradients = torch.autograd.grad(distance, (images, beta))
        for which, ((value, lr), gradient) in enumerate(zip(pair, gradients, strict=True)):
            before = buffers[which]
            buffer = gradient if before is None else values.momentum * before + gradient
            buffers[which] = buffer
            with torch.no_grad():
                value -= lr * buffer
        assert made.step() == pytest.approx(distance.item(), abs=1e-9)
        torch.testing.assert_close(made.images, images, rtol=0, atol=1e-9)
        assert made.learned()["step_size"] == pytest.approx(beta.item(), abs=1e-12)
    assert beta.item() != values.step_size


@pytest.mark.parametrize("backward", ["unrolled", "two_pass"])
def test_stopped_after_any_iteration_it_goes_on_to_the_same_bits(backward):
    values = recipe(backward=backward)
    undisturbed, first = begin(values), begin(values)
    for _ in range(4):
        undisturbed.step()
    for _ in range(2):
        first.step()
    other = begin(values)
    torch.manual_seed(99)
    other.restore(first.state())
    other.step()
    other.step()
    assert other.done == 4
    assert torch.equal(other.images, undisturbed.images)
    assert other.learned() == undisturbed.learned()


def test_every_expert_is_followed_before_one_is_followed_again():
    followed = []

    class Noted(Walks):
        def weights(self, expert: int, epoch: int) -> torch.Tensor:
            followed.append((expert, epoch))
            return super().weights(expert, epoch)

    values = recipe(max_start=2, expert_epochs=3)
    made = begin(values)
    made.experts = Noted()
    for _ in range(6):
        made.step()
    starts, ends = followed[::2], followed[1::2]
    assert sorted(expert for expert, _ in starts[:3]) == [0, 1, 2]
    assert sorted(expert for expert, _ in starts[3:]) == [0, 1, 2]
    assert {epoch for _, epoch in starts} == {0, 1}
    assert [end[1] - start[1] for start, end in zip(starts, ends, strict=True)] == [3] * 6


def test_a_step_size_below_zero_ends_in_one_line():
    made = begin(recipe(step_lr=1e6))
    with pytest.raises(ArtifactError, match=r"step size is -.* in iteration 0; .*step_lr"):
        made.step()


def test_what_does_not_fit_into_memory_is_refused_and_tesla_is_named():
    """IPC 50 of CIFAR-100 with 80 steps: 5 MB × 5,000 × 80 = 2 TB."""
    values, device = recipe(synthetic_steps=80), torch.device("cpu")
    with pytest.raises(ConfigError, match=r"80 steps on 5000 images \(about 2000\.0 GB\).*TESLA"):
        require_memory(values, 5000, 32, 1.0, device)
    with pytest.raises(ConfigError, match=r"about 2000\.0 GB"):
        require_memory(values, 5000, 64, 0.25, device)
    require_memory(values, 5000, 8, 1e-4, device)
    require_memory(recipe(synthetic_steps=80, backward="two_pass"), 5000, 32, 1.0, device)
