"""Subcommands of `cda`: a decorator registers a function, its options and its line in `--help`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Arguments = argparse.Namespace
Function = Callable[[Arguments], int | None]
Option = tuple[tuple[str, ...], dict[str, Any]]


class Command(NamedTuple):
    """A subcommand: where `--help` lists it, its one line, its options and its function."""

    group: str
    help: str
    options: Sequence[Option]
    function: Function


COMMANDS: dict[str, Command] = {}


def option(*flags: str, **settings: Any) -> Option:
    """The arguments of argparse's `add_argument`."""
    return flags, settings


def command(group: str, text: str, *options: Option) -> Callable[[Function], Function]:
    """Register the decorated function as the subcommand of its name."""

    def register(function: Function) -> Function:
        COMMANDS[function.__name__.rstrip("_")] = Command(group, text, options, function)
        return function

    return register
