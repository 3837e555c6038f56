"""YAML files whose trailing comments give the source of each value.

    lr: 0.25  # paper Table 10b

reads as the value 0.25 of key `lr` with the source "paper Table 10b", its file and its line. Layers
of such values (recipe, method, variant, scale, cell) replace each other key by key, so that a
resolved run knows the source of each of its values.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from yaml.composer import Composer, ComposerError

from cda.config.types import Strict, parse
from cda.errors import ConfigError
from cda.text import nearest

M = TypeVar("M", bound=Strict)


@dataclass(frozen=True)
class Sourced:
    """A value, where it is written (file and line), and its source (the comment beside it)."""

    value: Any
    where: str
    source: str = ""


Layer = dict[str, Sourced]  # dotted key -> value


@dataclass(frozen=True)
class Parsed:
    """A parsed file: its values by dotted key, and as nested plain Python values."""

    layer: Layer
    values: Any


class _Loader(Composer, yaml.CSafeLoader):
    """libyaml's fast parser under PyYAML's own composer, which limits what a file can stand for.

    An anchored value (`&name`) must not contain an alias (`*name`): a few lines of such values can
    stand for billions. Deep nesting raises RecursionError, where libyaml's composer, which is C,
    crashes.
    """

    def __init__(self, text: str) -> None:
        yaml.CSafeLoader.__init__(self, text)
        Composer.__init__(self)
        self._open_anchors = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            if self._open_anchors:
                problem = f"alias *{event.anchor} inside an anchored value (&name)"
                mark: Any = event.start_mark
                raise ComposerError(None, None, problem, mark)
            return super().compose_node(parent, index)
        anchored = event.anchor is not None
        self._open_anchors += anchored
        node = super().compose_node(parent, index)
        self._open_anchors -= anchored
        return node


def read_layer(path: Path) -> Layer:
    """The file at `path` as dotted keys with sources.

    Raises ConfigError, one line with file and line.
    """
    return _parse(path, _text(path)).layer


def read_plain(path: Path) -> Any:
    """The file at `path` as plain Python values; raises ConfigError as `read_layer` does."""
    return _parse(path, _text(path)).values


def read_model(model: type[M], path: Path) -> M:
    """The file at `path` as a `model`; raises ConfigError with the line of the wrong key."""
    return parse(model, read_plain(path), str(path), places(read_layer(path)))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except ValueError:
        raise ConfigError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except OSError:
        raise ConfigError(f"{path}: no such file{_siblings(path)}") from None


def _siblings(path: Path) -> str:
    names = sorted(other.name for other in path.parent.glob("*.yaml"))
    if names:
        return f"{nearest(path.name, names)}; it should be one of {', '.join(names)}"
    missing = "the folder is missing: start in the repository's root"
    return f"; it should be one of the files of {path.parent} ({missing})"


@cache
def _parse(path: Path, text: str) -> Parsed:
    """The content `text` of the file at `path`; raises ConfigError."""

    def invalid(line: int | str, problem: object) -> ConfigError:
        return ConfigError(f"{path}:{line}: not valid YAML: {problem}; fix that line")

    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            return Parsed({}, {})
        layer = _flatten(node, text.splitlines(), path)
        return Parsed(layer, yaml.SafeLoader("").construct_document(node))
    except yaml.reader.ReaderError as error:
        raise invalid(text[: error.position].count("\n") + 1, error.reason) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise invalid(line, error.problem) from None
    except ConfigError:
        raise
    except ValueError as error:  # an impossible number or date as a key
        raise ConfigError(f"{path}: not valid YAML: {error}; fix that key") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply; write fewer levels") from None


def _flatten(node: yaml.Node, lines: list[str], path: Path, prefix: str = "") -> Layer:
    """Every leaf of a mapping node by its dotted key."""
    if not isinstance(node, yaml.MappingNode):
        at = f"{path}:{node.start_mark.line + 1}"
        raise ConfigError(f"{at}: {prefix or 'the file'} must be a mapping of keys to values")
    layer: Layer = {}
    for key, where, value in _entries(node, path, prefix):
        if isinstance(value, yaml.MappingNode) and value.value:
            part = _flatten(value, lines, path, key)
        else:
            _check_repeats(value, path, key)
            source = _comment(lines, value.end_mark)
            part = {key: Sourced(_value(value, where), where, source)}
        if repeated := [name for name in part if name in layer]:
            raise _written_twice(repeated[0], where)
        layer |= part
    return layer


def _entries(
    node: yaml.MappingNode, path: Path, prefix: str
) -> Iterator[tuple[str, str, yaml.Node]]:
    """The dotted key, place and value of each entry; raises ConfigError for a repeated key."""
    seen = set()
    for key_node, value in node.value:
        key = f"{prefix}.{key_node.value}" if prefix else str(key_node.value)
        where = f"{path}:{key_node.start_mark.line + 1}"
        if key in seen:
            raise _written_twice(key, where)
        seen.add(key)
        yield key, where, value


def _check_repeats(node: yaml.Node, path: Path, prefix: str) -> None:
    """Raise ConfigError for a repeated key in a mapping inside a list, at any depth."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_repeats(item, path, prefix)
    elif isinstance(node, yaml.MappingNode):
        for key, _, value in _entries(node, path, prefix):
            _check_repeats(value, path, key)


def _written_twice(key: str, where: str) -> ConfigError:
    return ConfigError(f"{where}: {key} is written twice; keep one")


def _value(node: yaml.Node, where: str) -> Any:
    """The Python value of a node; raises ConfigError for an impossible number or date."""
    try:
        return yaml.SafeLoader("").construct_document(node)
    except ValueError as error:
        raise ConfigError(f"{where}: not valid YAML: {error}; fix that line") from None


def _comment(lines: list[str], mark: yaml.Mark) -> str:
    """The comment after the value that ends at `mark`."""
    if mark.line >= len(lines):
        return ""
    rest = lines[mark.line][mark.column :].strip().lstrip(",]} ")
    return rest[1:].strip() if rest.startswith("#") else ""


def below(layer: Layer, prefix: str) -> Layer:
    """The part of a layer under `prefix`, with the prefix taken off."""
    cut = len(prefix) + 1
    return {key[cut:]: value for key, value in layer.items() if key.startswith(prefix + ".")}


def overlay(layer: Layer, later: Layer) -> Layer:
    """`layer` with the values of `later`; a mapping replaces a plain value, and the reverse."""
    return {
        key: value
        for key, value in layer.items()
        if not any(f"{key}.".startswith(f"{new}.") or new.startswith(f"{key}.") for new in later)
    } | later


def places(layer: Layer) -> dict[str, str]:
    """Where each key of a layer is written."""
    return {key: value.where for key, value in layer.items()}


def nested(layer: Layer) -> dict[str, Any]:
    """A layer as nested plain values; raises ConfigError for a key below a plain value."""
    tree: dict[str, Any] = {}
    for key, sourced in layer.items():
        *parents, last = key.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
            if not isinstance(branch, dict):
                raise ConfigError(
                    f"{sourced.where}: {key} is set, but {parent} has a plain value; drop one"
                )
        branch[last] = copy.deepcopy(sourced.value)
    return tree
