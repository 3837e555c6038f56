"""Ten steps of the recover loop against a plain loop written from docs/fidelity.md, from equal
starts and equal draws.

Adam with β₂ = 0.9 follows signs, so that a difference grows a hundredfold in ten steps: hence
float64, and ten steps.
"""

from __future__ import annotations

import gc
import math
import weakref
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tests.golden.plain_recovery import (
    DATA,
    MEAN,
    SIZE,
    STD,
    STEPS,
    lowest,
    network,
    recipe,
    recover,
)
from torch import nn

from cda.config.recipe import Recover
from cda.config.settings import Runtime
from cda.engine import recovery as recovery_module
from cda.engine.blocks import Block, blocks_of, stack_steps, start_images, step_views
from cda.engine.checkpoint import Checkpoint
from cda.engine.device import Device
from cda.engine.objective import Objective
from cda.engine.recovery import Recovery
from cda.errors import ArtifactError

torch.set_num_threads(1)

MACHINE = Device(Runtime(device="cpu"), torch.device("cpu"), None)
BLOCKS = [Block(0, 0, 4), Block(0, 4, 8), Block(3, 0, 4)]
RECIPES = {
    "constant": recipe(mode="constant", min_crop=0.08),
    "cosine": recipe(scheduler="cosine"),
    "linear": recipe(scheduler="linear", milestone=0.5),
    "step": recipe(scheduler="step", milestone=0.3, max_crop=0.9),
    "reverse": recipe(mode="reverse", milestone=0.5),
    "full image": recipe(mode="constant", min_crop=1.0, flip=0.0, jitter=0, alpha_bn=0.01),
    "per image": recipe(mode="constant", per_image=True),
    "equal layers": recipe(mode="constant", first_bn_multiplier=1.0, alpha_bn=1.0, seed=5),
}


def begun(
    model: nn.Module,
    blocks: list[Block],
    values: Recover,
    dtype: torch.dtype = torch.float64,
    device: Device = MACHINE,
) -> Recovery:
    objective = Objective(model, len(blocks), values, device, values.iterations)
    return Recovery(objective, blocks, values, DATA, dtype)


def recovered(
    values: Recover,
    blocks: list[Block],
    dtype: torch.dtype = torch.float64,
    steps: int = STEPS,
    **options: Any,
) -> Recovery:
    recovery = begun(network(dtype), blocks, values, dtype, **options)
    for _ in range(steps):
        recovery.step()
    recovery.objective.close()
    return recovery


@cache
def precise(name: str) -> Recovery:
    """All blocks packed, in float64."""
    return recovered(RECIPES[name], BLOCKS)


# The packed loop equals it


def test_views_of_a_step_have_the_recipes_width_whatever_was_drawn():
    """Of one step, all rolls are zero now and then; a step is compiled for one width."""
    values, block = recipe(jitter=1), [Block(0, 0, 4)]
    drawn = [stack_steps(block, values, range(step, step + 1), SIZE) for step in range(STEPS)]
    assert not all(views[..., 5:].any() for views in drawn)
    assert {views.shape for views in drawn} == {(1, 1, 7)}
    assert stack_steps(block, recipe(jitter=0), range(2), SIZE).shape == (2, 1, 5)


def test_steps_drawn_at_once_are_those_drawn_one_by_one(monkeypatch):
    own = recovered(RECIPES["cosine"], BLOCKS)
    monkeypatch.setattr(recovery_module, "AHEAD", 3)
    other = recovered(RECIPES["cosine"], BLOCKS)
    assert torch.equal(own.images, other.images)
    assert own.trace == other.trace


def test_losses_are_noted_twenty_times_and_at_both_ends():
    values = recipe(iterations=40)
    steps = [row["step"] for row in recovered(values, BLOCKS[:1], steps=40).trace]
    assert steps == [1, *range(2, 41, 2)]


