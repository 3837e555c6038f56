"""YAML whose trailing comments say where each value comes from.

    lr: 0.25  # paper Table 10b

reads as the value 0.25 of key `lr` with the source "paper Table 10b", its file and its line. Layers
of such values (recipe, method, variant, scale, cell) are laid over each other key by key, so that a
resolved run can tell the source of everything in it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cda.errors import ConfigError

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DEEP, _MANY = (
    50,
    100_000,
)  # levels, and values with every alias (*name) written out: far above any file of ours


@dataclass(frozen=True)
class Sourced:
    """A value, where it is written, and why it is what it is."""

    value: Any
    where: str
    source: str = ""


Layer = dict[str, Sourced]  # dotted key -> value


def _node(path: Path) -> tuple[yaml.Node | None, list[str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except ValueError:
        raise ConfigError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except OSError:
        raise ConfigError(f"{path}: no such file; it should be one of {_siblings(path)}") from None
    try:
        _bounded(text, path)
        return yaml.compose(text, Loader=_Loader), text.splitlines()
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise ConfigError(
            f"{path}:{line}: not valid YAML: {error.reason}; mend that line"
        ) from None
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError(f"{path}:{at}: not valid YAML: {error.problem}; mend that line") from None


def _bounded(text: str, path: Path) -> None:
    """Raises ConfigError for a file that would exhaust stack or memory, which a few lines of
    aliases can.
    """
    sizes: dict[
        str, int
    ] = {}  # of what each anchor names; of what is still open more than is allowed
    anchors, counts = [""], [0]  # of what is open
    for event in yaml.parse(text, Loader=_Loader):
        anchor = getattr(event, "anchor", None) or ""
        if isinstance(event, yaml.CollectionStartEvent):
            anchors.append(anchor)
            counts.append(1)
            sizes[anchor] = _MANY + 1
        elif isinstance(event, yaml.CollectionEndEvent):
            sizes[anchors.pop()] = count = counts.pop()
            counts[-1] += count
        elif isinstance(event, yaml.NodeEvent):
            counts[-1] += sizes.get(anchor, 1) if isinstance(event, yaml.AliasEvent) else 1
        if len(counts) > _DEEP or counts[-1] > _MANY:
            what = (
                f"{_DEEP} levels"
                if len(counts) > _DEEP
                else f"{_MANY:,} values, those of aliases included"
            )
            at = event.start_mark.line + 1 if event.start_mark else "?"
            raise ConfigError(f"{path}:{at}: more than {what}; write a smaller file")


def _siblings(path: Path) -> str:
    names = (
        sorted(other.name for other in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
    )
    return (
        ", ".join(names)
        or f"the files of {path.parent} (the folder is missing: start in the repository's root)"
    )


def _value(node: yaml.Node, where: str) -> Any:
    """The Python value of a node; raises ConfigError for what YAML cannot make one of."""
    try:
        return yaml.SafeLoader("").construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{where}: not valid YAML: {getattr(error, 'problem', error)}; mend that line"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{where}: not valid YAML: {error}; mend that line") from None


def _repeats(node: yaml.Node, path: Path, prefix: str = "") -> None:
    """Raises ConfigError for a key that a mapping holds twice, at any depth."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _repeats(item, path, prefix)
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            name = f"{prefix}.{key.value}" if prefix else str(key.value)
            if name in seen:
                raise ConfigError(
                    f"{path}:{key.start_mark.line + 1}: {name} is written twice; keep one"
                )
            seen.add(name)
            _repeats(value, path, name)


def _comment(lines: list[str], mark: yaml.Mark) -> str:
    """The comment after the value that ends at `mark`."""
    if mark.line >= len(lines):
        return ""
    rest = lines[mark.line][mark.column :].strip().lstrip(",]} ")
    return rest[1:].strip() if rest.startswith("#") else ""


def flatten(
    node: yaml.Node, lines: list[str], path: Path, prefix: str = "", depth: int = 99
) -> Layer:
    """Every leaf of a mapping node as a dotted key; mappings deeper than `depth` are values."""
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(
            f"{path}:{node.start_mark.line + 1}: {prefix or 'the file'} must be a mapping of "
            "keys to values"
        )
    layer: Layer = {}
    for key_node, value_node in node.value:
        key = f"{prefix}.{key_node.value}" if prefix else str(key_node.value)
        where = f"{path}:{key_node.start_mark.line + 1}"
        if key in layer:
            raise ConfigError(f"{where}: {key} is written twice; keep one")
        if isinstance(value_node, yaml.MappingNode) and value_node.value and depth > 1:
            layer |= flatten(value_node, lines, path, key, depth - 1)
        else:
            layer[key] = Sourced(
                _value(value_node, where), where, _comment(lines, value_node.end_mark)
            )
    return layer


def read_layer(path: Path) -> Layer:
    """The file at `path` as dotted keys with sources.

    Raises ConfigError, one line with file and line.
    """
    return _layer(path, Path.cwd())


@cache
def _layer(path: Path, _folder: Path) -> Layer:
    node, lines = _node(path)
    if node is not None:
        _repeats(node, path)
    return flatten(node, lines, path) if node is not None else {}


def read_plain(path: Path) -> Any:
    """The file at `path` as plain Python values, keys checked for repeats."""
    return _plain(path, Path.cwd())


@cache
def _plain(path: Path, _folder: Path) -> Any:
    node, lines = _node(path)
    if node is None:
        return {}
    _repeats(node, path)
    flatten(node, lines, path)
    return _value(node, str(path))


def below(layer: Layer, prefix: str) -> Layer:
    """The part of a layer under `prefix`, with the prefix taken off."""
    cut = len(prefix) + 1
    return {key[cut:]: value for key, value in layer.items() if key.startswith(prefix + ".")}


def places(layer: Layer) -> dict[str, str]:
    """Where each key of a layer is written."""
    return {key: value.where for key, value in layer.items()}


def nested(layer: Layer) -> dict[str, Any]:
    """A layer as nested plain values."""
    tree: dict[str, Any] = {}
    for key, sourced in layer.items():
        *parents, last = key.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = copy.deepcopy(sourced.value)
    return tree
