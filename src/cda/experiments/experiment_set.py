"""From `config/` to cells and runs: what every table and figure is made of.

A table is a declared grid of cells. A cell resolves to the run that measures it (one JSON a seed)
and to the runs that this builds on. Cells of different tables with equal values share one run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from cda.config.experiment import Experiment, Figure
from cda.config.load import CONFIG, dataset_names, read_scale
from cda.config.settings import Dataset, Settings
from cda.errors import ConfigError
from cda.experiments.cells import Cell, Sources, pictured_runs, replaced_ipcs, table_cells
from cda.experiments.grid import declared_scales, read_experiments
from cda.experiments.paths import Layout
from cda.experiments.reported import Reported
from cda.experiments.resolver import Resolver
from cda.experiments.runs import Run, images_run_of, seeds_of, with_upstream
from cda.text import nearest


class ExperimentSet:
    """Everything declared in `config/`, resolved for one scale; raises ConfigError."""

    def __init__(self, settings: Settings, config: Path = CONFIG) -> None:
        self.settings, self.config, self.layout = settings, config, Layout(settings.scale)
        self.resolver = Resolver(config, settings.scale)
        at_paper = settings.scale == "paper"
        self.sources = Sources(
            resolver=self.resolver,
            paper=self.resolver if at_paper else Resolver(config, "paper"),
            scale=None if at_paper else read_scale(config, settings.scale),
            datasets=dataset_names(config),
            reported=Reported(config / "reported.csv"),
        )
        self._cells_of: dict[str, list[Cell]] = {}
        self.sources.require_declared("data_paths", sorted({*settings.data_paths} - {"released"}))
        if settings.datasets != "all":
            self.sources.require_declared("datasets", settings.datasets)

    def dataset(self, name: str) -> Dataset:
        """The declared data set `name`; raises ConfigError."""
        return self.resolver.dataset(name)

    @cached_property
    def _declared(self) -> dict[str, Experiment | Figure]:
        names = self.sources.datasets if self.sources.scale is None else ()
        datasets = [self.dataset(name) for name in names]
        return read_experiments(self.config, scale=self.settings.scale, datasets=datasets)

    @cached_property
    def tables(self) -> dict[str, Experiment]:
        """The tables of this scale, by name."""
        return {name: one for name, one in self._declared.items() if isinstance(one, Experiment)}

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """The figures of this scale, by name."""
        return {name: one for name, one in self._declared.items() if isinstance(one, Figure)}

    def cells(self, table: str) -> list[Cell]:
        """The cells of a table, in declared order; raises ConfigError."""
        if table not in self.tables:
            raise ConfigError(self.absent(table, "table", self.tables))
        if table not in self._cells_of:
            declared, controls = self.tables[table], self.settings.controls
            cells = table_cells(table, declared, sources=self.sources, controls=controls)
            self._cells_of[table] = list(cells)
        return self._cells_of[table]

    def not_run(self, table: str) -> list[str]:
        """A line for each reason for which cells of a table cannot run; raises ConfigError."""
        measured = [cell for cell in self.cells(table) if not cell.quoted]
        notes = Counter(cell.note for cell in measured if cell.run is None)
        return [
            f"{table}: {count} of {len(measured)} cells cannot run: {note}"
            for note, count in notes.items()
        ]

    def absent(self, name: str, kind: str, known: Iterable[str]) -> str:
        """The line for a table or figure that the scale lacks: another that has it, or `known`."""
        line = f"there is no {kind} {name!r} at scale {self.settings.scale}"
        scales = declared_scales(self.config, name)
        if scales and self.settings.scale not in scales:
            return f"{line}, it is of scale {scales[0]}; add --config scale={scales[0]}"
        return f"{line}{nearest(name, known)}; there is {', '.join(known) or 'none'}"

    def _requested(self, dataset: str) -> bool:
        return self.settings.datasets == "all" or dataset in self.settings.datasets

    def requested_runs(self, table: str) -> list[Run]:
        """The measuring runs of a table's cells on the settings' data sets; raises ConfigError."""
        cells = (cell for cell in self.cells(table) if self._requested(cell.dataset))
        return [run for cell in cells for run in cell.runs]

    @property
    def scaled_down(self) -> str:
        """The sentence below a table or figure about its scale; empty at the paper's."""
        if self.sources.scale is None:
            return ""
        others = ", ".join(self.sources.stand_ins)
        instead = f" {others} in place of the paper's data," if others else ""
        return f"Scaled down: scale {self.settings.scale},{instead} not comparable with the paper."

    def replaced_ipc(self, *tables: str) -> str:
        """The IPCs of some tables that the scale replaces: " IPC 50 runs as 10.", or nothing."""
        known = [self.tables[name] for name in tables if name in self.tables]
        groups = (group for table in known for group in table.groups)
        found = sorted(replaced_ipcs(groups, sources=self.sources).items())
        return "".join(f" IPC {ipc} runs as {run}." for ipc, run in found if run != ipc)

    def pictured(self, figure: str) -> list[tuple[dict[str, Any], Run]]:
        """The recover runs whose images a figure draws, with the keys that name each, in order."""
        groups = (one for one in self.figures[figure].groups if self._requested(one.dataset))
        return pictured_runs(figure, groups, sources=self.sources)

    def methods(self, target: str) -> dict[str, list[str]]:
        """The methods that read each run of a table or figure, by the run's id; raises ConfigError.

        A plot's are those of its tables.
        """
        figure = self.figures.get(target)
        read = [(key["method"], run) for key, run in self.pictured(target)] if figure else []
        for table in figure.tables if figure else (target,):
            read += [(cell.key["method"], run) for cell in self.cells(table) for run in cell.runs]
        found: dict[str, dict[str, None]] = {}
        for method, last in read:
            for run in last.chain():
                found.setdefault(run.id, {})[str(method)] = None
        return {run: list(names) for run, names in found.items()}

    def runs(self, tables: tuple[str, ...] | None = None) -> dict[str, Run]:
        """Every run below some tables, upstream first, by id; by default all tables and figures."""
        names = self.tables if tables is None else tables
        last = [run for table in names for run in self.requested_runs(table)]
        if tables is None:
            last += [run for figure in self.figures for _, run in self.pictured(figure)]
        return with_upstream(last)

    def run(self, run_id: str, stage: str | None = None) -> Run:
        """The run with this id; raises ConfigError if no table of the scale has it."""
        run = self._own_runs.get(run_id) or self._all_runs.get(run_id)
        if run is None or stage not in (None, run.stage):
            raise ConfigError(
                f"no {stage or 'run'} {run_id!r} at scale {self.settings.scale}; `cda list` "
                "prints the runs of a table"
            )
        return run

    def seeds(self, run: Run) -> list[int]:
        """The seeds of a measuring run that tables read; with `cells=present` those that exist."""
        if self.settings.cells == "all":
            return list(range(seeds_of(run, self.settings.seeds)))
        names = Path(self.layout.run_json(run, 0)).parent.glob("seed-*.json")
        found = (re.fullmatch(r"seed-(0|[1-9][0-9]{0,8})", path.stem) for path in names)
        return sorted(int(match[1]) for match in found if match)

    def table_of(self, target: str) -> str:
        """The table of a path or a name such as `results/table4.csv`.

        Raises ConfigError if there is none, or if none of its cells can run.
        """
        path = Path(target)
        self.require_own(path)
        cells = [cell for cell in self.cells(path.stem) if not cell.quoted]
        if cells and not any(cell.run for cell in cells):
            file, notes = self.config / "experiments", {cell.note for cell in cells}
            raise ConfigError(
                f"{file / path.stem}.yaml: no cell of this table can run: "
                f"{'; '.join(sorted(notes))}; data sets are {', '.join(self.sources.datasets)}"
            )
        return path.stem

    def require_pictured(self, figure: str) -> None:
        """Raise ConfigError if the groups of a figure of images have none to draw."""
        groups = self.figures[figure].groups
        if groups and not pictured_runs(figure, groups, sources=self.sources):
            notes = {self.sources.scaling(group.dataset)[1] for group in groups} - {""}
            raise ConfigError(
                f"{self.config / 'experiments' / figure}.yaml: groups give no run whose images it "
                f"could draw{': ' if notes else ''}{'; '.join(sorted(notes))}; data sets are "
                f"{', '.join(self.sources.datasets)}"
            )

    def require_own(self, path: Path) -> None:
        """Raise ConfigError if `path` is a file that lies outside this scale's results."""
        if path.suffix and path.parent != Path(self.layout.results):
            fix = f"use {self.layout.results}/{path.name}, or add --config scale=…"
            raise ConfigError(f"{path}: no table or figure of scale {self.settings.scale}; {fix}")

    @cached_property
    def _own_runs(self) -> dict[str, Run]:
        return self.runs()

    @cached_property
    def _all_runs(self) -> dict[str, Run]:
        return self._everything.runs()

    @cached_property
    def _everything(self) -> ExperimentSet:
        settings = self.settings.model_copy(update={"datasets": "all", "controls": "all"})
        return ExperimentSet(settings, self.config)

    def required_shards(self, recover: Run) -> int:
        """How many shards of a recover run the tables and figures of this call read.

        The IPC is no part of the run: shards that a later table requires are added to its parts.
        """
        if recover.id not in self._required_shards and self._everything.settings != self.settings:
            return self._everything.required_shards(recover)
        return self._required_shards.get(recover.id, 0)

    @cached_property
    def _required_shards(self) -> dict[str, int]:
        found: Counter[str] = Counter()
        for run in self._own_runs.values():
            images = images_run_of(run)
            if images is not None:
                found[images.id] = max(found[images.id], run.ipc)
        for name, figure in self.figures.items():
            count = max((ipc for group in figure.groups for ipc in group.ipc), default=1)
            for _, run in self.pictured(name):
                found[run.id] = max(found[run.id], count)
        return found
