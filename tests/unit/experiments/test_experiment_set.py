"""The set of experiments: its tables, cells and runs, and run ids, which must not change."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conftest import cell_of

from cda.config.load import load_settings
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.runs import Run

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
        "squeeze": "resnet18-ab89ac37",
        "recover": "curriculum-cosine-resnet18-d07bad9d",
        "relabel": "curriculum-cosine-resnet18-ipc50-c58c4a0d",
        "validate": "curriculum-cosine-resnet18-ipc50-resnet18-ca409e42",
    },
    ("table1", "cda", 10): {
        "squeeze": "resnet18-00ac7977",
        "recover": "curriculum-cosine-resnet18-c835f858",
        "relabel": "curriculum-cosine-resnet18-ipc10-6cd8b98d",
        "validate": "curriculum-cosine-resnet18-ipc10-resnet18-26bda43c",
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


def trainings(experiments: ExperimentSet) -> list[Run]:
    return [run for run in experiments.runs().values() if run.stage == "validate"]


def test_images_are_mixed_within_the_batch_that_they_are_trained_in(paper):
    """As in public code: CutMix's partners and ratio (fidelity 21), mixup's (fidelity 11)."""
    mixed = [run for run in trainings(paper) if run.recipe.relabel.mixing != "none"]
    assert {run.dataset for run in mixed} == {"cifar100", "imagenet1k"}
    differ = {
        run.id for run in mixed if run.recipe.relabel.batch_size != run.recipe.validate_.batch_size
    }
    assert differ == set()


def test_a_batch_of_1024_has_two_halves(paper):
    """Tables 2, 3 and 18 as well as SRe²L's rows (fidelity 27)."""
    parts = {
        (run.recipe.validate_.batch_size, run.recipe.validate_.batch_parts)
        for run in trainings(paper)
    }
    assert {size: count for size, count in parts if count > 1} == {1024: 2}
    assert (1024, 1) not in parts


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
