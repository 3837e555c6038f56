"""Every measured number of a scale in one JSON file, for `dvc metrics show` and `dvc metrics diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cda.experiments.experiment_set import ExperimentSet
from cda.files import write_json
from cda.results.tables import row_of

SHOWN = (
    "dataset",
    "method",
    "recovery_model",
    "ipc",
    "recovery_iterations",
    "setting",
    "validation_model",
    "metric",
)


def metrics(experiments: ExperimentSet) -> dict[str, Any]:
    """By table: how many cells are declared and measured, and what was measured, by the cell's key."""
    told: dict[str, Any] = {}
    for name in experiments.tables:
        rows = [row_of(experiments, cell) for cell in experiments.cells(name)]
        measured = [row for row in rows if row["status"] == "measured"]
        counted: dict[str, Any] = {
            "cells": sum(row["status"] != "quoted" for row in rows),
            "measured": len(measured),
        }
        for row in measured:
            counted[" ".join(str(row[key]) for key in SHOWN if row[key] != "")] = row["measured"]
        if counted["cells"]:
            told[name] = counted
    return told


def write(experiments: ExperimentSet, out: Path) -> None:
    """Write them to `out`; raises ArtifactError for run JSONs of other runs."""
    write_json(out, metrics(experiments))
