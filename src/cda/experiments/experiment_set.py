"""From `config/` to cells and runs: what every table and figure is made of.

A table is a declared grid of cells; a cell resolves to the run that measures it (with one JSON a
seed) and, through it, to everything below. Cells of different tables that resolve to equal values
are the same run. What a cell's paper reported is joined from `config/reported.csv` by key.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from cda.config.experiment import KEYS, DatasetScale, Experiment, Figure, Group
from cda.config.load import CONFIG, dataset_names, read_scale
from cda.config.settings import Dataset, Settings
from cda.config.types import parse
from cda.config.yaml_source import places, read_layer, read_plain
from cda.errors import ConfigError
from cda.experiments.cells import (
    AS_DECLARED,
    QUOTED_NOTE,
    Cell,
    ipc_of,
    iterations_of,
    repeats,
    replaced_name,
)
from cda.experiments.grid import comparison_table, controls_of, points
from cda.experiments.paths import Layout
from cda.experiments.reported import Reported
from cda.experiments.resolver import Point, Resolver
from cda.experiments.runs import Run, decode_run, recover_run_of, seeds_of


class ExperimentSet:
    """Everything declared in `config/`, resolved for one scale."""

    def __init__(self, settings: Settings, config: Path = CONFIG) -> None:
        self.settings, self.config = settings, config
        self.layout = Layout(settings.scale)
        self.resolver = Resolver(config, settings.scale)
        self._paper = self.resolver if settings.scale == "paper" else Resolver(config, "paper")
        self._scale = None if settings.scale == "paper" else read_scale(config, settings.scale)
        self._declared = dataset_names(config)
        self._reported = Reported(config / "reported.csv")
        self._cells_of: dict[str, list[Cell]] = {}
        there = ", ".join(self._declared)
        for name in settings.data_paths:
            if name not in [*self._declared, "released"]:
                raise ConfigError(f"config key data_paths: {name!r} is not declared; use {there}")
        for name in settings.datasets if settings.datasets != "all" else ():
            if name not in self._declared:
                raise ConfigError(f"config key datasets: {name!r} is not declared; use {there}")

    def dataset(self, name: str) -> Dataset:
        """The declared data set `name`; raises ConfigError."""
        return self.resolver.dataset(name)

    @cached_property
    def _files(self) -> dict[str, Experiment | Figure]:
        """What `config/experiments/` declares for this scale, by name.

        Tables of single data sets after it.
        """
        found: dict[str, Experiment | Figure] = {}
        for path in sorted((self.config / "experiments").glob("*.yaml"), key=_natural):
            if not re.fullmatch(r"\w[\w-]*", path.stem):  # rules name it to a shell
                raise ConfigError(
                    f"{path}: a table or figure is named by letters, digits, _ and -; rename "
                    "the file"
                )
            values, written = read_plain(path), places(read_layer(path))
            kind: Any = Figure if isinstance(values, dict) and "kind" in values else Experiment
            experiment = parse(kind, values, str(path), written)
            if self.settings.scale in experiment.scales:
                found[path.stem] = experiment
        for name in self._declared:
            if self.settings.scale == "paper" and (data := self.dataset(name)).compare_ipc:
                found.setdefault(name, comparison_table(data))
        return found

    @cached_property
    def tables(self) -> dict[str, Experiment]:
        """The tables of this scale, by name."""
        return {name: found for name, found in self._files.items() if isinstance(found, Experiment)}

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """The figures of this scale, by name."""
        return {name: found for name, found in self._files.items() if isinstance(found, Figure)}

    def cells(self, table: str) -> list[Cell]:
        """The cells of a table, in declared order; raises ConfigError."""
        if table not in self.tables:
            there = ", ".join(self.tables)
            raise ConfigError(
                f"there is no table {table!r} at scale {self.settings.scale}; there is {there}"
            )
        if table not in self._cells_of:
            self._cells_of[table] = list(self._without_repeats(self.tables[table], table))
        return self._cells_of[table]

    def _without_repeats(self, experiment: Experiment, table: str) -> Iterator[Cell]:
        """Every cell; a control that is measured already is not shown again."""
        seen: set[tuple[str, ...]] = set()
        for cell in itertools.chain(
            self._quoted(experiment, table), self._measured(experiment, table)
        ):
            shown = (
                str(cell.key[name]) for name in ("dataset", "ipc", "validation_model", "metric")
            )
            number = (*(run.id for run in cell.runs), *shown, cell.entry)
            if not (cell.control and cell.run and number in seen):
                yield cell
            seen.add(number)

    def requested_runs(self, table: str) -> list[Run]:
        """The runs that a table asks for: those of its cells on the settings' data sets.

        Raises ConfigError.
        """
        wanted = self.settings.datasets
        return [
            run
            for cell in self.cells(table)
            if wanted == "all" or cell.dataset in wanted
            for run in cell.runs
        ]

    @property
    def scaled_down(self) -> str:
        """What a table or figure says of its scale; empty at the paper's."""
        if self._scale is None:
            return ""
        others = sorted(
            {shrunk.stand_in for shrunk in self._scale.datasets.values() if shrunk.stand_in}
        )
        instead = f" {', '.join(others)} in place of the paper's data," if others else ""
        return f"Scaled down: scale {self.settings.scale},{instead} not comparable with the paper."

    def replaced_ipc(self, *tables: str) -> str:
        """Which of the tables' IPCs the scale runs as others: " IPC 50 runs as 10.".

        Empty if none.
        """
        found: dict[int, int] = {}
        dataset_names = [
            group for table in tables if table in self.tables for group in self.tables[table].groups
        ]
        for group in dataset_names:
            shrunk = None if group.quoted else self._shrunk(group.dataset)[0]
            found |= {ipc: shrunk.ipc.get(ipc, ipc) for ipc in group.ipc if shrunk}
        return "".join(
            f" IPC {ipc} runs as {run}." for ipc, run in sorted(found.items()) if run != ipc
        )

    @property
    def _stands_in(self) -> bool:
        """Whether other data sets stand in for the paper's, so that others' numbers have no place
        here.
        """
        return self._scale is not None and any(
            shrunk.stand_in for shrunk in self._scale.datasets.values()
        )

    def _quoted(self, experiment: Experiment, table: str) -> Iterator[Cell]:
        if self._stands_in:
            return
        for row in self._reported.quoted(experiment.reported):
            key = {key: row[key] for key in KEYS}
            yield Cell(table, row["dataset"], key, row["value"], row["std"], None, QUOTED_NOTE)

    def _measured(self, experiment: Experiment, table: str) -> Iterator[Cell]:
        asked = self.settings.controls
        wanted = asked == "all" or (asked == "default" and experiment.controls)
        for group in experiment.groups:
            if (group.control and asked == "none") or (group.extra and asked != "all"):
                continue
            if group.quoted and self._stands_in:
                continue
            yield from self._cells(table, experiment, group)
        for group in experiment.groups if wanted else ():
            for control in controls_of(group):
                yield from self._cells(table, experiment, control)

    def _cells(self, table: str, experiment: Experiment, group: Group) -> Iterator[Cell]:
        shrunk, note = self._shrunk(group.dataset)
        stand_in = shrunk is not None and shrunk.stand_in is not None
        for point in points(group):
            left_out = note or self._left_out(point, group, shrunk)
            if not (left_out or group.quoted) and repeats(point, group, shrunk):
                continue
            runs = (
                ()
                if left_out or group.quoted
                else self.resolver.runs(table, group, point, shrunk or AS_DECLARED)
            )
            asked = self._paper_iterations(table, group, point)
            for metric, (index, seen) in itertools.product(
                group.metrics, enumerate(group.classes or (None,))
            ):
                label = str(seen or ("" if point.value is None else point.value))
                key: dict[str, Any] = {
                    "dataset": group.dataset,
                    "method": point.method,
                    "ipc": point.ipc or "",
                }
                key |= {
                    "recovery_model": point.recovery_model,
                    "validation_model": point.validation_model,
                }
                key |= {"recovery_iterations": asked, "metric": metric}
                key |= {"setting": group.setting.replace("{}", label)}
                other = stand_in or (
                    shrunk is not None and bool(runs) and ipc_of(point, shrunk) != point.ipc
                )
                row = {} if group.control or other else self._reported.row(experiment.reported, key)
                entry = (
                    str((index + 1) * runs[0].data.classes // len(group.classes))
                    if seen and runs
                    else ""
                )
                if runs:
                    key |= self._shown(group, point, shrunk or AS_DECLARED, runs[0], entry)
                told = QUOTED_NOTE if group.quoted else left_out
                cell = (
                    table,
                    group.dataset,
                    key,
                    row.get("value", ""),
                    row.get("std", ""),
                    runs[0] if runs else None,
                    told,
                )
                varied = experiment.layout.varied.replace("{}", entry or label) if label else ""
                common = ";".join(part for part in group.setting.split(";") if "{}" not in part)
                yield Cell(*cell, group.control, runs[1:], entry, varied, common)

    def _shrunk(self, dataset: str) -> tuple[DatasetScale | None, str]:
        """How the scale shrinks a data set, or why its cells cannot be run."""
        if dataset not in self._declared:
            return None, f"data set {dataset} is not declared in config/datasets/"
        if self._scale is None:
            return AS_DECLARED, ""
        if dataset not in self._scale.datasets:
            return None, f"data set {dataset} has no part in scale {self.settings.scale}"
        return self._scale.datasets[dataset], ""

    def _left_out(self, point: Point, group: Group, shrunk: DatasetScale | None) -> str:
        for name in (point.recovery_model, point.validation_model, *group.relabel_models):
            if shrunk and shrunk.models.get(name, name) is None:
                return f"scale {self.settings.scale} has no place for {name}"
        return ""

    def _paper_iterations(self, table: str, group: Group, point: Point) -> int | str:
        """The paper's recovery iterations of a point, whatever the scale runs.

        Part of the key of what it reported.
        """
        if group.quoted or group.dataset not in self._declared:
            key = {"dataset": group.dataset, "method": point.method, "ipc": point.ipc or ""}
            key |= {
                "recovery_model": point.recovery_model,
                "validation_model": point.validation_model,
            }
            return self._reported.row(self.tables[table].reported, key).get(
                "recovery_iterations", ""
            )
        if not point.recovery_model:
            return ""
        return iterations_of(self._paper.images(table, group, point, AS_DECLARED))

    def _shown(
        self, group: Group, point: Point, shrunk: DatasetScale, run: Run, entry: str
    ) -> dict[str, Any]:
        """The parts of a key that a scale replaces, as they ran."""
        images = recover_run_of(run)
        shown: dict[str, Any] = {
            "recovery_iterations": iterations_of(images) if images and point.recovery_model else ""
        }
        shown["dataset"] = replaced_name(run.dataset, group.dataset)
        shown["ipc"] = run.ipc if point.ipc else ""
        for name in ("recovery_model", "validation_model"):
            asked = getattr(point, name)
            shown[name] = replaced_name(shrunk.models.get(asked, asked) or "", asked)
        if entry:
            shown["setting"] = group.setting.replace("{}", entry)
        return shown

    def pictured(self, figure: str) -> list[tuple[dict[str, Any], Run]]:
        """The recover runs whose images a figure shows, with what tells them apart, in declared
        order.
        """
        found: dict[str, tuple[dict[str, Any], Run]] = {}
        for group in self.figures[figure].groups:
            shrunk, note = self._shrunk(group.dataset)
            wanted = self.settings.datasets
            if shrunk is None or note or (wanted != "all" and group.dataset not in wanted):
                continue
            for point in points(group):
                if self._left_out(point, group, shrunk):
                    continue
                run = self.resolver.images(figure, group, point, shrunk)
                key = {"dataset": replaced_name(run.dataset, group.dataset), "method": point.method}
                found.setdefault(
                    run.id, (key | {"recovery_model": point.recovery_model, "ipc": point.ipc}, run)
                )
        return list(found.values())

    def runs(self, tables: tuple[str, ...] | None = None) -> dict[str, Run]:
        """Every run that the named tables ask for, upstream first, by id.

        By default of all tables and figures.
        """
        found: dict[str, Run] = {}
        last = [
            run
            for table in (self.tables if tables is None else tables)
            for run in self.requested_runs(table)
        ]
        last += [
            run
            for figure in (self.figures if tables is None else ())
            for _, run in self.pictured(figure)
        ]
        for run in last:
            for one in run.chain():
                if one.data.stream and one.id not in found:
                    decode = decode_run(one.data, one.recipe)
                    found.setdefault(decode.id, decode)
                found.setdefault(one.id, one)
        return found

    def run(self, run_id: str, stage: str | None = None) -> Run:
        """The run with this id; raises ConfigError if no table of the scale has it."""
        run = self._own_runs.get(run_id) or self._all_runs.get(run_id)
        if run is None or stage not in (None, run.stage):
            raise ConfigError(
                f"no {stage or 'run'} {run_id!r} at scale {self.settings.scale}; `cda runs` "
                "lists the runs of a table"
            )
        return run

    def seeds(self, run: Run) -> list[int]:
        """The seeds of a measuring run that tables read.

        Those asked for, or with `cells=present` those there are.
        """
        if self.settings.cells == "all":
            return list(range(seeds_of(run, self.settings.seeds)))
        there = Path(self.layout.run_json(run, 0)).parent.glob("seed-*.json")
        return sorted(
            int(path.stem[5:])
            for path in there
            if re.fullmatch(r"seed-(0|[1-9][0-9]{0,8})", path.stem)
        )

    def table_of(self, target: str) -> str:
        """The table that a path or a name such as `results/table4.csv` asks for.

        Raises ConfigError if it is none.
        """
        path = Path(target)
        if path.suffix and path.parent != Path(self.layout.results):
            mend = f"ask for {self.layout.results}/{path.name}, or add --config scale=…"
            raise ConfigError(f"{target}: no table of scale {self.settings.scale}; {mend}")
        self.cells(path.stem)
        return path.stem

    @cached_property
    def _own_runs(self) -> dict[str, Run]:
        return self.runs()

    @cached_property
    def _all_runs(self) -> dict[str, Run]:
        everything = self.settings.model_copy(update={"datasets": "all", "controls": "all"})
        return ExperimentSet(everything, self.config).runs()


def _natural(path: Path) -> tuple[str, int]:
    """table2 before table10."""
    stem = path.stem.rstrip("0123456789")
    return stem, int(path.stem[len(stem) :] or 0)
