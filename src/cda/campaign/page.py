"""What a campaign says: first what a slice will do and what is expected of it, last what is done of
the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cda.campaign.jobs import Job, Stretch, measured
from cda.campaign.times import START, Times
from cda.experiments.cells import Cell
from cda.experiments.experiment_set import ExperimentSet

if TYPE_CHECKING:
    from cda.campaign.slices import Budget, Outcome

SHOWN = 15  # jobs that are named, at most
BEYOND = 3  # of them after those that are expected to finish


class Page:
    """The pages of one slice; `every` are the whole campaign's jobs."""

    def __init__(
        self,
        experiments: ExperimentSet,
        stretches: Sequence[Stretch],
        every: Sequence[Job],
        times: Times,
    ) -> None:
        self._experiments, self._stretches, self._every, self._times = (
            experiments,
            stretches,
            every,
            times,
        )

    def before(self, left: Sequence[Job], budget: Budget, used: float) -> str:
        """The whole, and what this slice is expected to do with the jobs that are `left`."""
        settings = self._experiments.settings
        seeds = f"{settings.seeds} seed{'s' if settings.seeds > 1 else ''}"
        head = (
            f"Campaign at scale {settings.scale}, {seeds}, on {self._times.kind}. "
            f"{self._whole(left)}"
        )
        if not left:
            return head
        fates = _fates(left, self._times, budget, used)
        return "\n".join([head, "", *self._steps(left), "", *self._slice(left, fates, budget)])

    def after(self, left: Sequence[Job], outcome: Outcome) -> str:
        """What the slice did, and what is done of the whole."""
        lines = [f"This slice finished {_count(len(outcome.done), 'job')}."]
        if outcome.stopped:
            lines.append(
                f"Stopped in the middle, the next slice goes on from there: {outcome.stopped.name}"
            )
        lines += [f"Failed ({how}): {name}" for name, how in outcome.failed.items()]
        lines += [f"Left to {who}, which works on it: {name}" for name, who in outcome.busy.items()]
        if outcome.left_out:
            lines.append(
                f"Left out, since they need one of those: {_count(len(outcome.left_out), 'job')}"
            )
        steps = ["", *self._steps(left)] if left else []
        return "\n".join(["", *lines, *steps, "", self._whole(left)])

    def _whole(self, left: Sequence[Job]) -> str:
        """How much of the campaign is done, in a line."""
        cells = [
            cell for stretch in self._stretches if not stretch.control for cell in stretch.cells
        ]
        controls = [
            cell for stretch in self._stretches if stretch.control for cell in stretch.cells
        ]
        told = f"{self._measured(cells)} of {_count(len(cells), 'cell')} measured"
        seeds = self._experiments.settings.seeds
        if seeds > 1:
            told += f" ({self._measured(cells, seeds - 1)} with all {seeds} seeds)"
        if controls:
            told += f", {self._measured(controls)} of {_count(len(controls), 'control')}"
        told += f"; {len(self._every) - len(left)} of {_count(len(self._every), 'job')} done"
        return f"{told}; about {clock(self._times.total(left))} left." if left else f"{told}."

    def _measured(
        self, cells: Sequence[Cell], seed: int = 0, soon: frozenset[str] = frozenset()
    ) -> int:
        return sum(measured(self._experiments, cell, seed, soon) for cell in cells)

    def _steps(self, left: Sequence[Job]) -> list[str]:
        """A row a step: its cells, and the jobs that are to do for it and for no step above."""
        rows = [["step", "cells", "measured", "waiting", "jobs", "hours"]]
        for stretch in self._stretches:
            jobs = [job for job in left if job.stretch == stretch.title]
            there, cells = self._measured(stretch.cells), len(stretch.cells)
            numbers = (cells, there, cells - there, len(jobs))
            rows.append(
                [stretch.title, *map(str, numbers), f"{self._times.total(jobs) / 3600:.2f}"]
            )
        return columns(rows, {0})

    def _slice(self, left: Sequence[Job], fates: Sequence[str], budget: Budget) -> list[str]:
        """The first jobs, how long each is expected to take, and what becomes of it in this slice."""
        finished = fates.count("finishes")
        shown = min(SHOWN, finished + BEYOND)
        rows = [["job", "about", "rate", "this slice"]]
        for job, fate in zip(left[:shown], fates, strict=False):
            about = clock(self._times.of(job)) + (" more" if self._times.begun(job) else "")
            rows.append(
                [job.name, about, "measured" if self._times.measured(job.run) else "assumed", fate]
            )
        lines = columns(rows, {0, 2, 3})
        if rest := left[shown:]:
            lines.append(f"… and {_count(len(rest), 'job')} more, {clock(self._times.total(rest))}")
        soon = frozenset(
            job.output for job, fate in zip(left, fates, strict=True) if fate == "finishes"
        )
        cells = [cell for stretch in self._stretches for cell in stretch.cells]
        new = self._measured(cells, soon=soon) - self._measured(cells)
        limit = (
            f" in {clock(budget.seconds)}, the last {budget.grace:g} s of it for stopping"
            if budget.limited
            else ""
        )
        told = f"{_count(finished, 'job')} finished, {_count(new, 'cell')} measured"
        return [*lines, "", f"Expected{limit}: {told}. Of every job {START:g} s are its start-up."]


def _fates(left: Sequence[Job], times: Times, budget: Budget, used: float) -> list[str]:
    """What is expected of each job in this slice, which has `used` so many seconds already."""
    fates: list[str] = []
    going = True
    for job in left:
        expected = times.of(job)
        going = going and budget.begins(expected, used)
        used += expected if going else 0.0
        fates.append(("finishes" if used <= budget.working else "begins") if going else "waits")
        going = going and used <= budget.working
    return fates


def clock(seconds: float) -> str:
    """A time in the unit that suits it.

    >>> clock(12), clock(510), clock(5000), clock(90_000)
    ('12 s', '8.5 min', '1.4 h', '25 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.2g} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36_000 else f"{seconds / 3600:.0f} h"


def columns(rows: Sequence[Sequence[str]], words: set[int]) -> list[str]:
    """Aligned rows; the columns `words` to the left, the others, which are numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = (
        [
            c.ljust(w) if i in words else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    )
    return ["  ".join(row).rstrip() for row in aligned]


def _count(number: int, what: str) -> str:
    """A number of things.

    >>> _count(1, "job"), _count(3, "cell")
    ('1 job', '3 cells')
    """
    return f"{number} {what}{'' if number == 1 else 's'}"
