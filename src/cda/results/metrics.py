"""Every measured number of a scale in one JSON file, for `dvc metrics show` and `diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cda.config.experiment import KEYS
from cda.experiments.experiment_set import ExperimentSet
from cda.files import write_json
from cda.results.tables import row_of


def metrics(experiments: ExperimentSet) -> dict[str, Any]:
    """By table: how many cells are declared and measured, and each measured mean by its key."""
    found: dict[str, Any] = {}
    for name in experiments.tables:
        rows = [row_of(experiments, cell) for cell in experiments.cells(name)]
        measured = [row for row in rows if row["status"] == "measured"]
        counted: dict[str, Any] = {
            "cells": sum(row["status"] != "quoted" for row in rows),
            "measured": len(measured),
        }
        for row in measured:
            counted[" ".join(str(row[key]) for key in KEYS if row[key] != "")] = row["measured"]
        if counted["cells"]:
            found[name] = counted
    return found


def write(experiments: ExperimentSet, out: Path) -> None:
    """Write a scale's metrics to `out`; raises ArtifactError for run JSONs of other runs."""
    write_json(out, metrics(experiments))
