"""docs/reproduction.md: how much of the paper has been measured, and how far from its numbers that
lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cda.config.load import load_settings, merge
from cda.experiments.experiment_set import ExperimentSet
from cda.results import contrasts
from cda.results.tables import aligned, table

SCALES = ("paper", "mini")  # those whose results are kept
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

Made by `make docs` from the run JSONs in `results/`. Deltas are measured minus reported, in points. Numbers that the
paper quotes from other papers are not counted; cells that it does not report, controls among them, are ours.
"""
SCALED = (
    "{} A delta to the paper then tells what the scale costs, and nothing about the paper. "
    "Settings are named as the "
    "tables declare them; `cda config show RUN` tells the values that ran."
)
READINGS = "What these tables show: [mini.md](mini.md#what-the-tables-show).\n"
KEYS = ("dataset", "method", "ipc", "recovery_model", "validation_model", "setting")


def page(given: Mapping[str, Any]) -> str:
    """The page under the configuration `given`; raises ArtifactError for JSONs of other runs."""
    settings = [
        load_settings(merge(given, {"scale": scale, "cells": "present"})) for scale in SCALES
    ]
    return "\n".join([INTRODUCTION, *(_scale(ExperimentSet(one)) for one in settings)])


def _scale(experiments: ExperimentSet) -> str:
    frames = {
        name: table(experiments, name)
        for name, one in experiments.tables.items()
        if not one.sizes_of
    }
    rows = [[_link(experiments, name), *_counts(frame)] for name, frame in frames.items()]
    lines = [f"## Scale {experiments.settings.scale}", "", headline(frames), ""]
    if experiments.scaled_down:
        lines += [SCALED.format(experiments.scaled_down), ""]
    return "\n".join([*lines, aligned([HEAD, *rows]), "", *_readings(experiments)])


def _link(experiments: ExperimentSet, name: str) -> str:
    """A table's name, a link where it was made."""
    made = Path(experiments.layout.table(name)).with_suffix(".md")
    return f"[{name}](../{made.as_posix()})" if made.is_file() else name


def headline(frames: Mapping[str, pd.DataFrame]) -> str:
    """How many of the reported cells are measured, in a sentence."""
    asked = pd.concat([_asked(frame) for frame in frames.values()])
    deltas = asked["delta"].dropna().astype(float)
    told = f"{len(deltas)} of {len(asked)} reported cells are measured"
    if deltas.empty:
        return f"{told}."
    return (
        f"{told}; deltas are {deltas.mean():+.2f} points on average, "
        f"{deltas.abs().mean():.2f} without their signs."
    )


def _asked(frame: pd.DataFrame) -> pd.DataFrame:
    """The cells whose numbers the paper reports as its own, those that the scale has a run for."""
    return frame[(frame["reported"] != "") & (frame["status"] != "quoted") & _runs(frame)]


def _runs(frame: pd.DataFrame) -> pd.Series[bool]:
    """Cells that a run measures; where none is scaled down, also those of data sets that are not
    declared.
    """
    return (frame["run"] != "") | (frame["scale"] == "paper")


def _counts(frame: pd.DataFrame) -> list[str]:
    asked, ours = _asked(frame), frame[(frame["reported"] == "") & _runs(frame)]
    deltas = asked["delta"].dropna().astype(float)
    told = ["", "", ""]
    if not deltas.empty:
        worst = asked.to_dict("records")[
            int(asked["delta"].astype(float).abs().fillna(-1).argmax())
        ]
        where = [
            f"IPC {worst[key]}" if key == "ipc" else str(worst[key])
            for key in KEYS
            if worst[key] != ""
        ]
        told = [f"{deltas.mean():+.2f}", f"{worst['delta']:+.2f}", " ".join(where)]
    return [
        str(len(asked)),
        str(len(deltas)),
        *told,
        str(len(ours)),
        str(int((ours["status"] == "measured").sum())),
    ]


def _readings(experiments: ExperimentSet) -> Iterator[str]:
    """The contrasts of every table under its title, and where the scale's tables are read."""
    for name, one in experiments.tables.items():
        if differences := contrasts.contrast_rows(experiments, name):
            yield f"### {one.title}\n\n{contrasts.HEADING}\n\n{aligned(differences)}\n"
    if experiments.settings.scale == "mini":
        yield READINGS
