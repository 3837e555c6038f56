"""From `config/` to cells and runs: what every table is made of.

A table is a declared grid of cells; a cell resolves to one validate run per seed and, through it, to everything below.
Cells of different tables that resolve to equal values are the same run. What a cell's paper reported is joined from
`config/reported.csv` by key.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import Field

from cda.config import Count, Dataset, Recipe, Settings, Strict, parse
from cda.errors import ConfigError
from cda.paths import CONFIG, Layout
from cda.runs import Run, recover_run, relabel_run, squeeze_run, validate_run
from cda.sourced import Layer, Sourced, below, nested, places, read_layer, read_plain

Key = Literal[
    "dataset", "method", "recovery_model", "ipc", "recovery_iterations", "setting", "validation_model", "metric"
]
KEYS: tuple[str, ...] = get_args(Key)


T = TypeVar("T")
Several = Annotated[tuple[T, ...], Field(min_length=1)]


class Group(Strict):
    """A grid of cells: every combination of its lists."""

    dataset: str = Field(description="a data set; one that is not declared leaves its cells not_run")
    methods: Several[str] = Field(description="names under methods in the data set's recipe")
    recovery_models: Several[str] = Field(description="networks that are squeezed and recovered from")
    ipc: Several[Count] = Field(description="images per class")
    validation_models: Several[str] = Field(description="networks that are trained on the distilled images")
    relabel_model: str | None = Field(None, description="the network that labels; default: the recovery model")
    metric: Literal["top1", "top5"] = Field("top1", description="accuracy in percent, of the last epoch")
    setting: str = Field("", description="what tells these cells from others with the same keys, as in reported.csv")
    set: dict[str, Any] = Field(
        default_factory=dict, description="the table's own values, with dots: {validate.epochs: 800}"
    )
    variants: tuple[str, ...] = Field((), description="names under variants in the data set's recipe")
    control: bool = Field(False, description="ours and not the paper's: shown apart")


class Layout2D(Strict):
    """Which keys become the rows and the columns of the Markdown table."""

    rows: tuple[Key, ...] = Field(description="keys down the side")
    columns: tuple[Key, ...] = Field(description="keys across the top")


class Experiment(Strict):
    """A table of the paper (or of ours): `config/experiments/<name>.yaml`."""

    title: str = Field(description="its heading")
    caption: str = Field("", description="what stands below it")
    reported: int | None = Field(None, description="the paper's table, in config/reported.csv")
    scales: tuple[str, ...] = Field(description="scales at which it exists")
    layout: Layout2D = Field(description="how the Markdown table is laid out")
    groups: tuple[Group, ...] = Field(description="its grids of cells")


@dataclass(frozen=True)
class Cell:
    """One number of a table: its key, what was reported, and the run that measures it (None: data set not declared)."""

    table: str
    key: Mapping[str, Any]
    reported: str
    reported_std: str
    run: Run | None
    note: str = ""
    control: bool = False


def load_settings(overrides: Mapping[str, Any] | None = None, config: Path = CONFIG) -> Settings:
    """`config/config.yaml`, then the scale's `settings`, then `overrides` (the command line); raises ConfigError."""
    file = config / "config.yaml"
    layer = dict(read_layer(file))
    given = _given(overrides or {})
    scale = given.get("scale", layer.get("scale", Sourced("paper", ""))).value
    if scale != "paper":
        layer |= below(read_scale(config, scale), "settings")
    layer |= given
    return parse(Settings, nested(layer), str(file), places(layer))


def from_environment() -> dict[str, Any]:
    """What $CDA_CONFIG gives, as JSON: the configuration of the workflow that started this job; raises ConfigError."""
    try:
        given = json.loads(os.environ.get("CDA_CONFIG") or "{}")
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise ConfigError(
            'CDA_CONFIG in the environment: must be a JSON object such as {"scale": "demo"}; unset or mend it'
        )
    return given


def _given(overrides: Mapping[str, Any], prefix: str = "") -> Layer:
    layer: Layer = {}
    for key, value in overrides.items():
        if isinstance(value, Mapping) and key != "data_paths":
            layer |= _given(value, f"{prefix}{key}.")
        else:
            layer[prefix + key] = Sourced(value, "the command line")
    return layer


def declared(config: Path) -> list[str]:
    """Names of the data sets in `config/datasets/`."""
    return sorted(path.stem for path in (config / "datasets").glob("*.yaml"))


