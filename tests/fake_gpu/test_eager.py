"""Every stage's eager step on a CUDA device without data: devices never mix, waits are counted.

A wait is a read of the device, a copy from or to pageable memory or a synchronisation; a copy is
one that the host does not wait for. Where a change moves a number on purpose, the new one belongs
here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.fake_gpu, pytest.mark.slow]

Phases = dict[str, tuple[int, ...]]  # waits and copies, and launches where they are the point
SQUEEZE: Phases = {"first step": (0, 3), "step": (0, 0)}  # views, squares, order
HARD: Phases = {"first step": (0, 5), "step": (0, 0)}  # views, squares, order, partners, mixing
STORED: Phases = {
    "relabel first batch": (0, 8),  # the five above; a batch's indices there, two results back
    "relabel batch": (1, 3),  # waits for the batch before
    "first step": (0, 6),  # the five above, rows
    "step": (0, 0),
}
RECOVER: Phases = {
    "first step": (2, 1),  # many steps' views there, two losses back
    "step": (0, 0),
    "save": (7, 0),  # images, Adam's three tensors, the learning rate, two losses
    "restore and step": (4, 0),
    "pixels": (1, 0),
}
EXPECTED: dict[str, Phases] = {
    "squeeze sgd": SQUEEZE,
    "squeeze adam": SQUEEZE,
    "squeeze adamw": SQUEEZE,
    "squeeze replayed": SQUEEZE,
    "squeeze from the disk": {"first step": (0, 4), "step": (0, 1)},  # a copy of the batch
    "validate q16 top0 none": STORED,
    "validate q16 top0 cutmix": STORED,
    "validate q16 top0 mixup": STORED,
    "validate q8 top0 cutmix": STORED,
    "validate q4 top0 cutmix": STORED,
    "validate q16 top3 cutmix": STORED,
    "validate q8 top3 cutmix": STORED,
    "validate q4 top3 cutmix": STORED,
    "validate online none": HARD,
    "validate online cutmix": HARD,
    "validate online mixup": HARD,
    "validate hard none": HARD,
    "validate hard cutmix": HARD,
    "validate hard mixup": HARD,
    "evaluate": {"set": (1, 0)},
    "score": {"set": (4, 2)},  # of each of two crops: views and indices there, the sum back
    "recover 1 block": RECOVER,
    "recover 2 blocks": RECOVER,
    "recover per image": RECOVER,
    # the learning rate, the views' place, and all that was recorded
    "recover replayed": {"first step": (2, 1), "step": (0, 0, 3)},
    "recover part": {"part": ()},  # it runs; what it does once is not counted
    **{
        f"dsa {name}": {"batch": (0, 1)}
        for name in ("color", "crop", "cutout", "flip", "scale", "rotate")
    },
    "continual": {"first step": (0, 2), "step": (0, 1), "accuracy": (3, 0)},
    # of each tensor, the learning rate's not restored
    "checkpoint sgd": {"save": (15, 0), "restore": (14, 0), "step": (0, 0)},
    "checkpoint adam": {"save": (25, 0), "restore": (24, 0), "step": (0, 0)},
    "checkpoint adamw": {"save": (25, 0), "restore": (24, 0), "step": (0, 0)},
    # what the census must see: an index, a copy, two reads, a fence; and a pinned copy
    "waits": {"step": (5, 1)},
}


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, Any]]:
    """All stages, in a process of their own, which torch's patches do not leave."""
    command = [sys.executable, "-m", "tests.fake_gpu.eager"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("stage", EXPECTED)
def test_waits_and_copies_of_a_stage(measured, stage):
    phases = measured[stage]
    assert "error" not in phases, phases["error"]
    expected = EXPECTED[stage]
    found = {name: tuple(counts[: len(expected[name])]) for name, counts in phases.items()}
    assert found == expected


def test_an_operation_on_two_devices_fails(measured):
    assert "DeviceMismatch" in measured["mixed devices"]["error"]


def test_every_stage_has_its_numbers(measured):
    assert set(measured) == {*EXPECTED, "mixed devices"}
