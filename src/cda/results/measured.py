"""What the run JSONs say of a cell: its metric for every seed that has been run."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from cda.errors import ArtifactError
from cda.experiments import Cell, ExperimentSet
from cda.files import read_json
from cda.runs import Run


def measurements(experiments: ExperimentSet, cell: Cell) -> tuple[Run | None, list[float]]:
    """The cell's metric for each seed whose run JSON exists, and the run it is of: the best mean of several runs.

    Raises ArtifactError for a JSON of another run.
    """
    found = [(run, _of_run(experiments, run, str(cell.key["metric"]), cell.entry)) for run in cell.runs]
    measured = [(run, values) for run, values in found if values]
    if len(measured) < len(found):  # the best of several is known only when all are
        measured = measured if len(found) == 1 else []
    return max(measured, key=lambda one: statistics.fmean(one[1])) if measured else (cell.run, [])


def _of_run(experiments: ExperimentSet, run: Run, metric: str, entry: str) -> list[float]:
    found = []
    for seed in experiments.seeds(run):
        path = Path(experiments.layout.run_json(run, seed))
        if not path.is_file():
            continue
        told = read_json(path, "a run's measurements")
        value = told.get(metric)
        if entry:
            value = value.get(entry) if isinstance(value, dict) else None
        own = (told.get("run"), told.get("seed")) == (run.id, seed)
        percent = _percent(value)
        if not own or percent is None:
            what = f"{metric}{f' of {entry} classes' if entry else ''} of run {run.id}, seed {seed}"
            raise ArtifactError(f"{path}: does not hold {what}; delete it and run the cell again")
        found.append(percent)
    return found


def _percent(value: Any) -> float | None:
    """A number from 0 to 100; None for anything else that a JSON may hold."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100
    return float(value) if fits else None
