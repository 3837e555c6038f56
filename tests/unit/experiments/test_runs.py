"""Runs: an id changes when its result could and never else.

A table's cells resolve to runs that tables share.
"""

from __future__ import annotations

import csv
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cda.config.experiment import KEYS
from cda.config.load import load_settings
from cda.errors import ConfigError
from cda.experiments.cells import Cell
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.runs import (
    VERSIONS,
    fp16_bytes,
    label_bytes,
    label_epochs,
    label_gigabytes,
    label_mode,
    parts,
    served_epochs,
)
from cda.results import tables

ROOT = Path(__file__).resolve().parents[3]
RECIPE, DATASET = "recipes/digits.yaml", "datasets/digits.yaml"
STAGES = ("squeeze", "recover", "relabel", "validate")


def ids(tree: Any, method: str = "cda", **overrides: Any) -> dict[str, str]:
    return {stage: run.id for stage, run in tree.runs(method, **overrides).items()}


def changed(tree: Any, values: dict[str, Any], method: str = "cda") -> tuple[str, ...]:
    """The stages whose ids differ once the table's cells set `values`."""
    before = ids(tree, method)
    tree.experiment("tiny", {"set": values})
    after = ids(tree, method)
    assert after.keys() == before.keys()
    return tuple(stage for stage in before if after[stage] != before[stage])


def cell_of(
    experiments: ExperimentSet, table: str = "tiny", method: str = "cda", ipc: int = 1
) -> Cell:
    found = [
        cell
        for cell in experiments.cells(table)
        if (cell.key["method"], int(cell.key["ipc"])) == (method, ipc)
    ]
    return found[0]


# What an id depends on
# ------------------------------------------------------------------------------------------------

MATTERS = [
    ("squeeze", "architecture.width", 0.25),
    ("squeeze", "squeeze.epochs", 3),
    ("squeeze", "squeeze.lr", 0.2),
    ("squeeze", "squeeze.padding", 2),
    ("squeeze", "squeeze.seed", 1),
    ("squeeze", "squeeze.label_smoothing", 0.1),
    ("squeeze", "squeeze.weights", "torchvision:ResNet18_Weights.IMAGENET1K_V1"),
    ("recover", "recover.iterations", 7),
    ("recover", "recover.lr", 0.1),
    ("recover", "recover.scheduler", "linear"),
    ("recover", "recover.milestone", 0.5),
    ("recover", "recover.min_crop", 0.5),
    ("recover", "recover.block_size", 10),
    ("recover", "recover.per_image", True),
    ("recover", "recover.seed", 1),
    ("relabel", "relabel.crop_scale", [0.3, 1.0]),
    ("relabel", "relabel.mixing", "mixup"),
    ("relabel", "relabel.mixing_alpha", 0.8),
    ("relabel", "relabel.batch_size", 9),
    ("relabel", "relabel.epochs", 6),
    ("relabel", "relabel.seed", 1),
    ("relabel", "relabel.labels", "hard"),
    ("relabel", "relabel.bits", 8),
    ("relabel", "relabel.top_k", 3),
    ("relabel", "relabel.reuse", 2),
    ("validate", "validate.lr", 0.1),
    ("validate", "validate.epochs", 4),
    ("validate", "validate.batch_size", 7),
    ("validate", "validate.temperature", 5.0),
    ("validate", "validate.temperature_squared", True),
    ("validate", "validate.warmup_factor", 0.5),
    ("validate", "validate.decay_vectors", False),
]


@pytest.mark.parametrize(("stage", "key", "value"), MATTERS, ids=[key for _, key, _ in MATTERS])
def test_a_value_changes_the_ids_of_its_stage_and_of_all_downstream(stage, key, value, tree):
    assert changed(tree, {key: value}) == STAGES[STAGES.index(stage) :]


def test_validate_epochs_are_relabel_s_where_it_sets_none(tree):
    tree.edit(RECIPE, "  epochs: 5              # our choice: more than validate uses\n", "")
    assert changed(tree, {"validate.epochs": 4}) == ("relabel", "validate")
    tree.experiment("tiny")
    assert changed(tree, {"relabel.epochs": 3}) == ()


