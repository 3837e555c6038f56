"""Print docs/configuration.md, the reference of every configuration key.

It is made from the typed fields of `cda.config` and nothing else.

Usage: python tools/config_reference.py [--check]
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from cda.config.experiment import DatasetScale, Experiment, Figure, Group, Layout2D, Scale
from cda.config.recipe import Recipe
from cda.config.settings import Dataset, Settings
from cda.config.types import Strict

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
HEAD = """# Configuration

Made by `make docs` from the typed fields in `src/cda/config/`.
An unknown key, a wrong type or a value out of range ends in one line that names the file, the key
and what is allowed. How files and layers fit together: [config/README.md](../config/README.md).

A recipe has, besides the stages' values below, three sections of named changes to them, each a
mapping of names to the same keys: `methods` (named by a table's `methods`), `variants` (other
readings of the paper, named by a table's `variants`) and `recovery_models` (values of one network
that is squeezed or recovered from).
"""


def _type(schema: dict[str, Any]) -> str:
    """A field's type in words, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if "$ref" in schema:
        return "mapping"
    kind = {
        "integer": "whole number",
        "array": "list",
        "object": "mapping",
        "string": "text",
        "null": "nothing",
    }
    bounds = {"minimum": "≥ {}", "maximum": "≤ {}", "exclusiveMinimum": "> {}"}
    limits = ", ".join(
        text.format(f"{schema[key]:g}") for key, text in bounds.items() if key in schema
    )
    name = kind.get(schema.get("type", ""), schema.get("type", "any"))
    return f"{name} {limits}".strip()


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    default = field.default if field.default is not PydanticUndefined else field.default_factory()
    if isinstance(default, Strict):
        return ""
    return f"`{json.dumps(default)}`"


def _section(title: str, model: type[Strict]) -> list[str]:
    properties = model.model_json_schema()["properties"]
    about = re.sub(r"\s+", " ", model.__doc__ or "").strip()
    lines = [
        f"## {title}",
        "",
        about,
        "",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
    ]
    for name, field in model.model_fields.items():
        key = field.alias or name
        lines.append(
            f"| `{key}` | {_type(properties[key])} | {_default(field)} | "
            f"{field.description or ''} |"
        )
    return [*lines, ""]


def page() -> str:
    """The reference as Markdown."""
    sections: list[tuple[str, type[Strict]]] = [
        ("`config/config.yaml`, and `settings` of a scale", Settings)
    ]
    sections += [(f"`{key}` in it", model) for key, model in _models_in(Settings)]
    sections += [
        ("`config/datasets/<name>.yaml`", Dataset),
        ("`config/experiments/<table>.yaml`", Experiment),
    ]
    sections += [("its `layout`", Layout2D), ("one of its `groups`", Group)]
    sections += [
        ("`config/experiments/<figure>.yaml`", Figure),
        ("`config/scales/<name>.yaml`", Scale),
    ]
    sections += [("one of its `datasets`", DatasetScale)]
    sections += [
        (f"`{key}` in `config/recipes/<dataset>.yaml`", model) for key, model in _models_in(Recipe)
    ]
    return (
        "\n".join(
            [HEAD, *(line for title, model in sections for line in _section(title, model))]
        ).rstrip()
        + "\n"
    )


def _models_in(model: type[Strict]) -> list[tuple[str, type[Strict]]]:
    """The fields of a model that are models themselves, by key."""
    fields = [(field.alias or name, field.annotation) for name, field in model.model_fields.items()]
    kinds = [
        (key, option) for key, kind in fields for option in (kind, *getattr(kind, "__args__", ()))
    ]
    return [
        (key, kind) for key, kind in kinds if isinstance(kind, type) and issubclass(kind, Strict)
    ]


def main(arguments: list[str]) -> int:
    """Print the page or, with `--check`, only report whether docs/configuration.md is current."""
    if arguments not in ([], ["--check"]):
        print("usage: python tools/config_reference.py [--check]", file=sys.stderr)
        return 2
    if not arguments:
        print(page(), end="")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        print("docs/configuration.md is old: make docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
