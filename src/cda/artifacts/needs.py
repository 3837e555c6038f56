"""What a table or figure still needs of the tracked runs, job by job."""

from __future__ import annotations

from pathlib import Path

from cda.errors import ConfigError
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.jobs import inputs, outputs
from cda.experiments.runs import MEASURING, Run
from cda.pipeline.dvc import Tracked, tracked

TRAVELLING = (
    "squeeze",
    "recover",
    "relabel",
)  # test images decoded from the real data stay where the data is
VERSIONED = ("paper", "mini")


def require_versioned(experiments: ExperimentSet) -> None:
    """Raise ConfigError for a scale whose artifacts are made again rather than kept."""
    scale = experiments.settings.scale
    if scale not in VERSIONED:
        there = " and ".join(VERSIONED)
        raise ConfigError(
            f"config key scale: artifacts of scale {scale} are not versioned, only those of {there}"
        )


class Needs:
    """What the jobs that are to do read: `tracked` and `here` by path, and `untracked` jobs that
    nobody tracked.

    A run that is at hand, here or tracked, needs nothing further; below one that is not, its own
    inputs count too. With `everything` it is all that all jobs were made from, down to the models.
    """

    def __init__(self, experiments: ExperimentSet, everything: bool = False) -> None:
        self.experiments = experiments
        self.everything = everything
        self.tracked: dict[str, Tracked] = {}
        self.here: set[str] = set()
        self.untracked: dict[str, Run] = {}
        self._seen: set[str] = set()

    def add(self, target: str) -> None:
        """Count in what a table or figure needs; raises ConfigError."""
        figure = self.experiments.figures.get(Path(target).stem)
        tables = figure.tables if figure else [self.experiments.table_of(target)]
        settings = self.experiments.settings
        for run in [run for table in tables for run in self.experiments.requested_runs(table)]:
            jsons = outputs(run, 0, self.experiments.layout, settings.seeds)
            there = settings.cells == "present" or all(Path(path).is_file() for path in jsons)
            if self.everything or not there:
                self._below(run)
        if figure and not figure.plot:
            for _, run in self.experiments.pictured(Path(target).stem):
                self._want(run, 1)

    def _below(self, run: Run) -> None:
        for needed in inputs(run, self.experiments.settings.labels.max_gb):
            if needed.stage in TRAVELLING:
                self._want(needed, run.ipc)

    def _want(self, run: Run, ipc: int) -> None:
        folder = self.experiments.layout.run_folder(run)
        for output in outputs(run, ipc, self.experiments.layout, 0):
            path = output if run.stage == "recover" else folder
            if path in self._seen:
                continue
            self._seen.add(path)
            known = tracked(folder)
            if known is not None and known.has(path):
                self.tracked[path] = known
            elif Path(output).exists():
                self.here.add(path)
            else:
                self.untracked[path] = run
            if self.everything or path in self.untracked:
                self._below(run)


OUTPUTS = {
    "decode": ("val.npy", "val.json"),
    "squeeze": ("model.safetensors", "squeeze.json"),
    "recover": ("part-*",),
    "relabel": ("labels",),
}


def made(experiments: ExperimentSet, run: Run) -> list[str]:
    """Everything that is here of a run: the outputs of its jobs."""
    layout = experiments.layout
    folder = (
        Path(layout.run_json(run, 0)).parent
        if run.stage in MEASURING
        else Path(layout.run_folder(run))
    )
    return sorted(
        str(path) for name in OUTPUTS.get(run.stage, ("seed-*.json",)) for path in folder.glob(name)
    )