IGNORED = [
    ("cda", {"validate.evaluate_every": 1}),
    ("cda", {"squeeze.evaluate_every": 1}),
    ("cda", {"relabel.padding": 9}),  # its crop is random_resized_crop
    ("cda", {"squeeze.crop_scale": [0.5, 1.0]}),  # its crop is pad_crop
    ("cda", {"squeeze.warmup_factor": 0.5}),  # it does not warm up
    ("cda", {"squeeze.step_epochs": 7, "squeeze.step_factor": 0.3}),  # its schedule is cosine
    ("cda", {"validate.momentum": 0.5}),  # its optimiser is AdamW
    ("cda", {"relabel.labels": "online"}),
    (
        "cda",
        {"relabel.bits": 16, "relabel.top_k": 0, "relabel.reuse": 1},
    ),  # as before they were there
    ("cda", {"recover.release": "theirs"}),
    ("sre2l", {"recover.scheduler": "linear", "recover.milestone": 0.5}),  # its mode is constant
    (
        "random",
        {
            "recover.iterations": 9,
            "recover.lr": 0.9,
            "recover.min_crop": 0.9,
            "recover.snapshots": [],
        },
    ),
]


@pytest.mark.parametrize(
    ("method", "values"),
    IGNORED,
    ids=[f"{method} {next(iter(values))}" for method, values in IGNORED],
)
def test_a_value_that_changes_no_result_changes_no_id(method, values, tree):
    assert changed(tree, values, method) == ()


@pytest.mark.parametrize("key", ["mixing_alpha", "batch_size"])
def test_how_to_mix_changes_nothing_where_nothing_is_mixed(key, tree):
    tree.edit(RECIPE, "mixing: cutmix ", "mixing: none ")
    assert changed(tree, {f"relabel.{key}": 3}) == ()


def test_the_machine_changes_no_id(tree):
    runtime = {
        "device": "auto",
        "precision": "bf16",
        "compile": "always",
        "cpu_threads": 2,
        "blocks": 9,
    }
    elsewhere = {
        "seeds": 7,
        "data": "/elsewhere",
        "data_paths": {"digits": "/there"},
        "labels": {"max_gb": 1.0},
    }
    assert ids(tree, runtime=runtime, **elsewhere) == ids(tree)


def test_numbers_written_otherwise_are_equal(tree):
    assert (
        changed(tree, {"validate.lr": "2e-3", "recover.max_crop": 1, "recover.iterations": 6.0})
        == ()
    )


DATA = [
    ("classes: 10", "classes: 9", STAGES),
    ("resolution: 8", "resolution: 16", STAGES),
    ("mean: [0.305,", "mean: [0.31,", STAGES),
    ("shards_per_job: 2", "shards_per_job: 3", STAGES[1:]),
    ("train_images: 1438", "train_images: 1400", ()),
    ("get: scikit-learn ships it", "get: look around", ()),
    ("layout: digits", "layout: image_folder", ()),
]


@pytest.mark.parametrize(("old", "new", "stages"), DATA)
def test_of_a_data_set_its_identity_counts_and_where_it_lies_does_not(old, new, stages, tree):
    before = ids(tree)
    tree.edit(DATASET, old, new)
    assert tuple(stage for stage in STAGES if ids(tree)[stage] != before[stage]) == stages


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_s_version_changes_its_ids_and_all_downstream(stage, tree, monkeypatch):
    before = ids(tree)
    monkeypatch.setitem(VERSIONS, stage, VERSIONS[stage] + 1)
    assert tuple(s for s in STAGES if ids(tree)[s] != before[s]) == STAGES[STAGES.index(stage) :]


def test_methods_share_the_squeezed_model(tree):
    cda, sre2l = ids(tree), ids(tree, "sre2l")
    assert cda["squeeze"] == sre2l["squeeze"]
    assert all(cda[stage] != sre2l[stage] for stage in STAGES[1:])


