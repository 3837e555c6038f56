"""The cells of a table: one number each, its key, what was reported, and the run that measures it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cda.config.experiment import DatasetScale, Group
from cda.experiments.resolver import Point
from cda.experiments.runs import Run

AS_DECLARED = DatasetScale()


@dataclass(frozen=True)
class Cell:
    """One number of a table: its key, what was reported, and the run that measures it (None: it
    cannot be run).

    `others` are further runs of the same cell, of which the best counts; `entry` is where in a
    run's measurements the number stands, of those that hold several; `varied` what the table
    varies, as its Markdown writes it, and `common` the setting without that.
    """

    table: str
    dataset: str  # as declared; a stand-in's name is in the key
    key: Mapping[str, Any]
    reported: str
    reported_std: str
    run: Run | None
    note: str = ""
    control: bool = False
    others: tuple[Run, ...] = ()
    entry: str = ""
    varied: str = ""
    common: str = ""

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every run of the cell."""
        return (self.run, *self.others) if self.run else ()

    @property
    def quoted(self) -> bool:
        """Whether its number is another paper's, which this one quotes."""
        return self.note == QUOTED_NOTE


QUOTED_NOTE = "quoted in the paper"


def replaced_name(ran: str, asked: str) -> str:
    return ran if ran == asked else f"{ran} (for {asked})"


def iterations_of(images: Run) -> int | str:
    recover = images.recipe.recover
    return recover.iterations if recover.synthetic else ""


def ipc_of(point: Point, shrunk: DatasetScale) -> int | None:
    """The IPC that a scale runs for a point."""
    return shrunk.ipc.get(point.ipc, point.ipc) if point.ipc else None


def repeats(point: Point, group: Group, shrunk: DatasetScale | None) -> bool:
    """Whether a scale runs a point as another of its own group.

    One IPC stands for all that run as it does.
    """
    if shrunk is None or not point.ipc:
        return False
    run = ipc_of(point, shrunk)
    same = [ipc for ipc in group.ipc if shrunk.ipc.get(ipc, ipc) == run]
    return point.ipc != (run if run in same else same[0])