def test_a_closed_objective_releases_the_last_steps_memory_without_the_collector():
    gc.collect()
    gc.disable()
    try:
        recovery = begun(network(), BLOCKS[:1], recipe(), torch.float64)
        recovery.objective(recovery.images, torch.tensor([[0, 0, SIZE, SIZE, 0]]), recovery.labels)
        held = weakref.ref(recovery.images)
        recovery.objective.close()
        del recovery
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", RECIPES)
def test_ten_steps_are_those_of_the_recover(name):
    values, block = RECIPES[name], BLOCKS[1]
    expected, losses = recover(block, values)
    own = recovered(values, [block])
    torch.testing.assert_close(own.images.detach(), expected, rtol=0, atol=1e-8)
    assert [row["step"] for row in own.trace] == list(range(1, STEPS + 1))
    assert [(row["ce"][0], row["bn"][0]) for row in own.trace] == [
        pytest.approx(both, abs=1e-8) for both in losses
    ]
    assert (expected - torch.from_numpy(start_images(block, values.seed, SIZE))).abs().mean() > 0.3


@pytest.mark.parametrize("name", RECIPES)
def test_blocks_packed_together_are_each_as_alone(name):
    together = precise(name)
    for block, images in zip(BLOCKS, together.images.detach().split(4), strict=True):
        alone, losses = recover(block, RECIPES[name])
        torch.testing.assert_close(images, alone, rtol=0, atol=1e-8)
        torch.testing.assert_close(
            images, recovered(RECIPES[name], [block]).images.detach(), rtol=0, atol=1e-8
        )
        last = together.trace[-1]
        index = BLOCKS.index(block)
        assert (last["ce"][index], last["bn"][index]) == pytest.approx(losses[-1], abs=1e-8)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("compiling", ["never", pytest.param("auto", marks=pytest.mark.compiler)])
def test_float32_follows_float64_for_ten_steps(name, compiling):
    device = Device(Runtime(device="cpu", compile=compiling), torch.device("cpu"), None)
    fast = recovered(RECIPES[name], BLOCKS, torch.float32, device=device).images.detach()
    assert fast.dtype == torch.float32
    assert device.compiles == (compiling == "auto")
    assert (fast - precise(name).images.detach()).abs().quantile(
        0.999
    ) < 3e-4  # a pixel whose slope is near zero may take the other sign


# Draws


@pytest.mark.parametrize("name", RECIPES)
def test_boxes_keep_to_the_modes_bounds_at_every_step(name):
    values, slack = RECIPES[name], 1 / 224  # sides are rounded to pixels
    for step in range(STEPS):
        low, ratios = lowest(values, step), []
        for shard in range(40):
            boxes = step_views(Block(shard, 0, 4), values, step, 224).boxes
            assert len(boxes) == (4 if values.per_image else 1)
            ratios += (boxes[:, 2] * boxes[:, 3] / 224**2).tolist()
        assert min(ratios) > low - slack
        assert low > 0.5 or min(ratios) < low + 0.2
        assert all(
            ratio < values.max_crop + slack or ratio == 1 for ratio in ratios
        )  # 1: ten misfits


def test_draws_belong_to_the_block_the_seed_and_the_step():
    values, block = RECIPES["constant"], BLOCKS[0]
    start = start_images(block, 0, SIZE)
    assert np.array_equal(start, start_images(block, 0, SIZE))
    for other in (BLOCKS[1], BLOCKS[2], Block(1, 0, 4)):
        assert not np.array_equal(start, start_images(other, 0, SIZE))
    assert not np.array_equal(start, start_images(block, 1, SIZE))
    steps = [step_views(block, values, step, 224).boxes.tolist() for step in range(STEPS)]
    assert steps == [step_views(block, values, step, 224).boxes.tolist() for step in range(STEPS)]
    assert len({str(boxes) for boxes in steps}) == STEPS
    other = [
        step_views(block, recipe(mode="constant", seed=1), step, 224).boxes.tolist()
        for step in range(STEPS)
    ]
    assert steps != other


def test_start_is_standard_normal():
    start = start_images(Block(0, 0, 100), 0, 32)
    assert start.shape == (100, 3, 32, 32)
    assert start.mean() == pytest.approx(0, abs=4 / math.sqrt(start.size))
    assert start.std() == pytest.approx(1, abs=4 / math.sqrt(2 * start.size))


@pytest.mark.parametrize(
    ("classes", "size", "expected"),
    [
        (10, 100, [(0, 10)]),
        (200, 100, [(0, 100), (100, 200)]),
        (250, 100, [(0, 100), (100, 200), (200, 250)]),
    ],
)
def test_a_shard_is_cut_into_blocks_of_consecutive_classes(classes, size, expected):
    assert blocks_of(7, classes, size) == [Block(7, first, last) for first, last in expected]


