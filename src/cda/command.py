"""Subcommands of `cda`: a decorator registers a function, its options and its docstring as help."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Arguments = argparse.Namespace
Function = Callable[[Arguments], int | None]
Option = tuple[tuple[str, ...], dict[str, Any]]


class Command(NamedTuple):
    """A subcommand: the group that `--help` lists it in, its options and its function."""

    group: str
    options: Sequence[Option]
    function: Function

    @property
    def description(self) -> str:
        """What it does: the function's docstring, whose first line `cda --help` lists."""
        return inspect.cleandoc(self.function.__doc__ or "")


COMMANDS: dict[str, Command] = {}


def option(*flags: str, **settings: Any) -> Option:
    """An option or argument, with the arguments of argparse's `add_argument`."""
    return flags, settings


def command(group: str, *options: Option) -> Callable[[Function], Function]:
    """Register the decorated function as the subcommand of its name; its docstring is the help."""

    def register(function: Function) -> Function:
        COMMANDS[function.__name__.rstrip("_")] = Command(group, options, function)
        return function

    return register
