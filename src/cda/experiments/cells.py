"""The cells of a table: one number each, its key, what the paper reports, and the run for it.

Cells are made from a table's groups by pure functions: quoted numbers first, then the paper's own
cells, then controls. A scale replaces data sets, networks, IPCs and iterations; a cell's key names
what runs, and `config/reported.csv` is joined by what the table declares.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cda.config.experiment import KEYS, DatasetScale, Experiment, Group, Scale
from cda.config.recipe import Recipe
from cda.errors import ConfigError
from cda.experiments.grid import controls_of, points
from cda.experiments.reported import Reported
from cda.experiments.resolver import Point, Resolver
from cda.experiments.runs import Run, images_run_of
from cda.text import nearest

AS_DECLARED = DatasetScale()
QUOTED_NOTE = "quoted in the paper"


@dataclass(frozen=True)
class Cell:
    """One number of a table: its key, the reported number, and the run that measures it, if any.

    `dataset` is the declared one, while the key names a stand-in. Of `run` and `others`, the best
    result counts. `entry` selects one of several numbers in a run's measurements (classes seen).
    `varied` is what the table varies, as its Markdown writes it; `common` the rest of the setting.
    """

    table: str
    dataset: str
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


@dataclass(frozen=True)
class Sources:
    """What cells are made from; `paper` resolves the paper's scale and `scale` is None there."""

    resolver: Resolver
    paper: Resolver
    scale: Scale | None
    datasets: Sequence[str]  # declared in config/datasets/
    reported: Reported

    @property
    def stand_ins(self) -> list[str]:
        """Data sets that run in place of the paper's; numbers that it quotes do not apply then."""
        scalings = self.scale.datasets.values() if self.scale else ()
        return sorted({one.stand_in for one in scalings if one.stand_in})

    def require_declared(self, key: str, datasets: Iterable[str]) -> None:
        """Raise ConfigError that names the configuration's `key` for an undeclared data set."""
        for name in datasets:
            if name not in self.datasets:
                known, near = ", ".join(self.datasets), nearest(name, self.datasets)
                raise ConfigError(f"config key {key}: {name!r} is not declared{near}; use {known}")

    def scaling(self, dataset: str) -> tuple[DatasetScale, str]:
        """How the scale shrinks a data set, and why its cells cannot run (empty: they can)."""
        if dataset not in self.datasets:
            near = nearest(dataset, self.datasets)
            return AS_DECLARED, f"data set {dataset} is not declared in config/datasets/{near}"
        if self.scale is None:
            return AS_DECLARED, ""
        if dataset not in self.scale.datasets:
            return AS_DECLARED, f"data set {dataset} has no part in scale {self.resolver.scale}"
        return self.scale.datasets[dataset], ""


def table_cells(
    table: str,
    experiment: Experiment,
    *,
    sources: Sources,
    controls: Literal["default", "all", "none"],
) -> Iterator[Cell]:
    """Every cell of a table in declared order; a control that repeats a measured cell is skipped.

    Raises ConfigError for a group that does not resolve.
    """
    found: set[tuple[str, ...]] = set()
    for cell in itertools.chain(
        () if sources.stand_ins else quoted_cells(table, experiment, sources=sources),
        measured_cells(table, experiment, sources=sources, controls=controls),
    ):
        place = (str(cell.key[name]) for name in ("dataset", "ipc", "validation_model", "metric"))
        number = (*(run.id for run in cell.runs), *place, cell.entry)
        if not (cell.control and cell.run and number in found):
            yield cell
        found.add(number)


def quoted_cells(table: str, experiment: Experiment, *, sources: Sources) -> Iterator[Cell]:
    """The numbers that the paper's table quotes from other papers; nothing is run for them."""
    for row in sources.reported.quoted(experiment.reported):
        key = {key: row[key] for key in KEYS}
        yield Cell(table, row["dataset"], key, row["value"], row["std"], None, QUOTED_NOTE)


def measured_cells(
    table: str,
    experiment: Experiment,
    *,
    sources: Sources,
    controls: Literal["default", "all", "none"],
) -> Iterator[Cell]:
    """The cells of a table's groups, then their controls.

    `controls` is the setting: `none` drops declared controls too, `default` leaves the table to
    choose, `all` adds every control.
    """
    for group in experiment.groups:
        skipped = (group.control and controls == "none") or (group.extra and controls != "all")
        if not skipped and not (group.quoted and sources.stand_ins):
            yield from group_cells(table, experiment, group, sources=sources)
    if controls == "all" or (controls == "default" and experiment.controls):
        for group in experiment.groups:
            for control in controls_of(group):
                yield from group_cells(table, experiment, control, sources=sources)


