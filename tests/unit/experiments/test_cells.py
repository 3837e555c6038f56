"""Cells: their keys, runs and reported numbers, and what a scale replaces in them."""

from __future__ import annotations

import pytest
from tests.conftest import cell_of

from cda.experiments.cells import replaced_name


def test_equal_cells_of_two_tables_are_one_run_with_what_each_table_reports(tree):
    tree.experiment("tiny", {"methods": ["cda"], "ipc": [1]})
    tree.experiment("other", {"methods": ["cda"], "ipc": [1]}, reported=10)
    reported = (tree.folder / "reported.csv").read_text(encoding="utf-8")
    tree.write("reported.csv", reported + "10,digits,cda,resnet18,1,6,,resnet18,top1,41.5,\n")
    experiments = tree.experiments()
    first, second = (cell_of(experiments, table) for table in ("tiny", "other"))
    assert first.run.id == second.run.id
    assert (first.reported, first.reported_std, second.reported) == ("40.0", "0.5", "41.5")
    assert (
        set(experiments.runs())
        == set(experiments.runs(("tiny",)))
        == set(experiments.runs(("other",)))
    )


def test_a_control_has_no_reported_number(tree):
    tree.experiment("tiny", {"methods": ["cda"], "ipc": [1], "control": True})
    cell = cell_of(tree.experiments())
    assert (cell.control, cell.reported) == (True, "")


def test_what_the_paper_quotes_is_a_cell_without_a_run(tree):
    cell = cell_of(tree.experiments(), method="old")
    assert (cell.key["method"], cell.reported, cell.run, cell.note) == (
        "old",
        "12.8",
        None,
        "quoted in the paper",
    )


def test_a_data_set_that_is_not_declared_is_a_note_and_no_run(tree):
    tree.experiment("tiny", {"dataset": "imagenet1k"}, {})
    cells = [
        cell for cell in tree.experiments().cells("tiny") if cell.key["dataset"] == "imagenet1k"
    ]
    assert len(cells) == 6
    for cell in cells:
        assert cell.run is None
        assert cell.note == "data set imagenet1k is not declared in config/datasets/"


def test_an_ipc_that_a_scale_runs_as_another_of_its_table_is_one_cell(tree):
    tree.scale("small", ipc={1: 1, 2: 1})
    tree.experiment("tiny", scales=["paper", "small"])
    cells = [cell for cell in tree.experiments(scale="small").cells("tiny") if cell.run]
    assert [(cell.key["method"], cell.key["ipc"], cell.reported) for cell in cells] == [
        ("cda", 1, "40.0"),
        ("sre2l", 1, ""),
        ("random", 1, ""),
    ]


def test_an_ipc_that_stands_for_another_has_no_number_of_the_papers(tree):
    tree.scale("small", ipc={1: 1, 2: 1})
    tree.experiment("tiny", {"ipc": [2]}, scales=["paper", "small"])
    assert "60.0" in [cell.reported for cell in tree.experiments().cells("tiny")]
    cells = [cell for cell in tree.experiments(scale="small").cells("tiny") if cell.run]
    assert [(cell.key["ipc"], cell.reported) for cell in cells] == [(1, "")] * 3


def test_two_ipcs_that_a_scale_runs_as_a_third_are_one_cell(tree):
    tree.scale("small", ipc={3: 2, 4: 2})
    tree.experiment("tiny", {"methods": ["cda"], "ipc": [3, 4]}, scales=["paper", "small"])

    def ipcs(**scale):
        return [cell.key["ipc"] for cell in tree.experiments(**scale).cells("tiny") if cell.run]

    assert (ipcs(), ipcs(scale="small")) == ([3, 4], [2])


def test_what_a_scale_has_no_place_for_keeps_its_ipcs_and_what_was_reported(tree):
    tree.scale("small", ipc={1: 1, 2: 1}, models={"resnet18": None})
    tree.experiment("tiny", scales=["paper", "small"])
    cells = [cell for cell in tree.experiments(scale="small").cells("tiny") if not cell.quoted]
    assert [
        (cell.key["method"], cell.key["ipc"], cell.reported) for cell in cells if cell.reported
    ] == [
        ("cda", 1, "40.0"),
        ("sre2l", 2, "60.0"),
    ]
    assert len(cells) == 6


def test_a_key_names_what_a_scale_runs_in_place_of_a_network(tree):
    tree.scale("small", models={"resnet18": "resnet34"})
    tree.experiment("tiny", {"methods": ["cda"], "ipc": [1]}, scales=["paper", "small"])
    cell = cell_of(tree.experiments(scale="small"))
    assert (
        cell.key["validation_model"]
        == "resnet34 (for resnet18)"
        == replaced_name("resnet34", "resnet18")
    )
    assert cell.reported == cell_of(tree.experiments()).reported == "40.0"


@pytest.mark.parametrize(
    ("controls", "methods"),
    [("none", ["cda"]), ("default", ["cda"]), ("all", ["cda", "random", "cda", "random"])],
)
def test_the_setting_controls_chooses_the_cells_of_a_table(controls, methods, tree):
    tree.experiment("tiny", {"methods": ["cda"], "ipc": [1]}, controls=False)
    cells = [cell for cell in tree.experiments(controls=controls).cells("tiny") if cell.run]
    assert [cell.key["method"] for cell in cells] == methods
    assert [cell.control for cell in cells] == [False] + [True] * (len(cells) - 1)