def test_a_larger_ipc_shares_the_images_and_not_the_labels(tree):
    small, large = ids(tree, ipc=1), ids(tree, ipc=2)
    assert [stage for stage in STAGES if small[stage] != large[stage]] == ["relabel", "validate"]


def test_real_images_need_no_model_and_hard_labels_none_either(tree):
    assert "model" not in tree.runs("random")["recover"].upstream
    tree.experiment("tiny", {"set": {"relabel.labels": "hard"}})
    assert list(tree.runs()["relabel"].upstream) == ["images"]
    assert list(tree.runs("random")) == ["recover", "relabel", "validate"]


def test_a_model_that_relabels_is_a_squeeze_run_of_its_own(tree):
    tree.experiment("tiny", {"relabel_models": ["resnet34"]})
    labels = tree.runs()["relabel"]
    assert labels.upstream["model"].model == "resnet34"
    assert labels.upstream["images"].upstream["model"].model == "resnet18"


# What an id looks like
# ------------------------------------------------------------------------------------------------


def test_an_id_is_a_readable_slug_and_eight_hex_digits(tree):
    slugs = {
        "squeeze": "resnet18",
        "recover": "curriculum-cosine-resnet18",
        "relabel": "curriculum-cosine-resnet18-ipc2",
        "validate": "curriculum-cosine-resnet18-ipc2-resnet18",
    }
    for stage, run_id in ids(tree, ipc=2).items():
        assert re.fullmatch(rf"{slugs[stage]}-[0-9a-f]{{8}}", run_id)


@pytest.mark.parametrize(
    ("method", "values", "slug"),
    [
        ("sre2l", {}, "constant-resnet18"),
        ("cda", {"recover.scheduler": "step"}, "curriculum-step-resnet18"),
        ("cda", {"recover.mode": "reverse"}, "reverse-resnet18"),
        ("random", {}, "random"),
        ("released", {}, "imported"),
    ],
)
def test_a_slug_tells_the_kind_of_images(method, values, slug, tree):
    tree.experiment("tiny", {"methods": [method], "set": values})
    assert tree.runs(method)["recover"].slug == slug


def test_jobs_of_a_run_hold_consecutive_shards(tree):
    recover = tree.runs()["recover"]  # two shards a job
    assert [list(parts(recover, ipc)) for ipc in (1, 2, 3)] == [[0], [0], [0, 1]]


def test_labels_that_are_too_many_are_made_while_validating(tree):
    relabel = tree.runs(ipc=2)["relabel"]
    assert label_gigabytes(relabel) == pytest.approx(2 * 10 * 5 * 10 * 2 / 1e9)
    assert label_mode(relabel, 1.0) == "stored"
    assert label_mode(relabel, 1e-6) == "online"
    tree.experiment("tiny", {"set": {"relabel.labels": "hard"}})
    assert label_mode(tree.runs(ipc=2)["relabel"], 1e-6) == "hard"


@pytest.mark.parametrize(("key", "value"), [("bits", 4), ("top_k", 3), ("reuse", 2)])
def test_labels_made_online_are_coded_as_stored_ones_are(key, value, tree):
    tree.experiment("tiny", {"set": {f"relabel.{key}": value}})
    stored = ids(tree)
    tree.experiment("tiny", {"set": {f"relabel.{key}": value, "relabel.labels": "online"}})
    assert ids(tree) == stored


def test_of_hard_labels_only_the_reuse_of_augmentations_counts(tree):
    tree.experiment("tiny", {"set": {"relabel.labels": "hard"}})
    hard = ids(tree)
    tree.experiment(
        "tiny", {"set": {"relabel.labels": "hard", "relabel.bits": 4, "relabel.top_k": 3}}
    )
    assert ids(tree) == hard
    tree.experiment("tiny", {"set": {"relabel.labels": "hard", "relabel.reuse": 2}})
    assert ids(tree)["relabel"] != hard["relabel"]


