"""Differences between cells of a table, each with its confidence interval over seeds.

A claim of the paper is judged by such a difference and not by two means.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from cda.config.experiment import KEYS
from cda.errors import ConfigError
from cda.experiments.cells import Cell
from cda.experiments.experiment_set import ExperimentSet
from cda.results.measured import measurements

HEAD = ["", "data set", "ipc", "difference", "95 % interval", "seeds"]
HEADING = "Differences in points, with Welch's 95 % confidence interval over the validation seeds:"
# Cells are compared by all keys but this one, which real images do not have.
COMPARED = tuple(key for key in KEYS if key != "recovery_iterations")


def interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float] | None:
    """Welch's 95 % confidence interval of mean(first) − mean(second).

    None if either has fewer than two values; the difference itself if neither varies.

    >>> [round(end, 2) for end in interval([3.0, 4.0, 5.0], [1.0, 2.0, 3.0])]
    [-0.27, 4.27]
    """
    from scipy.stats import ttest_ind  # type: ignore[import-untyped]  # half a second

    if min(len(first), len(second)) < 2:
        return None
    if len(set(first)) == len(set(second)) == 1:
        return (first[0] - second[0],) * 2
    found = ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    return float(found.low), float(found.high)


def pairs(experiments: ExperimentSet, name: str) -> Iterator[tuple[str, Cell, Cell]]:
    """A table's declared contrasts: the claim, a cell, and the cell that it is compared with.

    Raises ConfigError for a contrast that finds no two cells, unless `controls=none` may have
    removed them.
    """
    cells = {
        tuple(str(cell.key[key]) for key in COMPARED): cell for cell in experiments.cells(name)
    }
    for contrast in experiments.tables[name].contrasts:
        found = 0
        for key, cell in cells.items():
            named = dict(zip(COMPARED, key, strict=True))
            other = cells.get(tuple((named | contrast.against)[key] for key in COMPARED))
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
    """A heading and a row for each contrast whose cells are both measured; nothing if none is."""
    rows = []
    for claim, cell, other in pairs(experiments, name):
        first, second = (measurements(experiments, one).values for one in (cell, other))
        if first and second:
            ends = interval(first, second)
            rows.append(
                [
                    claim,
                    str(cell.key["dataset"]),
                    str(cell.key["ipc"]),
                    f"{statistics.fmean(first) - statistics.fmean(second):+.2f}",
                    f"{ends[0]:+.2f} to {ends[1]:+.2f}" if ends else "too few seeds",
                    f"{len(first)} against {len(second)}",
                ]
            )
    return [HEAD, *rows] if rows else []
