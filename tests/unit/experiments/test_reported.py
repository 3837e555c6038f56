"""Reported numbers: each number of the paper's tables is exactly one cell."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from cda.config.experiment import KEYS
from cda.config.load import load_settings
from cda.errors import ConfigError
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.reported import Reported

CONFIG = Path(__file__).parents[3] / "config"
COUNTS = {
    1: 14, 2: 12, 3: 4, 4: 42, 5: 10, 6: 5, 7: 21, 8: 10, 9: 6, 11: 6, 13: 18, 14: 10, 15: 20,
    17: 15, 18: 30, 19: 14, 20: 12,
}  # fmt: skip


@pytest.fixture(scope="module")
def paper() -> ExperimentSet:
    return ExperimentSet(load_settings({"scale": "paper"}, CONFIG), CONFIG)


def reported_rows(table: int) -> list[dict[str, str]]:
    with (CONFIG / "reported.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["table"] == str(table)]


@pytest.mark.parametrize(("number", "rows"), [*COUNTS.items()])
def test_every_number_of_the_paper_s_table_is_exactly_one_cell(number, rows, paper):
    cells, found = paper.cells(f"table{number}"), []
    for row in reported_rows(number):
        keys = [key for key in row if key not in ("table", "value", "std")]
        (cell,) = [
            cell
            for cell in cells
            if not cell.control and all(str(cell.key[k]) == row[k] for k in keys)
        ]
        assert (cell.reported, cell.reported_std) == (row["value"], row["std"])
        found.append(cell)
    assert len(found) == rows
    assert {id(cell) for cell in found} == {
        id(cell) for cell in cells if cell.reported or number == 9
    }  # whose are unknown


def test_the_tables_report_what_the_paper_does_key_by_key(paper):
    """Against a copy of the paper's numbers that nothing but this test reads."""
    with Path(__file__).with_name("reported.csv").open(encoding="utf-8", newline="") as file:
        wanted = {
            tuple(row.values())[:-2]: (row["value"], row["std"]) for row in csv.DictReader(file)
        }
    found = {
        (str(number), *(str(cell.key[key]) for key in KEYS)): (cell.reported, cell.reported_std)
        for number in COUNTS
        for cell in paper.cells(f"table{number}")
        if not cell.control
    }
    assert len(wanted) == 249
    assert found == wanted


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "no column dataset"), (b"table,value\n9,1\n", "no column dataset"), (b"\xff", "utf-8")],
)
def test_a_damaged_file_is_one_line(content, problem, tmp_path):
    path = tmp_path / "reported.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"reported.csv: cannot be read \(.*{problem}.*\); take"):
        Reported(path).row(9, {})


def test_a_short_row_has_empty_values(tmp_path):
    path = tmp_path / "reported.csv"
    path.write_text(",".join(["table", *KEYS, "value", "std"]) + "\n9\n")
    assert Reported(path).row(9, {})["value"] == ""