@pytest.mark.parametrize(("top_k", "stages"), [(0, ("validate",)), (3, ("relabel", "validate"))])
def test_the_largest_logits_are_kept_for_one_temperature(top_k, stages, tree):
    tree.experiment("tiny", {"set": {"relabel.top_k": top_k}})
    before = ids(tree)
    tree.experiment("tiny", {"set": {"relabel.top_k": top_k, "validate.temperature": 5.0}})
    after = ids(tree)
    assert tuple(stage for stage in before if after[stage] != before[stage]) == stages


def test_a_slug_tells_how_labels_are_kept(tree):
    tree.experiment("tiny", {"set": {"relabel.bits": 8, "relabel.top_k": 3, "relabel.reuse": 2}})
    assert tree.runs()["relabel"].slug == "curriculum-cosine-resnet18-ipc1-top3-q8-reuse2"


@pytest.mark.parametrize("top_k", [10, 11])
def test_as_many_logits_as_classes_are_not_the_largest(top_k, tree):
    line = tree.edit(RECIPE, "  labels: stored         # our choice\n", f"  top_k: {top_k}\n")
    with pytest.raises(ConfigError) as caught:
        tree.runs()
    told = (
        f"relabel.top_k ({top_k}) must be smaller than the 10 classes of digits; take a "
        "smaller one, or 0"
    )
    assert str(caught.value).startswith(f"config/{RECIPE}:{line}: {told}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "a_row", "epochs"),
    [
        ({}, 20, 5),
        ({"bits": 8}, 14, 5),
        ({"bits": 4, "reuse": 2}, 9, 3),
        ({"bits": 8, "top_k": 3}, 2 + 4 + 3, 5),  # a bitmap of ten bits takes two bytes
        ({"bits": 8, "top_k": 1, "reuse": 5}, 1 + 4 + 1, 1),
        ({"reuse": 7}, 20, 1),
    ],
)
def test_sizes_follow_the_codec(values, a_row, epochs, tree):
    tree.experiment("tiny", {"set": {f"relabel.{key}": value for key, value in values.items()}})
    relabel = tree.runs(ipc=2)["relabel"]
    assert (label_epochs(relabel), served_epochs(relabel)) == (epochs, 5)
    assert label_bytes(relabel) == 2 * 10 * epochs * a_row
    assert fp16_bytes(relabel) == 2 * 10 * 5 * 20
    assert label_mode(relabel, label_bytes(relabel) / 1e9) == "stored"
    assert label_mode(relabel, (label_bytes(relabel) - 1) / 1e9) == "online"


# Tables and cells
# -----------------------------------------------------------------------------------------------------


def test_equal_cells_of_two_tables_are_one_run_with_what_each_table_reports(tree):
    tree.experiment("tiny", {"methods": ["cda"], "ipc": [1]})
    tree.experiment("other", {"methods": ["cda"], "ipc": [1]}, reported=10)
    reported = (tree.folder / "reported.csv").read_text(encoding="utf-8")
    tree.write("reported.csv", reported + "10,digits,cda,resnet18,1,6,,resnet18,top1,41.5,\n")
    experiments = tree.experiments()
    ours, theirs = (cell_of(experiments, table) for table in ("tiny", "other"))
    assert ours.run.id == theirs.run.id
    assert (ours.reported, ours.reported_std, theirs.reported) == ("40.0", "0.5", "41.5")
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


def test_data_sets_that_are_not_at_hand_are_left_out(tree):
    tree.write(
        "datasets/other.yaml",
        (tree.folder / DATASET).read_text().replace("name: digits", "name: other"),
    )
    tree.write("recipes/other.yaml", (tree.folder / RECIPE).read_text())
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


def test_a_scale_shows_its_tables_and_changes_its_runs_and_places(tree):
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


# The repository's own tables
# ------------------------------------------------------------------------------------------


COUNTS = {
    1: 14,
    2: 12,
    3: 4,
    4: 42,
    5: 10,
    6: 5,
    7: 21,
    8: 10,
    9: 6,
    11: 6,
    13: 18,
    14: 10,
    15: 20,
    17: 15,
    18: 30,
    19: 14,
}
COUNTS |= {20: 12}


