"""The set of experiments: its tables, cells and runs, and run ids, which must not change."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conftest import cell_of

from cda.config.load import load_settings
from cda.experiments.experiment_set import ExperimentSet

CONFIG = Path(__file__).parents[3] / "config"
IDS = Path(__file__).with_name("run_ids.txt")  # "scale id" a line, of all tables and figures


@pytest.mark.parametrize("scale", ["paper", "mini", "demo", "smoke"])
def test_every_run_keeps_its_id(scale):
    before = {line.split()[1] for line in IDS.read_text().splitlines() if line.startswith(scale)}
    settings = load_settings({"scale": scale, "controls": "all"}, CONFIG)
    now = set(ExperimentSet(settings, CONFIG).runs())
    assert sorted(before - now) == []


GOLDEN = {
    ("table4", "cda", 50): {
        "squeeze": "resnet18-0a870a9a",
        "recover": "curriculum-cosine-resnet18-81a964d2",
        "relabel": "curriculum-cosine-resnet18-ipc50-23127554",
        "validate": "curriculum-cosine-resnet18-ipc50-resnet18-09238b1c",
    },
    ("table1", "cda", 10): {
        "squeeze": "resnet18-e2763bb5",
        "recover": "curriculum-cosine-resnet18-578dba02",
        "relabel": "curriculum-cosine-resnet18-ipc10-431793da",
        "validate": "curriculum-cosine-resnet18-ipc10-resnet18-66ab45a6",
    },
}


@pytest.fixture(scope="module")
def paper() -> ExperimentSet:
    return ExperimentSet(load_settings({"scale": "paper"}, CONFIG), CONFIG)


@pytest.mark.parametrize(("table", "method", "ipc"), GOLDEN)
def test_ids_of_the_paper_s_runs_stay_what_they_are(table, method, ipc, paper):
    """A changed id throws away what was computed: raise a stage's version or fix the code first."""
    cell = next(c for c in paper.cells(table) if (c.key["method"], c.key["ipc"]) == (method, ipc))
    assert {run.stage: run.id for run in cell.run.chain()} == GOLDEN[table, method, ipc]


def test_data_sets_that_are_not_at_hand_are_left_out(tree):
    tree.write(
        "datasets/other.yaml",
        (tree.folder / "datasets/digits.yaml").read_text().replace("name: digits", "name: other"),
    )
    tree.write("recipes/other.yaml", (tree.folder / "recipes/digits.yaml").read_text())
    tree.experiment("tiny", {}, {"dataset": "other"})
    other = tree.experiments(datasets=["other"])
    assert (
        {run.dataset for run in other.runs().values()}
        == {run.dataset for run in other.requested_runs("tiny")}
        == {"other"}
    )
    assert {cell.key["dataset"] for cell in other.cells("tiny")} == {
        "other",
        "digits",
    }  # they stay not_run
    digits = tree.runs()["squeeze"]
    assert other.run(digits.id).id == digits.id  # a job of theirs still finds its run


def test_a_scale_has_its_own_tables_runs_and_places(tree):
    tree.scale("small", recipe={"recover": {"iterations": 3}})
    tree.experiment("tiny", scales=["paper", "small"])
    tree.experiment("large")
    small, paper = tree.experiments(scale="small"), tree.experiments()
    assert (list(small.tables), list(paper.tables)) == (["tiny"], ["large", "tiny"])
    cell, full = cell_of(small), cell_of(paper)
    assert (cell.key["recovery_iterations"], full.key["recovery_iterations"]) == (3, 6)
    assert cell.reported == full.reported == "40.0"
    assert small.layout.run_json(cell.run, 0).startswith("results/small/runs/digits/")
    assert paper.layout.run_json(full.run, 0).startswith("results/runs/digits/")


def test_no_two_cells_of_a_table_have_one_key(paper):
    for table in paper.tables:
        keys = [tuple(cell.key.values()) for cell in paper.cells(table)]
        assert len(keys) == len(set(keys))


def test_every_synthetic_cell_has_a_run_where_its_data_set_is_declared(paper):
    declared = {path.stem for path in (CONFIG / "datasets").glob("*.yaml")}
    for table in paper.tables:
        for cell in paper.cells(table):
            assert (cell.run is not None) == (cell.key["dataset"] in declared and not cell.quoted)
