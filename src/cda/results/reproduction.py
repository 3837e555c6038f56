"""docs/reproduction.md: how much of the paper has been measured, and how far from its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cda.config.load import load_settings, merge
from cda.experiments.experiment_set import ExperimentSet
from cda.results import contrasts
from cda.results.tables import aligned, table

SCALES = ("paper", "mini")  # those whose results are in git
HEAD = [
    "table",
    "cells reported",
    "measured",
    "mean delta",
    "worst delta",
    "where",
    "cells of ours",
    "measured",
]
INTRODUCTION = """\
# What has been reproduced

Made by `make docs` from the run JSONs in `results/`. Deltas are measured minus reported, in points.
Numbers that the paper quotes from other papers are not counted; cells that it does not report,
controls among them, are ours.
"""
SCALED = (
    "{} A delta to the paper then measures what the scale costs, and nothing about the paper. "
    "Settings are named as the tables declare them; `cda config show RUN` prints the values that "
    "ran."
)
READINGS = "What these tables show: [mini.md](mini.md#what-the-tables-show).\n"
CELL_KEYS = ("dataset", "method", "ipc", "recovery_model", "validation_model", "setting")


def page(overrides: Mapping[str, Any]) -> str:
    """The page under a configuration; raises ArtifactError for JSONs of other runs."""
    settings = [
        load_settings(merge(overrides, {"scale": scale, "cells": "present"})) for scale in SCALES
    ]
    return "\n".join([INTRODUCTION, *(_scale(ExperimentSet(one)) for one in settings)])


def _scale(experiments: ExperimentSet) -> str:
    frames = {
        name: table(experiments, name)
        for name, one in experiments.tables.items()
        if not one.sizes_of
    }
    rows = [[_link(experiments, name), *count_row(frame)] for name, frame in frames.items()]
    lines = [f"## Scale {experiments.settings.scale}", "", headline(frames), ""]
    if experiments.scaled_down:
        lines += [SCALED.format(experiments.scaled_down), ""]
    return "\n".join([*lines, aligned([HEAD, *rows]), "", *_differences(experiments)])


def _link(experiments: ExperimentSet, name: str) -> str:
    """A table's name, as a link if its Markdown exists."""
    made = Path(experiments.layout.table(name)).with_suffix(".md")
    return f"[{name}](../{made.as_posix()})" if made.is_file() else name


def headline(frames: Mapping[str, pd.DataFrame]) -> str:
    """How many of the reported cells are measured, in a sentence."""
    reported = pd.concat([_reported(frame) for frame in frames.values()])
    deltas = reported["delta"].dropna().astype(float)
    count = f"{len(deltas)} of {len(reported)} reported cells are measured"
    if deltas.empty:
        return f"{count}."
    return (
        f"{count}; deltas are {deltas.mean():+.2f} points on average, "
        f"{deltas.abs().mean():.2f} without their signs."
    )


def _reported(frame: pd.DataFrame) -> pd.DataFrame:
    """The cells that the paper reports as its own and that count at this scale."""
    return frame[(frame["reported"] != "") & (frame["status"] != "quoted") & _counted(frame)]


def _counted(frame: pd.DataFrame) -> pd.Series[bool]:
    """Whether a cell counts: a smaller scale counts only the cells that it can run."""
    return (frame["run"] != "") | (frame["scale"] == "paper")


def count_row(frame: pd.DataFrame) -> list[str]:
    """A table's row under HEAD, after its name."""
    reported, further = _reported(frame), frame[(frame["reported"] == "") & _counted(frame)]
    deltas = reported["delta"].dropna().astype(float)
    summary = ["", "", ""]
    if not deltas.empty:
        measured = reported.dropna(subset=["delta"]).to_dict("records")
        worst = measured[int(deltas.abs().argmax())]
        keys = [key for key in CELL_KEYS if worst[key] != ""]
        where = [f"IPC {worst[key]}" if key == "ipc" else str(worst[key]) for key in keys]
        summary = [f"{deltas.mean():+.2f}", f"{worst['delta']:+.2f}", " ".join(where)]
    done = int((further["status"] == "measured").sum())
    return [str(len(reported)), str(len(deltas)), *summary, str(len(further)), str(done)]


def _differences(experiments: ExperimentSet) -> Iterator[str]:
    """Each table's contrasts under its title, and the link to what scale mini's tables show."""
    for name, one in experiments.tables.items():
        if differences := contrasts.contrast_rows(experiments, name):
            yield f"### {one.title}\n\n{contrasts.HEADING}\n\n{aligned(differences)}\n"
    if experiments.settings.scale == "mini":
        yield READINGS
