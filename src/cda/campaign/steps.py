"""What a campaign is made of.

The steps of `config/campaign.yaml`, in order, and the cells that each asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import Field

from cda.config.experiment import DatasetScale, Experiment, Group, Several
from cda.config.load import load_settings, read_scale
from cda.config.settings import Settings
from cda.config.types import Count, Name, Strict, parse
from cda.config.yaml_source import places, read_layer, read_plain
from cda.errors import ConfigError
from cda.experiments.cells import AS_DECLARED, Cell
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.grid import controls_of

FILTERS = {
    "datasets": "dataset",
    "methods": "methods",
    "ipc": "ipc",
    "validation_models": "validation_models",
}


class Step(Strict):
    """Some cells of one table; what is not given narrows nothing."""

    table: Name = Field(description="a table in config/experiments/, of any scale")
    datasets: tuple[Name, ...] = Field((), description="only these data sets, in this order")
    methods: tuple[Name, ...] = Field((), description="only these methods, in this order")
    ipc: tuple[Count, ...] = Field(
        (), description="only these images per class, in this order, as the table has them"
    )
    validation_models: tuple[Name, ...] = Field(
        (), description="only these trained networks, in this order, as the table has them"
    )

    @property
    def title(self) -> str:
        """Its table and what it is narrowed to, in a few words."""
        ipc = ("IPC " + ", ".join(map(str, self.ipc)),) if self.ipc else ()
        return " ".join([self.table, *self.datasets, *self.methods, *ipc, *self.validation_models])


class Campaign(Strict):
    """What `cda campaign` measures, the most valuable cells first."""

    steps: Several[Step] = Field(description="in the order in which they are run")


def read_campaign(config: Path) -> Campaign:
    """`config/campaign.yaml`; raises ConfigError, also for a table or a filter that no cell of any
    scale answers.
    """
    file = config / "campaign.yaml"
    written = places(read_layer(file))
    campaign = parse(Campaign, read_plain(file), str(file), written)
    tables = _tables(config)
    for index, step in enumerate(campaign.steps):
        _check(step, tables, f"{written['steps']}: steps.{index}")
    return campaign


def _tables(config: Path) -> dict[str, Experiment]:
    """Every declared table, of whatever scale, by name."""
    found: dict[str, Experiment] = {}
    for scale in ("paper", *sorted(path.stem for path in (config / "scales").glob("*.yaml"))):
        found |= ExperimentSet(load_settings({"scale": scale}, config), config).tables
    return found


def _check(step: Step, tables: Mapping[str, Experiment], where: str) -> None:
    if step.table not in tables:
        raise ConfigError(
            f"{where}.table: there is no table {step.table!r}; use one of {', '.join(tables)}"
        )
    groups = list(_measured(tables[step.table]))
    if not groups:
        raise ConfigError(f"{where}.table: {step.table} has no cells that are run; leave it out")
    for name in FILTERS:
        asked = getattr(step, name)
        there = dict.fromkeys(value for group in groups for value in _values(group, name))
        for value in asked:
            if value not in there:
                told = ", ".join(map(str, there))
                raise ConfigError(
                    f"{where}.{name}: no cell of {step.table} has {value!r} there; use {told}"
                )
        groups = [group for group in groups if not asked or set(asked) & set(_values(group, name))]


def _measured(experiment: Experiment) -> Iterator[Group]:
    """A table's groups that are run, and their controls."""
    for group in experiment.groups:
        if not group.quoted:
            yield group
            yield from controls_of(group)


def _values(group: Group, name: str) -> tuple[str | int, ...]:
    value = getattr(group, FILTERS[name])
    return (value,) if isinstance(value, str) else value


def cells_of(experiments: ExperimentSet, step: Step) -> list[Cell]:
    """The cells that a step asks for at the scale of `experiments`, in the order in which they are
    run.
    """
    settings = experiments.settings
    if step.table not in experiments.tables:
        return []
    shrunk = (
        {} if settings.scale == "paper" else read_scale(experiments.config, settings.scale).datasets
    )
    cells = [
        cell for cell in experiments.cells(step.table) if cell.run and _is_asked(cell, settings)
    ]
    placed = [(_place(step, cell, shrunk.get(cell.dataset, AS_DECLARED)), cell) for cell in cells]
    return [cell for place, cell in sorted(placed, key=lambda pair: pair[0]) if -1 not in place]


def _is_asked(cell: Cell, settings: Settings) -> bool:
    return settings.datasets == "all" or cell.dataset in settings.datasets


def _place(step: Step, cell: Cell, shrunk: DatasetScale) -> tuple[int, ...]:
    """Where the values of a cell stand in the step's lists; -1 where they do not."""
    run = cell.run
    assert run is not None
    pairs: tuple[tuple[list[str | int | None], str | int], ...] = (
        (list(step.datasets), cell.dataset),
        ([shrunk.ipc.get(ipc, ipc) for ipc in step.ipc], run.ipc),
        ([shrunk.models.get(name, name) for name in step.validation_models], run.model),
        (list(step.methods), str(cell.key["method"])),
    )
    return tuple(
        wanted.index(value) if value in wanted else -1 if wanted else 0 for wanted, value in pairs
    )
