"""From run JSONs to a cell's numbers: its metric for every seed that has been run."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, NamedTuple

from cda.errors import ArtifactError
from cda.experiments.cells import Cell
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.runs import Run
from cda.files import read_json


class Measured(NamedTuple):
    """A cell's run, its metric in percent for every seed that was run, and their devices."""

    run: Run | None
    values: list[float]
    devices: list[str]


def measurements(experiments: ExperimentSet, cell: Cell) -> Measured:
    """A cell's measurements; of several runs those with the best mean, once all are measured.

    Raises ArtifactError for a JSON of another run, or without the cell's metric.
    """
    found = [_of_run(experiments, run, str(cell.key["metric"]), cell.entry) for run in cell.runs]
    measured = [one for one in found if one.values]
    if len(measured) < len(found):  # the best of several is known only when all are
        measured = measured if len(found) == 1 else []
    return (
        max(measured, key=lambda one: statistics.fmean(one.values))
        if measured
        else Measured(cell.run, [], [])
    )


def _of_run(experiments: ExperimentSet, run: Run, metric: str, entry: str) -> Measured:
    found, devices = [], set()
    for seed in experiments.seeds(run):
        path = Path(experiments.layout.run_json(run, seed))
        if not path.is_file():
            continue
        record = read_json(path, "a run's measurements")
        value = record.get(metric)
        if entry:
            value = value.get(entry) if isinstance(value, dict) else None
        own = (record.get("run"), record.get("seed")) == (run.id, seed)
        percent = _percent(value)
        if not own or percent is None:
            what = f"{metric}{f' of {entry} classes' if entry else ''} of run {run.id}, seed {seed}"
            raise ArtifactError(f"{path}: does not hold {what}; delete it and run the cell again")
        found.append(percent)
        devices.add(_device(record))
    return Measured(run, found, sorted(devices - {""}))


def _device(record: dict[str, Any]) -> str:
    """The device of a run JSON; empty if it holds none as text."""
    provenance = record.get("provenance")
    device = provenance.get("device") if isinstance(provenance, dict) else None
    return device if isinstance(device, str) else ""


def _percent(value: Any) -> float | None:
    """A JSON value as a number from 0 to 100; None for anything else."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100
    return float(value) if fits else None