def read_scale(config: Path, scale: str) -> Layer:
    """A scale's file; raises ConfigError for an unknown scale, or a section or data set that does not exist."""
    file = config / "scales" / f"{scale}.yaml"
    if not file.is_file():
        known = ["paper", *sorted(path.stem for path in (config / "scales").glob("*.yaml"))]
        raise ConfigError(f"config key scale: there is no scale {scale!r}; use one of {', '.join(known)}")
    layer, names = read_layer(file), declared(config)
    for key, value in layer.items():
        section, name = [*key.split("."), ""][:2]
        if section not in ("settings", "recipe", "datasets"):
            raise ConfigError(f"{value.where}: {section} is not a known key; use settings, recipe or datasets")
        if section == "datasets" and name not in names:
            raise ConfigError(f"{value.where}: datasets.{name} is not declared; use one of {', '.join(names)}")
    return layer


class ExperimentSet:
    """Everything declared in `config/`, resolved for one scale."""

    def __init__(self, settings: Settings, config: Path = CONFIG) -> None:
        self.settings, self.config = settings, config
        self.layout = Layout(settings.scale)
        self._scale: Layer = {} if settings.scale == "paper" else read_scale(config, settings.scale)
        self._declared = declared(config)
        for name in settings.data_paths:
            if name not in [*self._declared, "released"]:
                there = ", ".join(self._declared)
                raise ConfigError(f"config key data_paths: {name!r} is not declared; use {there}")
        for name in settings.datasets if settings.datasets != "all" else ():
            if name not in self._declared:
                raise ConfigError(f"config key datasets: {name!r} is not declared; use {', '.join(self._declared)}")

    @cached_property
    def tables(self) -> dict[str, Experiment]:
        """The experiments of this scale, by name."""
        found = {}
        for path in sorted((self.config / "experiments").glob("*.yaml")):
            experiment = parse(Experiment, read_plain(path), str(path))
            if self.settings.scale in experiment.scales:
                found[path.stem] = experiment
        return found

    def dataset(self, name: str) -> Dataset:
        """The declared data set `name`; raises ConfigError."""
        file = self.config / "datasets" / f"{name}.yaml"
        data = parse(Dataset, read_plain(file), str(file))
        if data.name != name:
            raise ConfigError(f"{file}: name must be {name}, as the file's (found {data.name!r})")
        return data

    def cells(self, table: str) -> list[Cell]:
        """The cells of a table, in declared order, narrowed to the settings' data sets."""
        if table not in self.tables:
            raise ConfigError(
                f"there is no table {table!r} at scale {self.settings.scale}; there is {', '.join(self.tables)}"
            )
        wanted = self.settings.datasets
        experiment = self.tables[table]
        found = _quoted(self._reported, experiment.reported, table)
        found += [cell for group in experiment.groups for cell in self._cells(table, experiment, group)]
        return [cell for cell in found if wanted == "all" or cell.key["dataset"] in wanted]

    def _cells(self, table: str, experiment: Experiment, group: Group) -> Iterator[Cell]:
        axes = (group.ipc, group.recovery_models, group.validation_models, group.methods)
        for ipc, recovery_model, validation_model, method in itertools.product(*axes):
            key: dict[str, Any] = {"dataset": group.dataset, "method": method, "recovery_model": recovery_model}
            key |= {"ipc": ipc, "setting": group.setting, "validation_model": validation_model, "metric": group.metric}
            run, note = None, f"data set {group.dataset} is not declared in config/datasets/"
            asked: int | str = self._row(experiment, key).get("recovery_iterations", "")
            shown = asked
            if group.dataset in self._declared:
                chosen = (table, group, method, recovery_model, ipc, validation_model)
                run, note = self._resolve(*chosen, scaled=True), ""
                # The paper is asked by its own iterations, whatever the scale runs.
                asked, shown = _iterations(self._resolve(*chosen, scaled=False)), _iterations(run)
            row = {} if group.control else self._row(experiment, key | {"recovery_iterations": asked})
            key |= {"recovery_iterations": shown}
            yield Cell(table, key, row.get("value", ""), row.get("std", ""), run, note, group.control)

    def _row(self, experiment: Experiment, key: Mapping[str, Any]) -> dict[str, str]:
        """What the paper reported under `key`; empty if nothing."""
        return next((row for row in self._reported if _matches(row, experiment.reported, key)), {})

    @cached_property
    def _reported(self) -> list[dict[str, str]]:
        try:
            with (self.config / "reported.csv").open(encoding="utf-8", newline="") as file:
                return list(csv.DictReader(file))
        except OSError as error:
            where = self.config / "reported.csv"
            raise ConfigError(f"{where}: cannot be read ({error.strerror}); take it from the repository") from None

    def _resolve(
        self, table: str, group: Group, method: str, recovery_model: str, ipc: int, validation_model: str, scaled: bool
    ) -> Run:
        data = self.dataset(group.dataset)
        layer = self._layers(table, group, method, recovery_model, scaled)
        where = next(
            (v.where for v in layer.values() if v.where.startswith(str(self.config / "recipes"))), "config/recipes"
        )
        recipe = parse(Recipe, nested(layer), where.rsplit(":", 1)[0], places(layer))
        model = squeeze_run(data, recipe, recovery_model, layer)
        relabel_model = squeeze_run(data, recipe, group.relabel_model, layer) if group.relabel_model else model
        images = recover_run(data, recipe, model, layer)
        labels = relabel_run(data, recipe, images, relabel_model, ipc, layer)
        return validate_run(data, recipe, labels, validation_model, layer)

    def _layers(self, table: str, group: Group, method: str, recovery_model: str, scaled: bool) -> Layer:
        """Recipe, recovery model's own values, method, variants, cell, scale: a later one wins."""
        file = self.config / "recipes" / f"{group.dataset}.yaml"
        recipe = read_layer(file)
        layer = {k: v for k, v in recipe.items() if k.split(".")[0] not in ("methods", "variants", "recovery_models")}
        layer |= below(recipe, f"recovery_models.{recovery_model}")
        layer |= _named(recipe, "methods", method, file)
        for variant in group.variants:
            layer |= _named(recipe, "variants", variant, file)
        own = f"{self.config / 'experiments' / table}.yaml"
        for key, value in group.set.items():
            if isinstance(value, Mapping):
                raise ConfigError(f"{own}: set.{key} holds a mapping; write dots instead, such as validate.epochs: 800")
            layer[key] = Sourced(value, own, "the table's own setting")
        if scaled:
            layer |= below(self._scale, "recipe")
            layer |= below(self._scale, f"datasets.{group.dataset}")
        return layer

    def runs(self, tables: tuple[str, ...] | None = None) -> dict[str, Run]:
        """Every run of the named tables (default all), upstream first, by id."""
        found: dict[str, Run] = {}
        for table in tables if tables is not None else tuple(self.tables):
            for cell in self.cells(table):
                for run in cell.run.chain() if cell.run else ():
                    found.setdefault(run.id, run)
        return found

    def run(self, run_id: str, stage: str | None = None) -> Run:
        """The run with this id; raises ConfigError if no table of the scale has it."""
        run = self._all_runs.get(run_id)
        if run is None or stage not in (None, run.stage):
            raise ConfigError(
                f"no {stage or 'run'} {run_id!r} at scale {self.settings.scale}; `cda runs` lists the runs of a table"
            )
        return run

    @cached_property
    def _all_runs(self) -> dict[str, Run]:
        everything = self.settings.model_copy(update={"datasets": "all"})
        return ExperimentSet(everything, self.config).runs() if self.settings.datasets != "all" else self.runs()


def _iterations(run: Run) -> int | str:
    recover = run.upstream["labels"].upstream["images"].recipe.recover
    return recover.iterations if recover.synthetic else ""


def _named(recipe: Layer, kind: str, name: str, file: Path) -> Layer:
    layer = below(recipe, f"{kind}.{name}")
    if not layer and f"{kind}.{name}" not in recipe:
        known = sorted({key.split(".")[1] for key in recipe if key.startswith(f"{kind}.")})
        raise ConfigError(f"{file}: {kind}.{name} is missing; add it or use one of {', '.join(known) or 'none'}")
    return layer


def _matches(row: Mapping[str, str], table: int | None, key: Mapping[str, Any]) -> bool:
    if table is None or row["table"] != str(table):
        return False
    return all(row[name] == str(key[name]) for name in KEYS if name in key)


def _quoted(reported: list[dict[str, str]], table: int | None, name: str) -> list[Cell]:
    rows = [row for row in reported if row["table"] == str(table) and row["setting"] == "quoted"]
    return [
        Cell(name, {key: row[key] for key in KEYS}, row["value"], row["std"], None, "quoted in the paper")
        for row in rows
    ]
