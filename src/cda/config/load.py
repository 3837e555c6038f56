"""The settings of one call: `config/config.yaml`, then the scale's file, then the command line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cda.config.experiment import Scale
from cda.config.settings import Dataset, Settings
from cda.config.types import parse
from cda.config.yaml_source import (
    Layer,
    Sourced,
    below,
    nested,
    overlay,
    places,
    read_layer,
    read_model,
    read_plain,
)
from cda.errors import ConfigError
from cda.text import nearest

CONFIG = Path("config")


def load_settings(overrides: Mapping[str, Any] | None = None, config: Path = CONFIG) -> Settings:
    """`config/config.yaml`, then the scale's `settings`, then `overrides` (the command line).

    Raises ConfigError.
    """
    file = config / "config.yaml"
    layer = dict(read_layer(file))
    changes = _override_layer(overrides or {})
    scale = changes.get("scale", layer.get("scale", Sourced("paper", ""))).value
    if scale != "paper":
        read_scale(config, scale)
        layer = overlay(layer, below(read_layer(scale_file(config, scale)), "settings"))
    layer = overlay(layer, changes)
    return parse(Settings, nested(layer), str(file), places(layer))


def from_environment() -> dict[str, Any]:
    """The value of $CDA_CONFIG, JSON: the configuration of the workflow that started this job.

    Raises ConfigError.
    """
    try:
        values = json.loads(os.environ.get("CDA_CONFIG") or "{}")
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise ConfigError(
            'CDA_CONFIG in the environment: must be a JSON object such as {"scale": "demo"}; '
            "unset or fix it"
        )
    return values


def merge(first: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    """`first` with the values of `then`, nested key by nested key."""
    result = dict(first)
    for key, value in then.items():
        before = result.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        result[key] = merge(before or {}, value) if both else value
    return result


def _override_layer(overrides: Mapping[str, Any], prefix: str = "") -> Layer:
    layer: Layer = {}
    for key, value in overrides.items():
        if isinstance(value, Mapping) and key != "data_paths":
            layer |= _override_layer(value, f"{prefix}{key}.")
        else:
            layer[prefix + key] = Sourced(value, "the command line")
    return layer


def dataset_names(config: Path) -> list[str]:
    """Names of the data sets in `config/datasets/`."""
    return sorted(path.stem for path in (config / "datasets").glob("*.yaml"))


def read_dataset(file: Path) -> Dataset:
    """The data set that a file declares; `class_map` and `exclude` may name files beside it.

    Raises ConfigError.
    """
    values, written = dict(read_plain(file)), places(read_layer(file))
    for key in ("class_map", "exclude"):
        if isinstance(name := values.get(key), str):
            values[key] = _read_lines(file.parent, name, f"{written[key]}: {key}")
    return parse(Dataset, values, str(file), written)


def _read_lines(folder: Path, name: str, where: str) -> list[str]:
    """The lines of a text file, but empty ones and comments ("# …")."""
    try:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise OSError("it is no name of a file")
        text = (folder / name).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{where} names a text file in {folder}, but {name!r} cannot be read ({reason})"
        ) from None
    lines = (line.rstrip("\r") for line in text.split("\n"))
    return [line for line in lines if line.strip() and not line.startswith("# ")]


def scale_file(config: Path, scale: str) -> Path:
    """The file that declares a scale."""
    return config / "scales" / f"{scale}.yaml"


def scale_names(config: Path) -> list[str]:
    """Every scale, the paper's first."""
    return ["paper", *sorted(path.stem for path in (config / "scales").glob("*.yaml"))]


def read_scale(config: Path, scale: str) -> Scale:
    """A scale; raises ConfigError for an unknown scale, key or data set."""
    file = scale_file(config, scale)
    if not re.fullmatch(r"\w[\w-]*", str(scale)) or not file.is_file():  # it names folders too
        known = scale_names(config)
        raise ConfigError(
            f"config key scale: there is no scale {scale!r}{nearest(scale, known)}; use one of "
            f"{', '.join(known)}"
        )
    declared, names = read_model(Scale, file), dataset_names(config)
    for name, shrunk in declared.datasets.items():
        for dataset in (name, shrunk.stand_in or name):
            if dataset not in names:
                written = places(read_layer(file)).items()
                lines = [where for key, where in written if key.startswith(f"datasets.{name}")]
                raise ConfigError(
                    f"{lines[0] if lines else file}: data set {dataset} is not declared"
                    f"{nearest(dataset, names)}; use one of {', '.join(names)}"
                )
    return declared


def read_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """This call's configuration: $CDA_CONFIG, then `--config KEY=VALUE` pairs."""
    return merge(from_environment(), parse_pairs(pairs))


def parse_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """`a.b=value` pairs as nested values; raises ConfigError."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--config {pair}: must be KEY=VALUE, for instance scale=demo")
        *parents, last = key.split(".")
        branch = values
        try:
            for parent in parents:
                branch = branch.setdefault(parent, {})
            branch[last] = yaml.safe_load(text)
        except (yaml.YAMLError, TypeError, AttributeError, ValueError, RecursionError):
            message = "cannot be read; must be KEY=VALUE, for instance scale=demo"
            raise ConfigError(f"--config {pair}: {message}") from None
    return values
