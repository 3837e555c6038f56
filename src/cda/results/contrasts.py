"""Differences between cells of a table, each with its confidence interval over seeds.

What a claim is judged by.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

from scipy.special import stdtrit  # type: ignore[import-untyped]

from cda.config.experiment import KEYS
from cda.errors import ConfigError
from cda.experiments.cells import Cell
from cda.experiments.experiment_set import ExperimentSet
from cda.results.measured import measurements

HEAD = ["", "data set", "ipc", "difference", "95 % interval", "seeds"]
HEADING = "Differences in points, with Welch's 95 % confidence interval over the validation seeds:"
SHARED = tuple(key for key in KEYS if key != "recovery_iterations")  # real images know none


def interval(
    ours: Sequence[float], theirs: Sequence[float], level: float = 0.95
) -> tuple[float, float] | None:
    """Welch's confidence interval of mean(ours) − mean(theirs); None if either has fewer than two
    values.

    >>> [round(end, 2) for end in interval([3.0, 4.0, 5.0], [1.0, 2.0, 3.0])]
    [-0.27, 4.27]
    """
    if min(len(ours), len(theirs)) < 2:
        return None
    parts = [statistics.variance(values) / len(values) for values in (ours, theirs)]
    difference, error = statistics.fmean(ours) - statistics.fmean(theirs), math.sqrt(sum(parts))
    if error == 0:
        return difference, difference
    freedom = sum(parts) ** 2 / sum(
        p**2 / (len(v) - 1) for p, v in zip(parts, (ours, theirs), strict=True)
    )
    reach = float(stdtrit(freedom, (1 + level) / 2)) * error
    return difference - reach, difference + reach


def pairs(experiments: ExperimentSet, name: str) -> Iterator[tuple[str, Cell, Cell]]:
    """A table's declared contrasts: what is claimed, a cell, and the cell that it is held against.

    Raises ConfigError for a contrast that finds no two cells; controls that nobody asked for may be
    what is missing.
    """
    cells = {tuple(str(cell.key[key]) for key in SHARED): cell for cell in experiments.cells(name)}
    for contrast in experiments.tables[name].contrasts:
        found = 0
        for key, cell in cells.items():
            named = dict(zip(SHARED, key, strict=True))
            other = cells.get(tuple((named | contrast.against)[key] for key in SHARED))
            if contrast.of.items() <= named.items() and other is not None:
                yield contrast.claim, cell, other
                found += 1
        if not found and experiments.settings.controls != "none":
            where = f"{experiments.config / 'experiments' / name}.yaml"
            raise ConfigError(
                f"{where}: contrasts: {contrast.claim!r} finds no two cells; name keys that "
                "cells have"
            )


def contrast_rows(experiments: ExperimentSet, name: str) -> list[list[str]]:
    """The contrasts of which both cells are measured, for people, under their heading.

    Nothing if there are none.
    """
    found = []
    for claim, cell, other in pairs(experiments, name):
        ours, theirs = (
            measurements(experiments, cell).values,
            measurements(experiments, other).values,
        )
        if ours and theirs:
            ends = interval(ours, theirs)
            told = f"{ends[0]:+.2f} to {ends[1]:+.2f}" if ends else "too few seeds"
            difference = f"{statistics.fmean(ours) - statistics.fmean(theirs):+.2f}"
            where = [str(cell.key["dataset"]), str(cell.key["ipc"])]
            found.append([claim, *where, difference, told, f"{len(ours)} against {len(theirs)}"])
    return [HEAD, *found] if found else []
