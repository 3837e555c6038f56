"""The base class and the field types of every model of the configuration.

Models refuse unknown keys, numbers have ranges, names are safe in paths and commands, and a wrong
value is an error of one line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from cda.errors import ConfigError
from cda.text import nearest

M = TypeVar("M", bound="Strict")


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not yes or no")
    return value


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise ValueError("must be [low, high] with 0 < low <= high <= 1")
    return value


def _named(value: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", value):
        raise ValueError(
            "must be a name of letters, digits, _, - and ., the first a letter, digit or _"
        )
    return value


def _lines(value: Any) -> Any:
    if isinstance(value, list) and any(not isinstance(line, str) for line in value):
        raise ValueError("must be a list of texts: put numbers in quotes")
    return value


def _paths(value: tuple[str, ...]) -> tuple[str, ...]:
    paths = sorted({line.partition("\t")[0] for line in value})
    for path in paths:
        if not all(part not in ("", ".", "..") for part in path.split("/")):
            raise ValueError(f"must hold paths such as train/cat/1.jpg, not {path!r}")
    return tuple(paths)


def _folder(value: str) -> str:
    return value and _named(value)


def _published(value: str) -> str:
    _named(value.replace(":", ".", 1))
    return value


# These become parts of paths and of commands: none leaves its folder or has a meaning in a shell.
Name = Annotated[str, AfterValidator(_named)]
Folder = Annotated[str, AfterValidator(_folder)]  # a Name, or empty
Published = Annotated[str, AfterValidator(_published)]

Lines = Annotated[tuple[str, ...], BeforeValidator(_lines)]
Paths = Annotated[Lines, AfterValidator(_paths)]  # sorted, each once

Ratio = Annotated[float, Field(ge=0.0, le=1.0), BeforeValidator(_number)]
Positive = Annotated[float, Field(gt=0.0), BeforeValidator(_number)]
CropScale = Annotated[tuple[Ratio, Ratio], AfterValidator(_ordered)]
Spread = Annotated[float, Field(gt=0.0, le=1.0), BeforeValidator(_number)]
Weight = Annotated[float, Field(ge=0.0), BeforeValidator(_number)]
Count = Annotated[int, Field(ge=1), BeforeValidator(_number)]
Natural = Annotated[int, Field(ge=0), BeforeValidator(_number)]


class Strict(BaseModel):
    """A model that refuses unknown keys and whose values never change after reading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


def parse(
    model: type[M], values: dict[str, Any], where: str, written: Mapping[str, str] | None = None
) -> M:
    """`values` as a `model`; raises ConfigError, one line: place, key, and what is allowed.

    The place is `where`, or that of the key in `written` (dotted keys to file and line).
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # An unknown key first: a typo often explains the other errors.
        problems = sorted(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        path = _path(problems[0])
        key = ".".join(map(str, path))
        # A value that may have several types has an error for each.
        message = _message(model, path, [one for one in problems if _path(one) == path])
        near = [k for k in written or () if f"{k}.".startswith(f"{key}.")]
        near += [k for k in written or () if key.startswith(f"{k}.")]
        place = written[near[0]] if written and near else where
        raise ConfigError(f"{place}: {key or model.__name__.lower()} {message}") from None


def _path(problem: Any) -> tuple[Any, ...]:
    """The keys above an error, without the types among which pydantic chose."""
    *above, last = problem["loc"] or ("[",)  # of a model's own validator there are none
    own = problem["type"] == "extra_forbidden" or "[" not in str(last)  # a user's key may have one
    return (*(part for part in above if "[" not in str(part)), *[last] * own)


def _message(model: type[Strict], path: tuple[Any, ...], problems: list[Any]) -> str:
    """The errors of the value at `path` in words that name what is allowed."""
    first, found = problems[0], problems[0]["input"]
    names = [
        name
        for each in problems
        if each["type"] == "literal_error"
        for name in re.split(", | or ", each["ctx"]["expected"].replace("'", ""))
    ]
    of_mapping = first["loc"][-1:] == ("[key]",)
    if first["type"] == "extra_forbidden" or of_mapping:
        key = first["loc"][-2 if of_mapping else -1]
        known = names or _keys(model, path[:-1])
        return f"is not a known key{nearest(key, known)}; use one of {', '.join(known)}"
    others = [_requirement(each) for each in problems if each["type"] != "literal_error"]
    if not names and not others[0].startswith("must "):
        return others[0]
    near = nearest(found, names) if isinstance(found, str) else ""
    allowed = [", ".join(names)] * bool(names)
    allowed += dict.fromkeys(other.removeprefix("must be ") for other in others)
    ending = "" if isinstance(found, dict) else f" (found {found!r})"
    several = "one of " if len(names) > 1 else ""
    start = "" if allowed[0].startswith("must ") else "must be "
    return f"{start}{several}{', or '.join(allowed)}{near}{ending}"


# What a value of each kind must be, by the start of pydantic's type of error.
_REQUIREMENTS = {
    "missing": "is missing; add it",
    "tuple": "must be a list, in brackets: [{input}]",
    "int": "must be a whole number",
    "float": "must be a number",
    "finite": "must be a finite number",
    "bool": "must be true or false",
    "string_type": "must be a text, in quotes",
    "dict": "must be a mapping of keys to values",
    "model": "must be a mapping of keys to values",
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be more than {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "less_than": "must be less than {lt:g}",
    "too_short": "must have more entries: at least {min_length}",
    "too_long": "must have fewer entries: at most {max_length}",
}


def _requirement(problem: Any) -> str:
    """What a value must be; the message of a validator of this project states it."""
    for kind, text in _REQUIREMENTS.items():
        if problem["type"].startswith(kind):
            return text.format(input=problem["input"], **problem.get("ctx", {}))
    message = problem["msg"].removeprefix("Value error, ").replace("Input should", "must")
    return message[0].lower() + message[1:]


def _keys(model: type[Strict], path: tuple[Any, ...]) -> list[str]:
    """The known keys at `path` below `model`."""
    for part in (part for part in path if isinstance(part, str)):
        fields = [
            field.annotation
            for name, field in model.model_fields.items()
            if part in (name, field.alias)
        ]
        if not fields:  # a mapping's own key, such as a data set's name
            continue
        kind = fields[0]
        inner = (kind, *getattr(kind, "__args__", ()))
        models = [one for one in inner if isinstance(one, type) and issubclass(one, Strict)]
        model = models[0] if models else model  # no model: a data set has the name of a field
    return [field.alias or name for name, field in model.model_fields.items()]
