"""Run ids do not move: everything measured hangs on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cda.config.load import load_settings
from cda.experiments.experiment_set import ExperimentSet

CONFIG = Path(__file__).parents[3] / "config"
IDS = Path(__file__).with_name("run_ids.txt")  # "scale id" a line, of all tables and figures


@pytest.mark.parametrize("scale", ["paper", "mini", "demo", "smoke"])
def test_every_run_keeps_its_id(scale):
    before = {line.split()[1] for line in IDS.read_text().splitlines() if line.startswith(scale)}
    settings = load_settings({"scale": scale, "controls": "all"}, CONFIG)
    now = set(ExperimentSet(settings, CONFIG).runs())
    assert sorted(before - now) == []
