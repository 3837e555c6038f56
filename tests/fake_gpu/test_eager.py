"""Every stage's eager step on a CUDA device without data: devices never mix, waits are counted.

A wait is a read of the device, a copy from pageable memory or a synchronisation; a copy is one
from pinned memory. Where a change moves a number on purpose, the new one belongs here.
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

SQUEEZE = {"first step": (3, 0), "step": (0, 0)}  # views, squares, order
HARD = {"first step": (5, 0), "step": (0, 0)}  # views, squares, order, partners, mixing
STORED = {
    "relabel first batch": (8, 0),  # the five above, and a batch's
    "relabel batch": (3, 0),  # indices there, a check of the logits, rows back
    "first step": (6, 0),  # the five above, rows
    "step": (0, 0),
}
RECOVER = {
    "first step": (3, 0),  # views there, two losses back
    "step": (1, 0),
    "save": (6, 0),  # images, Adam's three tensors, two losses
    "restore and step": (5, 0),
    "pixels": (1, 0),
}
EXPECTED: dict[str, dict[str, tuple[int, int]]] = {
    "squeeze sgd": SQUEEZE,
    "squeeze adam": SQUEEZE,
    "squeeze adamw": SQUEEZE,
    "squeeze from the disk": {"first step": (3, 1), "step": (0, 1)},  # a pinned copy of the batch
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
    "score": {"set": (6, 0)},
    "recover 1 block": RECOVER,
    "recover 2 blocks": RECOVER,
    "recover per image": RECOVER,
    "recover part": {"part": (35, 0)},  # 2 groups of 2 steps, 2 to measure memory, a snapshot
    **{
        f"dsa {name}": {"batch": (1, 0)}
        for name in ("color", "crop", "cutout", "flip", "scale", "rotate")
    },
    "continual": {"first step": (2, 0), "step": (1, 0), "accuracy": (3, 0)},
    # a copy of each tensor
    "checkpoint sgd": {"save": (14, 0), "restore": (14, 0), "step": (0, 0)},
    "checkpoint adam": {"save": (24, 0), "restore": (24, 0), "step": (0, 0)},
    "checkpoint adamw": {"save": (24, 0), "restore": (24, 0), "step": (0, 0)},
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
    assert {phase: tuple(counts[:2]) for phase, counts in phases.items()} == EXPECTED[stage]


def test_an_operation_on_two_devices_fails(measured):
    assert "DeviceMismatch" in measured["mixed devices"]["error"]


def test_every_stage_has_its_numbers(measured):
    assert set(measured) == {*EXPECTED, "mixed devices"}