def group_cells(
    table: str, experiment: Experiment, group: Group, *, sources: Sources
) -> Iterator[Cell]:
    """The cells of one group, with their runs where the scale can run them."""
    scaling, problem = sources.scaling(group.dataset)
    for point in points(group):
        note = problem or missing_network(point, group, scaling=scaling, sources=sources)
        runnable = not (note or group.quoted)
        if runnable and repeats(point, group, scaling=scaling):
            continue
        runs = sources.resolver.runs(table, group, point, scaling) if runnable else ()
        key = point_key(group, point)
        key["recovery_iterations"] = paper_iterations(
            table, experiment, group, point, sources=sources
        )
        foreign = scaling.stand_in or (runs and run_ipc(point, scaling) != point.ipc)
        reported = not (group.control or foreign)
        for metric, (index, seen) in itertools.product(
            group.metrics, enumerate(group.classes or (None,))
        ):
            value = seen or point.value
            label = "" if value is None else str(value)
            key |= {"metric": metric, "setting": group.setting.replace("{}", label)}
            row = sources.reported.row(experiment.reported, key) if reported else {}
            entry = ""
            if seen and runs:
                entry = str((index + 1) * runs[0].data.classes // len(group.classes))
            yield Cell(
                table,
                group.dataset,
                key | (run_key(group, point, scaling, runs[0], entry) if runs else {}),
                row.get("value", ""),
                row.get("std", ""),
                runs[0] if runs else None,
                QUOTED_NOTE if group.quoted else note,
                control=group.control,
                others=runs[1:],
                entry=entry,
                varied=experiment.layout.varied.replace("{}", entry or label) if label else "",
                common=";".join(part for part in group.setting.split(";") if "{}" not in part),
            )


def point_key(group: Group, point: Point) -> dict[str, Any]:
    """The part of a cell's key that its point gives, as the table declares it."""
    return {
        "dataset": group.dataset,
        "method": point.method,
        "ipc": point.ipc or "",
        "recovery_model": point.recovery_model,
        "validation_model": point.validation_model,
    }


def run_key(
    group: Group, point: Point, scaling: DatasetScale, run: Run, entry: str
) -> dict[str, Any]:
    """The parts of a cell's key that a scale replaces, as they ran."""
    images = images_run_of(run)
    key: dict[str, Any] = {
        "recovery_iterations": run_iterations(images.recipe)
        if images and point.recovery_model
        else "",
        "dataset": replaced_name(run.dataset, group.dataset),
        "ipc": run.ipc if point.ipc else "",
    }
    for name in ("recovery_model", "validation_model"):
        declared = getattr(point, name)
        key[name] = replaced_name(scaling.models.get(declared, declared) or "", declared)
    if entry:
        key["setting"] = group.setting.replace("{}", entry)
    return key


def replaced_name(ran: str, declared: str) -> str:
    """A network or data set as a key names it: `convnet3 (for resnet50)` where a scale swaps it."""
    return ran if ran == declared else f"{ran} (for {declared})"


def run_iterations(recipe: Recipe) -> int | str:
    """Iterations of what makes the images; empty for real or imported ones."""
    return recipe.iterations or ""


def paper_iterations(
    table: str, experiment: Experiment, group: Group, point: Point, *, sources: Sources
) -> int | str:
    """Recovery iterations of a point at the paper's scale: part of the key of what it reported."""
    if group.quoted or group.dataset not in sources.datasets:
        row = sources.reported.row(experiment.reported, point_key(group, point))
        return row.get("recovery_iterations", "")
    if not point.recovery_model:
        return ""
    return run_iterations(sources.paper.images(table, group, point, AS_DECLARED).recipe)


def run_ipc(point: Point, scaling: DatasetScale) -> int | None:
    """The IPC that a scale runs for a point."""
    return scaling.ipc.get(point.ipc, point.ipc) if point.ipc else None


def repeats(point: Point, group: Group, *, scaling: DatasetScale) -> bool:
    """Whether a scale runs a point as another of its group: of equal IPCs only one is a cell."""
    if not point.ipc:
        return False
    run = run_ipc(point, scaling)
    same = [ipc for ipc in group.ipc if scaling.ipc.get(ipc, ipc) == run]
    return point.ipc != (run if run in same else same[0])


def missing_network(point: Point, group: Group, *, scaling: DatasetScale, sources: Sources) -> str:
    """Why a point cannot run at a scale that leaves out one of its networks; empty if it can."""
    for name in (point.recovery_model, point.validation_model, *group.relabel_models):
        if scaling.models.get(name, name) is None:
            return f"scale {sources.resolver.scale} has no place for {name}"
    return ""


def replaced_ipcs(groups: Iterable[Group], *, sources: Sources) -> dict[int, int]:
    """The IPC that the scale runs for each declared IPC of some groups."""
    found: dict[int, int] = {}
    for group in groups:
        scaling, problem = sources.scaling(group.dataset)
        if not (group.quoted or problem):
            found |= {ipc: scaling.ipc.get(ipc, ipc) for ipc in group.ipc}
    return found


def pictured_runs(
    figure: str, groups: Iterable[Group], *, sources: Sources
) -> list[tuple[dict[str, Any], Run]]:
    """The recover runs of a figure's groups, each once and with the keys that name it."""
    found: dict[str, tuple[dict[str, Any], Run]] = {}
    for group in groups:
        scaling, problem = sources.scaling(group.dataset)
        for point in () if problem else points(group):
            if missing_network(point, group, scaling=scaling, sources=sources):
                continue
            run = sources.resolver.images(figure, group, point, scaling)
            key = {
                "dataset": replaced_name(run.dataset, group.dataset),
                "method": point.method,
                "recovery_model": point.recovery_model,
                "ipc": point.ipc,
            }
            found.setdefault(run.id, (key, run))
    return list(found.values())
