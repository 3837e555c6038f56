"""From a cell's names to its runs: the layers of values laid over each other, and what a scale runs
instead.

A later layer wins: recipe, recovery model's own values, method, variants, scale, and last what the
table itself sets or varies. A table's own values are what it is about, so a scale shrinks them only
by naming what is run `instead`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cda.config.experiment import DatasetScale, Group
from cda.config.load import scale_file
from cda.config.names import require_bn
from cda.config.recipe import Recipe
from cda.config.settings import Dataset
from cda.config.types import parse
from cda.config.yaml_source import Layer, Sourced, below, nested, places, read_layer, read_plain
from cda.errors import ConfigError
from cda.experiments.runs import (
    Run,
    continual_run,
    recover_run,
    relabel_run,
    score_run,
    squeeze_run,
    validate_run,
)


@dataclass(frozen=True)
class Point:
    """One combination of a group's lists, in the table's own words; `value` is the varied one."""

    method: str
    recovery_model: str
    ipc: int | None
    validation_model: str
    value: Any = None


class Resolver:
    """Resolves groups of the tables of one `config/` folder, for one scale."""

    def __init__(self, config: Path, scale: str) -> None:
        self.config, self.scale = config, scale
        self._datasets: dict[str, Dataset] = {}
        self._recipes: dict[
            str, tuple[Recipe, Layer]
        ] = {}  # many cells share one, and parsing takes a millisecond

    def dataset(self, name: str) -> Dataset:
        """The declared data set `name`; raises ConfigError."""
        if name not in self._datasets:
            self._datasets[name] = self._read(name)
        return self._datasets[name]

    def _read(self, name: str) -> Dataset:
        file = self.config / "datasets" / f"{name}.yaml"
        data = parse(Dataset, read_plain(file), str(file), places(read_layer(file)))
        if data.name != name:
            raise ConfigError(f"{file}: name must be {name}, as the file's (found {data.name!r})")
        return data

    def images(self, table: str, group: Group, point: Point, shrunk: DatasetScale) -> Run:
        """The recover run of a point."""
        data = self.dataset(shrunk.stand_in or group.dataset)
        network = self._model(shrunk, point.recovery_model)
        recipe, layer = self._recipe(table, group, point, shrunk, network)
        if recipe.recover.synthetic:
            require_bn(network)
        return recover_run(data, recipe, squeeze_run(data, recipe, network, layer), layer)

    def runs(self, table: str, group: Group, point: Point, shrunk: DatasetScale) -> tuple[Run, ...]:
        """The runs that measure a point: one, or of several relabel models one each.

        Raises ConfigError.
        """
        data = self.dataset(shrunk.stand_in or group.dataset)
        network = self._model(shrunk, point.recovery_model)
        trained = self._model(shrunk, point.validation_model)
        recipe, layer = self._recipe(table, group, point, shrunk, network)
        ipc = self._ipc(group, point.ipc, shrunk)

        def squeezed(name: str) -> Run:
            own, values = self._recipe(table, group, point, shrunk, name)
            return squeeze_run(data, own, name, values)

        if data.class_names and group.stage != "score":
            problem = f"data set {data.name} has no images to test on (layout: no_images)"
            raise ConfigError(
                f"{self.config / 'experiments' / table}.yaml: {problem}; only scores and "
                "figures do without"
            )
        if group.stage == "score":
            images = self.images(table, group, point, shrunk) if ipc else None
            return (score_run(data, recipe, squeezed(trained), images, ipc, layer),)
        images = self.images(table, group, point, shrunk)
        teachers = [
            squeezed(self._model(shrunk, name))
            for name in group.relabel_models or (point.recovery_model,)
        ]
        if group.stage == "continual":
            if recipe.continual is None:
                raise ConfigError(
                    f"{self._file(data)}: continual is missing; table {table} needs its values"
                )
            return tuple(
                continual_run(data, recipe, images, teacher, trained, ipc, layer)
                for teacher in teachers
            )
        labels = [relabel_run(data, recipe, images, teacher, ipc, layer) for teacher in teachers]
        trainings = [validate_run(data, recipe, own, trained, layer) for own in labels]
        return tuple(
            {run.id: run for run in trainings}.values()
        )  # hard labels know no relabel model

    def _model(self, shrunk: DatasetScale, name: str) -> str:
        """The network that is run for the table's `name`.

        The caller has left out those that none stands for.
        """
        return shrunk.models.get(name, name) or ""

    def _ipc(self, group: Group, asked: int | None, shrunk: DatasetScale) -> int:
        """The IPC that is run; 0 where real validation images are looked at."""
        count = asked or group.sample or 0
        if count and shrunk.ipc and count not in shrunk.ipc:
            raise ConfigError(
                f"{self._scale_file()}: datasets.{group.dataset}.ipc has no entry for "
                f"{count}; add it"
            )
        return shrunk.ipc.get(count, count)

    def _scale_file(self) -> Path:
        return scale_file(self.config, self.scale)

    def _file(self, data: Dataset) -> Path:
        return self.config / "recipes" / f"{data.recipe or data.name}.yaml"

    def _recipe(
        self, table: str, group: Group, point: Point, shrunk: DatasetScale, network: str
    ) -> tuple[Recipe, Layer]:
        """The recipe of a point, and the layer it was made from.

        `network` is squeezed, or recovered from.
        """
        own = self._own(
            table, group, {**group.set, **dict.fromkeys(group.vary, point.value)}, shrunk
        )
        data = self.dataset(shrunk.stand_in or group.dataset)
        key = repr((group.dataset, shrunk, network, point.method, group.variants, own))
        if key not in self._recipes:
            layer = self._layers(data, group, point, shrunk, network) | own
            recipe = parse(Recipe, nested(layer), str(self._file(data)), places(layer))
            self._recipes[key] = (recipe, layer)
        return self._recipes[key]

    def _layers(
        self, data: Dataset, group: Group, point: Point, shrunk: DatasetScale, network: str
    ) -> Layer:
        """Everything below the table's own values."""
        file = self._file(data)
        recipe = read_layer(file)
        layer = {
            k: v
            for k, v in recipe.items()
            if k.split(".")[0] not in ("methods", "variants", "recovery_models")
        }
        layer |= below(recipe, f"recovery_models.{network}")
        layer |= named(recipe, "methods", point.method, file)
        for variant in group.variants:
            layer |= named(recipe, "variants", variant, file)
        if shrunk.recipe:
            layer |= below(read_layer(self._scale_file()), f"datasets.{group.dataset}.recipe")
        return layer

    def _own(
        self, table: str, group: Group, values: Mapping[str, Any], shrunk: DatasetScale
    ) -> Layer:
        """The table's own values, or what the scale runs instead of them."""
        file = f"{self.config / 'experiments' / table}.yaml"
        layer: Layer = {}
        for key, value in values.items():
            if isinstance(value, Mapping):
                raise ConfigError(
                    f"{file}: set.{key} holds a mapping; write dots instead, such as "
                    "validate.epochs: 800"
                )
            layer[key] = Sourced(value, file, "the table's own setting")
            if (others := shrunk.instead.get(key)) is not None:
                where = f"{self._scale_file()}: datasets.{group.dataset}.instead.{key}"
                if value not in others:
                    raise ConfigError(f"{where} has no entry for {value}; add it")
                layer[key] = Sourced(
                    others[value],
                    where,
                    f"our choice for scale {self.scale}: the table has {value}",
                )
        return layer


def named(recipe: Layer, kind: str, name: str, file: Path) -> Layer:
    """The values under `kind` and `name` of a recipe.

    Raises ConfigError that lists the names there are.
    """
    layer = below(recipe, f"{kind}.{name}")
    if not layer and f"{kind}.{name}" not in recipe:
        known = sorted({key.split(".")[1] for key in recipe if key.startswith(f"{kind}.")})
        raise ConfigError(
            f"{file}: {kind}.{name} is missing; add it or use one of {', '.join(known) or 'none'}"
        )
    return layer
