"""docs/reproduction.md counts what was measured, and nothing else."""

import csv
from pathlib import Path

import pandas as pd

from cda.config.load import load_settings
from cda.experiments.experiment_set import ExperimentSet
from cda.results import reproduction

ROOT = Path(__file__).parents[3]


def frame(*cells):
    """Rows of (reported, measured, status); with its delta."""
    rows = [
        {
            **dict.fromkeys(reproduction.CELL_KEYS, ""),
            "ipc": index,
            "reported": reported,
            "delta": measured - float(reported) if reported and measured is not None else None,
            "status": status,
            "run": "" if status == "quoted" else f"run-{index}",
            "scale": "mini",
        }
        for index, (reported, measured, status) in enumerate(cells)
    ]
    return pd.DataFrame(rows)


SOME = frame(
    ("40.0", 41.0, "measured"),
    ("50.0", 47.0, "measured"),
    ("60.0", None, "not_run"),
    ("24.3", None, "quoted"),
    ("", 30.0, "measured"),
    ("", None, "not_run"),
)


def test_a_headline_counts_reported_cells_and_averages_their_deltas():
    headline = reproduction.headline({"one": SOME, "two": frame(("10.0", None, "not_run"))})
    assert (
        headline == "2 of 4 reported cells are measured; deltas are -1.00 points on average, 2.00 "
        "without their signs."
    )


def test_cells_that_a_scale_has_no_run_for_count_at_the_paper_s_alone():
    nobody = SOME.assign(run=SOME["run"].where(SOME["status"] == "measured", ""))
    assert reproduction.count_row(nobody) == ["2", "2", "-1.00", "-3.00", "IPC 1", "1", "1"]
    assert reproduction.count_row(nobody.assign(scale="paper")) == reproduction.count_row(SOME)


def test_a_headline_without_measurements_has_no_delta():
    assert (
        reproduction.headline({"one": frame(("10.0", None, "not_run"))})
        == "0 of 1 reported cells are measured."
    )


def test_a_row_names_the_worst_cell_and_counts_other_cells_separately():
    assert reproduction.count_row(SOME) == ["3", "2", "-1.00", "-3.00", "IPC 1", "2", "1"]


def test_the_page_has_every_table_of_both_scales():
    page = reproduction.page({})
    for scale in reproduction.SCALES:
        part = page.split(f"## Scale {scale}")[1].split("## Scale")[0]
        tables = ExperimentSet(load_settings({"scale": scale})).tables
        for name in (name for name, one in tables.items() if not one.sizes_of):
            assert f"| {name} " in part or f"| [{name}](../results/" in part
        assert ("not comparable with the paper" in part) == (scale == "mini")


def test_the_page_links_to_what_the_tables_of_scale_mini_show():
    page, heading = reproduction.page({}), "## What the tables show"
    assert "(mini.md#what-the-tables-show)" in page.split("## Scale mini")[1]
    assert heading in (ROOT / "docs/mini.md").read_text(encoding="utf-8").splitlines()


def test_the_readme_shows_what_was_measured():
    with (ROOT / "results/mini/claims.csv").open(encoding="utf-8", newline="") as file:
        cells = {
            (
                row["dataset"],
                row["method"],
                f"{float(row['measured']):.2f} ± {float(row['measured_std']):.2f}",
            )
            for row in csv.DictReader(file)
            if row["measured_std"] and row["ipc"] == "10"
        }
    lines = (
        (ROOT / "README.md")
        .read_text(encoding="utf-8")
        .split("| scale mini, IPC 10 |")[1]
        .splitlines()[2:5]
    )
    for line in lines:
        what, *values = (cell.strip() for cell in line.strip("|").split("|"))
        dataset = "cifar100" if what.startswith("CIFAR-100") else "tiny_imagenet"
        assert {
            (dataset, method, value)
            for method, value in zip(("cda", "sre2l", "random"), values[:3], strict=True)
        } <= cells
    assert len(lines) == 3