@pytest.fixture(scope="module")
def paper() -> ExperimentSet:
    return ExperimentSet(load_settings({"scale": "paper"}, ROOT / "config"), ROOT / "config")


def reported_rows(table: int) -> list[dict[str, str]]:
    with (ROOT / "config/reported.csv").open(encoding="utf-8", newline="") as file:
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
    with (Path(__file__).parent / "reported.csv").open(encoding="utf-8", newline="") as file:
        wanted = {
            tuple(row.values())[:-2]: (row["value"], row["std"]) for row in csv.DictReader(file)
        }
    found = {}
    for number in COUNTS:
        frame = tables.table(paper, f"table{number}")
        for _, row in frame[frame["role"] != "control"].iterrows():
            found[(str(number), *(str(row[key]) for key in KEYS))] = (
                row["reported"],
                row["reported_std"],
            )
    assert len(wanted) == 249
    assert found == wanted


def test_no_two_cells_of_a_table_have_one_key(paper):
    for table in paper.tables:
        keys = [tuple(cell.key.values()) for cell in paper.cells(table)]
        assert len(keys) == len(set(keys))


def test_every_synthetic_cell_has_a_run_where_its_data_set_is_declared(paper):
    declared = {path.stem for path in (ROOT / "config/datasets").glob("*.yaml")}
    for table in paper.tables:
        for cell in paper.cells(table):
            assert (cell.run is not None) == (cell.key["dataset"] in declared and not cell.quoted)


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
        "relabel": "curriculum-cosine-resnet18-ipc10-36f2348b",
        "validate": "curriculum-cosine-resnet18-ipc10-resnet18-66526a91",
    },
}


@pytest.mark.parametrize(("table", "method", "ipc"), GOLDEN)
def test_ids_of_the_paper_s_runs_stay_what_they_are(table, method, ipc, paper):
    """A change here throws away what was computed.

    Raise a stage's version or mend the code, then this.
    """
    cell = next(c for c in paper.cells(table) if (c.key["method"], c.key["ipc"]) == (method, ipc))
    assert {run.stage: run.id for run in cell.run.chain()} == GOLDEN[table, method, ipc]


def test_a_reader_that_has_seen_enough_is_no_error():
    command = [sys.executable, "-m", "cda", "runs", "table4"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as listing:
        listing.stdout.close()
        assert listing.stderr.read() == ""
    assert listing.returncode == 128 + signal.SIGPIPE


def test_an_ipc_that_a_scale_runs_as_another_of_its_table_is_shown_once(tree):
    tree.scale("small", ipc={1: 1, 2: 1})
    tree.experiment("tiny", scales=["paper", "small"])
    cells = [cell for cell in tree.experiments(scale="small").cells("tiny") if cell.run]
    assert [(cell.key["method"], cell.key["ipc"], cell.reported) for cell in cells] == [
        ("cda", 1, "40.0"),
        ("sre2l", 1, ""),
        ("random", 1, ""),
    ]


def test_an_ipc_that_stands_for_another_shows_no_number_of_the_papers(tree):
    tree.scale("small", ipc={1: 1, 2: 1})
    tree.experiment("tiny", {"ipc": [2]}, scales=["paper", "small"])
    assert "60.0" in [cell.reported for cell in tree.experiments().cells("tiny")]
    cells = [cell for cell in tree.experiments(scale="small").cells("tiny") if cell.run]
    assert [(cell.key["ipc"], cell.reported) for cell in cells] == [(1, "")] * 3


def test_two_ipcs_that_a_scale_runs_as_a_third_are_one_cell(tree):
    tree.scale("small", ipc={3: 2, 4: 2})
    tree.experiment("tiny", {"methods": ["cda"], "ipc": [3, 4]}, scales=["paper", "small"])

    def shown(**scale):
        return [cell.key["ipc"] for cell in tree.experiments(**scale).cells("tiny") if cell.run]

    assert (shown(), shown(scale="small")) == ([3, 4], [2])


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
