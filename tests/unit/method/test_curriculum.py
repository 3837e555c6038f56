"""The crop schedule against the paper's Algorithm 1 and numbers worked out by hand.

The images' learning rate.
"""

from __future__ import annotations

import math

import pytest

from cda.method.curriculum import image_lr, min_crop

# β_l = 0.2 and β_u = 0.8 over 8 steps: (mode, scheduler, milestone, step, lower bound), worked out
# by hand
BY_HAND = [
    ("constant", "cosine", 0.5, 0, 0.2),
    ("constant", "cosine", 0.5, 4, 0.2),
    ("constant", "cosine", 0.5, 7, 0.2),
    ("reverse", "cosine", 0.5, 0, 0.2),
    ("reverse", "cosine", 0.5, 3, 0.2),
    ("reverse", "cosine", 0.5, 4, 0.8),
    ("reverse", "cosine", 0.5, 7, 0.8),
    ("reverse", "cosine", 0.0, 0, 0.8),
    ("reverse", "cosine", 1.0, 7, 0.2),
    ("curriculum", "step", 0.5, 0, 0.8),
    ("curriculum", "step", 0.5, 3, 0.8),
    ("curriculum", "step", 0.5, 4, 0.2),
    ("curriculum", "step", 0.5, 7, 0.2),
    ("curriculum", "step", 1.0, 7, 0.8),
    ("curriculum", "linear", 0.5, 0, 0.8),
    ("curriculum", "linear", 0.5, 2, 0.5),
    ("curriculum", "linear", 0.5, 3, 0.35),
    ("curriculum", "linear", 0.5, 4, 0.2),
    ("curriculum", "linear", 0.5, 5, 0.2),
    ("curriculum", "linear", 1.0, 7, 0.275),
    ("curriculum", "cosine", 0.5, 0, 0.8),
    ("curriculum", "cosine", 0.5, 1, 0.712132034),
    ("curriculum", "cosine", 0.5, 2, 0.5),
    ("curriculum", "cosine", 0.5, 3, 0.287867966),
    ("curriculum", "cosine", 0.5, 4, 0.2),
    ("curriculum", "cosine", 0.5, 7, 0.2),
    ("curriculum", "cosine", 1.0, 4, 0.5),
    ("curriculum", "cosine", 1.0, 7, 0.222836140),
    ("curriculum", "step", 0.0, 0, 0.2),
    ("curriculum", "linear", 0.0, 0, 0.2),
    ("curriculum", "cosine", 0.0, 0, 0.2),
]


@pytest.mark.parametrize(("mode", "scheduler", "milestone", "step", "expected"), BY_HAND)
def test_lower_bound_at_ends_middle_and_milestone(mode, scheduler, milestone, step, expected):
    bound = min_crop(
        step, 8, mode=mode, scheduler=scheduler, milestone=milestone, low=0.2, high=0.8
    )
    assert bound == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("milestone", [0.1, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("scheduler", ["step", "linear", "cosine"])
def test_equals_the_papers_algorithm_at_its_default_bounds(scheduler, milestone):
    steps, low, high, gamma = 40, 0.08, 1.0, 0.92
    last = milestone * steps
    for s in range(steps):
        if s >= last:
            alpha = low
        elif scheduler == "step":
            alpha = high
        elif scheduler == "linear":
            alpha = low + gamma * (high - s / last)
        else:
            alpha = low + gamma * (high + math.cos(math.pi * s / last)) / 2
        bound = min_crop(s, steps, scheduler=scheduler, milestone=milestone)
        assert bound == pytest.approx(alpha, abs=1e-12), s


def test_a_milestone_between_two_steps_ends_the_curriculum_at_the_second():
    bounds = [min_crop(s, 10, scheduler="step", milestone=0.25, low=0.1) for s in range(5)]
    assert bounds == [1.0, 1.0, 1.0, 0.1, 0.1]


@pytest.mark.parametrize("scheduler", ["linear", "cosine"])
def test_bound_falls_all_along_and_never_leaves_its_range(scheduler):
    bounds = [min_crop(s, 50, scheduler=scheduler, low=0.4) for s in range(50)]
    assert bounds == sorted(bounds, reverse=True)
    assert len(set(bounds)) == 50
    assert bounds[0] == 1.0
    assert bounds[-1] > 0.4


def test_equal_bounds_make_every_mode_constant():
    for mode in ("constant", "curriculum", "reverse"):
        assert {min_crop(s, 9, mode=mode, milestone=0.4, low=1.0, high=1.0) for s in range(9)} == {
            1.0
        }


@pytest.mark.parametrize(
    "wrong",
    [
        {"low": 0.0},
        {"low": -0.1},
        {"low": 0.9, "high": 0.8},
        {"high": 1.1},
        {"milestone": -0.1},
        {"milestone": 1.1},
        {"step": -1},
        {"step": 8},
        {"low": math.nan},
        {"milestone": math.nan},
        {"mode": "easy"},
        {"scheduler": "exponential"},
    ],
)
def test_values_out_of_range_are_refused(wrong):
    step = wrong.pop("step", 0)
    with pytest.raises(ValueError, match=r"out of range|unknown"):
        min_crop(step, 8, **wrong)


def test_learning_rate_falls_as_a_cosine_from_its_full_value_towards_zero():
    assert image_lr(0, 10, 0.25) == 0.25
    assert image_lr(5, 10, 0.25) == pytest.approx(0.125)
    assert image_lr(9, 10, 0.25) == pytest.approx(0.125 * (1 - 0.951056516))
    assert image_lr(0, 1, 0.25) == 0.25


def test_learning_rate_is_torchs_cosine_annealing_by_step():
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30)
    for step in range(30):
        assert image_lr(step, 30, 0.4) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        schedule.step()