# Images


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_pixel_stays_in_the_valid_range(dtype):
    recovery = begun(network(dtype), BLOCKS, recipe(lr=3.0), dtype)
    mean, std = (torch.tensor(v, dtype=dtype).view(3, 1, 1) for v in (MEAN, STD))
    low, high = -mean / std, (1 - mean) / std
    assert (recovery.images < low).any()  # the start is not clamped
    for _ in range(4):
        recovery.step()
        assert (recovery.images >= low).all()
        assert (recovery.images <= high).all()
    touched = [(recovery.images == bound).any(dim=(0, 2, 3)).all() for bound in (low, high)]
    assert all(touched)
    recovery.objective.close()


def test_pixels_are_truncated_not_rounded():
    recovery = begun(network(), [BLOCKS[0]], recipe(), torch.float64)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    unit = torch.linspace(-0.02, 1.02, 4 * 3 * SIZE * SIZE, dtype=torch.float64).view(
        4, 3, SIZE, SIZE
    )
    with torch.no_grad():
        recovery.images.copy_((unit - mean) / std)
    found = recovery.pixels()
    assert (found.shape, found.dtype) == ((4, SIZE, SIZE, 3), np.uint8)
    for (i, c, y, x), value in np.ndenumerate(unit.numpy()):
        assert found[i, y, x, c] == int(min(max(value, 0), 1) * 255)
    recovery.objective.close()


# Going on, and ending


@pytest.mark.parametrize("done", [1, 4, 9])
def test_going_on_from_a_checkpoint_gives_the_same_bits(tmp_path, done):
    values, undisturbed = RECIPES["cosine"], recovered(RECIPES["cosine"], BLOCKS, torch.float32)
    checkpoint = Checkpoint(tmp_path / "state.safetensors", "key", 60)
    checkpoint.save(recovered(values, BLOCKS, torch.float32, steps=done).state())
    resumed = begun(network(torch.float32), BLOCKS, values, torch.float32)
    resumed.restore(checkpoint.load())
    assert resumed.done == done
    while resumed.done < STEPS:
        resumed.step()
    assert torch.equal(resumed.images, undisturbed.images)
    assert resumed.trace == undisturbed.trace


def test_a_finished_recovery_leaves_the_model_untouched():
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recovery = begun(model, BLOCKS, recipe(), torch.float64)
    recovery.step()
    recovery.objective.close()
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_loss_that_is_no_number_names_the_block_in_one_line():
    model = network()
    model[-1].bias[5] = math.nan
    recovery = begun(model, BLOCKS[:2], recipe(), torch.float64)
    with pytest.raises(ArtifactError, match="shard 0, classes 0 to 3, step 1") as caught:
        recovery.step()
    assert "\n" not in str(caught.value)


def test_a_diverged_state_does_not_replace_the_last_good_one(tmp_path):
    checkpoint = Checkpoint(tmp_path / "state.safetensors", "key", 60)
    values = recipe(iterations=100)  # whose losses are looked at every five steps
    recovery = begun(model := network(), [BLOCKS[0]], values)
    recovery.label = "recover some-run"
    recovery.step()
    checkpoint.save(recovery.state())
    model[-1].bias[5] = math.nan
    recovery.step()
    with pytest.raises(
        ArtifactError, match=r"some-run: .* no number at shard 0, classes 0 to 3, step 2"
    ):
        checkpoint.save(recovery.state())
    assert checkpoint.load()["done"] == 1


# Seeded values of the path that runs by default


def test_the_default_path_gives_the_seeded_values():
    """The values are what the plain loop gives too.

    Another one here is another result for every recover run.
    """
    recovery = recovered(RECIPES["cosine"], BLOCKS, torch.float32)
    images = recovery.images.detach()
    assert images.mean().item() == pytest.approx(-0.16954357, abs=1e-5)
    assert images.square().mean().item() == pytest.approx(0.94576801, abs=1e-5)
    assert images[5, 1, 8, 3:7].tolist() == pytest.approx(
        [1.0826385, -1.3640363, 0.6297806, 0.5325219], abs=1e-4
    )
    assert recovery.trace[-1]["ce"] == pytest.approx([2.0844576, 2.2483376, 2.1169597], abs=1e-4)
    assert recovery.trace[-1]["bn"] == pytest.approx([20.5123328, 17.6544134, 17.7646124], abs=1e-3)
