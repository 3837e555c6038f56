"""What the paper's tables report, by key (`config/reported.csv`)."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from cda.config.experiment import KEYS
from cda.errors import ConfigError

COLUMNS = {"table", "value", "std", *KEYS}
QUOTED = "quoted"  # the setting of a number that the paper quotes from another


class Reported:
    """The reported numbers, read at first use; raises ConfigError if the file cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _rows(self) -> list[dict[str, str]]:
        try:
            with self.path.open(encoding="utf-8", newline="") as file:
                rows = csv.DictReader(file, restval="")
                found = list(rows)
                if missing := COLUMNS.difference(rows.fieldnames or ()):
                    raise ValueError(f"it has no column {min(missing)}")
                return found
        except (OSError, ValueError, csv.Error) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"{self.path}: cannot be read ({reason}); take it from the repository"
            ) from None

    def row(self, table: int | None, key: Mapping[str, Any]) -> dict[str, str]:
        """What the paper's `table` reports under `key`; empty if nothing."""
        return next(
            (
                row
                for row in self._of(table)
                if all(row[n] == str(key[n]) for n in KEYS if n in key)
            ),
            {},
        )

    def quoted(self, table: int | None) -> Iterator[dict[str, str]]:
        """The rows of the paper's `table` that are other papers' numbers."""
        return (row for row in self._of(table) if row["setting"] == QUOTED)

    def _of(self, table: int | None) -> Iterator[dict[str, str]]:
        return (row for row in self._rows if table is not None and row["table"] == str(table))
