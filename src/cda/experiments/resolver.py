"""From a cell's names to its runs, through layers of recipe values.

A later layer wins: recipe, the recovery model's own values, method, variants, scale, and last what
the table itself sets or varies. A table is about its own values, so a scale replaces them only
where its `instead` names the value that runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cda.config.experiment import DatasetScale, Group
from cda.config.load import read_dataset, scale_file
from cda.config.names import require_bn
from cda.config.recipe import Recipe
from cda.config.settings import Dataset
from cda.config.types import parse
from cda.config.yaml_source import Layer, Sourced, below, nested, places, read_layer
from cda.errors import ConfigError
from cda.experiments.runs import (
    Run,
    continual_run,
    distill_run,
    recover_run,
    relabel_run,
    score_run,
    squeeze_run,
    validate_run,
)
from cda.text import nearest


@dataclass(frozen=True)
class Point:
    """One combination of a group's lists, as the table declares it; `value` is the varied one."""

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
        # Many cells share a recipe, and parsing one takes a millisecond.
        self._recipes: dict[str, tuple[Recipe, Layer]] = {}

    def dataset(self, name: str) -> Dataset:
        """The declared data set `name`; raises ConfigError."""
        if name not in self._datasets:
            self._datasets[name] = self._read(name)
        return self._datasets[name]

    def _read(self, name: str) -> Dataset:
        file = self.config / "datasets" / f"{name}.yaml"
        data = read_dataset(file)
        if data.name != name:
            raise ConfigError(f"{file}: name must be {name}, as the file's (found {data.name!r})")
        return data

    def images(self, table: str, group: Group, point: Point, scaling: DatasetScale) -> Run:
        """The recover or distill run of a point."""
        data = self.dataset(scaling.stand_in or group.dataset)
        network = self._model(scaling, point.recovery_model)
        recipe, layer = self._recipe(table, group, point, scaling, network)
        if recipe.distill:
            ipc = self._ipc(group, point.ipc, scaling)
            return distill_run(data, recipe, network, ipc, layer)
        if recipe.recover.synthetic:
            require_bn(network)
        return recover_run(data, recipe, squeeze_run(data, recipe, network, layer), layer)

    def runs(
        self, table: str, group: Group, point: Point, scaling: DatasetScale
    ) -> tuple[Run, ...]:
        """The runs that measure a point, one for each relabel model; raises ConfigError."""
        data = self.dataset(scaling.stand_in or group.dataset)
        network = self._model(scaling, point.recovery_model)
        trained = self._model(scaling, point.validation_model)
        recipe, layer = self._recipe(table, group, point, scaling, network)
        ipc = self._ipc(group, point.ipc, scaling)

        def squeezed(name: str) -> Run:
            own, values = self._recipe(table, group, point, scaling, name)
            return squeeze_run(data, own, name, values)

        if data.class_names and group.stage != "score":
            problem = f"data set {data.name} has no images to test on (layout: no_images)"
            raise ConfigError(
                f"{self.config / 'experiments' / table}.yaml: {problem}; only scores and "
                "figures do without"
            )
        if group.stage == "score":
            images = self.images(table, group, point, scaling) if ipc else None
            return (score_run(data, recipe, squeezed(trained), images, ipc, layer),)
        images = self.images(table, group, point, scaling)
        teachers = [
            squeezed(self._model(scaling, name))
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
        # Under hard labels, runs of several relabel models are the same run.
        return tuple({run.id: run for run in trainings}.values())

    def _model(self, scaling: DatasetScale, name: str) -> str:
        """The network that runs in place of the table's `name`; callers skip names without one."""
        return scaling.models.get(name, name) or ""

    def _ipc(self, group: Group, declared: int | None, scaling: DatasetScale) -> int:
        """The IPC that runs; 0 for scores of the real validation images."""
        count = declared or group.sample or 0
        if count and scaling.ipc and count not in scaling.ipc:
            raise ConfigError(
                f"{self._scale_file()}: datasets.{group.dataset}.ipc has no entry for "
                f"{count}; add it"
            )
        return scaling.ipc.get(count, count)

    def _scale_file(self) -> Path:
        return scale_file(self.config, self.scale)

    def _file(self, data: Dataset) -> Path:
        return self.config / "recipes" / f"{data.recipe or data.name}.yaml"

    def _recipe(
        self, table: str, group: Group, point: Point, scaling: DatasetScale, network: str
    ) -> tuple[Recipe, Layer]:
        """The recipe of a point, and its layer; `network` is squeezed or recovered from."""
        own = self._own(
            table, group, {**group.set, **dict.fromkeys(group.vary, point.value)}, scaling
        )
        data = self.dataset(scaling.stand_in or group.dataset)
        ipc = scaling.ipc.get(point.ipc, point.ipc) if point.ipc else 0
        key = repr((group.dataset, scaling, network, point.method, ipc, group.variants, own))
        if key not in self._recipes:
            layer = self._layers(data, group, point, scaling, network, ipc) | own
            recipe = parse(Recipe, nested(layer), str(self._file(data)), places(layer))
            self._recipes[key] = (recipe, layer)
        return self._recipes[key]

    def _layers(
        self,
        data: Dataset,
        group: Group,
        point: Point,
        scaling: DatasetScale,
        network: str,
        ipc: int,
    ) -> Layer:
        """All layers but the table's own values; a method's `ipc.N` holds values for that IPC."""
        file = self._file(data)
        recipe = read_layer(file)
        layer = {
            k: v
            for k, v in recipe.items()
            if k.split(".")[0] not in ("methods", "variants", "recovery_models")
        }
        layer |= below(recipe, f"recovery_models.{network}")
        method = named(recipe, "methods", point.method, file)
        layer |= {key: value for key, value in method.items() if key.split(".")[0] != "ipc"}
        layer |= below(method, f"ipc.{ipc}")
        for variant in group.variants:
            layer |= named(recipe, "variants", variant, file)
        variants = [f"variants.{variant}" for variant in group.variants]
        if scaling.recipe or scaling.methods or scaling.variants:
            scale, place = read_layer(self._scale_file()), f"datasets.{group.dataset}"
            for part in ("recipe", f"methods.{point.method}", *variants):
                layer |= below(scale, f"{place}.{part}")
        return layer

    def _own(
        self, table: str, group: Group, values: Mapping[str, Any], scaling: DatasetScale
    ) -> Layer:
        """The table's own values, each replaced by what the scale's `instead` names for it."""
        file = f"{self.config / 'experiments' / table}.yaml"
        layer: Layer = {}
        for key, value in values.items():
            if isinstance(value, Mapping):
                raise ConfigError(
                    f"{file}: set.{key} holds a mapping; write dots instead, such as "
                    "validate.epochs: 800"
                )
            layer[key] = Sourced(value, file, "the table's own setting")
            if (others := scaling.instead.get(key)) is not None:
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
    """A recipe's values under `kind` and `name`; raises ConfigError that lists known names."""
    layer = below(recipe, f"{kind}.{name}")
    if not layer and f"{kind}.{name}" not in recipe:
        known = sorted({key.split(".")[1] for key in recipe if key.startswith(f"{kind}.")})
        raise ConfigError(
            f"{file}: {kind}.{name} is missing{nearest(name, known)}; add it or use one of "
            f"{', '.join(known) or 'none'}"
        )
    return layer
