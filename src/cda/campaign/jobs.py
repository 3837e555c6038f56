"""A campaign's jobs in the order in which they are run. Reads no data and imports no torch.

A job is one part of a recover run, one seed of a measuring run, or all of another run. It is to do
where its output is missing and an unfinished job, or a missing measurement, reads it, as for the
workflow (`cda.pipeline.estimate`); what a finished one was made from may be gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cda.campaign.steps import Campaign, cells_of
from cda.experiments.cells import Cell
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.jobs import inputs, outputs
from cda.experiments.runs import MEASURING, Run, seeds_of

CONTROLS = "controls of these tables"
NUMBERED = {
    "recover": "part",
    "validate": "seed",
    "continual": "seed",
}  # stages of several jobs a run
WHOLE = {"decode": "val", "squeeze": "model", "relabel": "labels"}  # the work folders of the others


@dataclass(frozen=True)
class Job:
    """One subprocess: a stage of a run, its part or its seed."""

    run: Run
    index: int  # of the part or the seed; 0 where there is one job
    output: str
    needs: tuple[str, ...]  # outputs of other jobs that it reads
    stretch: str  # title of the stretch that asks for it first

    @property
    def arguments(self) -> list[str]:
        """What follows `cda` on its command line."""
        numbered = NUMBERED.get(self.run.stage)
        return [
            self.run.stage,
            "--run",
            self.run.id,
            *([f"--{numbered}", str(self.index)] if numbered else []),
        ]

    @property
    def name(self) -> str:
        """What people read of it."""
        return " ".join(
            [self.run.stage, self.run.dataset, self.run.id, *self.arguments[3:]]
        ).replace(" --", " ")

    @property
    def work(self) -> str:
        """Name of its folder of unfinished work, as its stage calls it; a score has none."""
        numbered = NUMBERED.get(self.run.stage)
        return f"{numbered}-{self.index}" if numbered else WHOLE.get(self.run.stage, "")

    @property
    def done(self) -> bool:
        """Whether its output is there."""
        return _there(self.run, self.output)


def _there(run: Run, output: str) -> bool:
    """Whether an output is there whole: a squeezed model's description is written last."""
    path = Path(output)
    return path.exists() and (run.stage != "squeeze" or path.with_name("squeeze.json").exists())


@dataclass(frozen=True)
class Stretch:
    """Cells that are measured one after another: a step's, or the controls of all steps' tables."""

    title: str
    cells: list[Cell]
    control: bool = False


def stretches(experiments: ExperimentSet, campaign: Campaign) -> list[Stretch]:
    """Each step that the scale has cells for, then their controls.

    A cell that two steps ask for is the first one's.
    """
    found: list[Stretch] = []
    controls: list[Cell] = []
    seen: set[int] = set()
    for step in campaign.steps:
        cells = [cell for cell in cells_of(experiments, step) if id(cell) not in seen]
        seen |= set(map(id, cells))
        controls += [cell for cell in cells if cell.control]
        if own := [cell for cell in cells if not cell.control]:
            found.append(Stretch(step.title, own))
    return [*found, Stretch(CONTROLS, controls, control=True)] if controls else found


def jobs_of(experiments: ExperimentSet, asked: Sequence[Stretch], every: bool = False) -> list[Job]:
    """The jobs that are to do, in order, what is read before what reads it.

    With `every` those that are done too.
    """
    found: dict[str, Job] = {}
    seeds = experiments.settings.seeds
    for seed in range(seeds):
        for stretch in asked:
            for run in (run for cell in stretch.cells for run in cell.runs):
                if seed < seeds_of(run, seeds):
                    _add(experiments, run, [seed], run.ipc, stretch.title, found, every)
    return list(found.values())


def _add(
    experiments: ExperimentSet,
    run: Run,
    seeds: list[int],
    ipc: int,
    title: str,
    found: dict[str, Job],
    every: bool,
) -> list[str]:
    """Put the jobs of a run, below them those that they need, into `found`; returns all outputs
    that they leave.

    Of a measuring run the jobs are those of `seeds`, of a recover run those of its first `ipc`
    shards.
    """
    settings = experiments.settings
    paths = dict(enumerate(outputs(run, ipc, experiments.layout, settings.seeds)))
    if run.stage in MEASURING:
        paths = {seed: paths[seed] for seed in seeds}
    missing = {index: path for index, path in paths.items() if every or not _there(run, path)}
    if any(path not in found for path in missing.values()):
        needs: list[str] = []
        for below in inputs(run, settings.labels.max_gb):
            needs += _add(experiments, below, [], run.ipc, title, found, every)
        for index, path in missing.items():
            found.setdefault(path, Job(run, index, path, tuple(needs), title))
    return list(paths.values())


def measured(
    experiments: ExperimentSet, cell: Cell, seed: int = 0, soon: frozenset[str] = frozenset()
) -> bool:
    """Whether all runs of a cell have left what they measured with a seed, or are about to (`soon`,
    outputs).
    """
    paths = [
        experiments.layout.run_json(run, min(seed, seeds_of(run, seed + 1) - 1))
        for run in cell.runs
    ]
    return all(path in soon or Path(path).exists() for path in paths)
