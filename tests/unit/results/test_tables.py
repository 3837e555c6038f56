"""Tables from run JSONs: their rows, what they refuse, and that regeneration gives equal bytes."""

from __future__ import annotations

import csv
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy import stats

from cda.config.load import load_settings
from cda.errors import ArtifactError, ConfigError
from cda.experiments.experiment_set import ExperimentSet
from cda.results import contrasts, tables

COLUMNS = [
    "table", "dataset", "method", "recovery_model", "ipc", "recovery_iterations", "setting",
    "validation_model", "metric", "reported", "reported_std", "measured", "measured_std", "seeds",
    "delta", "status", "scale", "run",
]  # fmt: skip
CSV = Path("results/tiny.csv")


def measure(tree: Any, method: str, ipc: int, *values: float, **values_of_json: Any) -> Path:
    """Leave the run JSONs of a cell, a seed each; gives the last one's path."""
    layout, run = tree.experiments().layout, tree.runs(method, ipc)["validate"]
    for seed, value in enumerate(values):
        path = Path(layout.run_json(run, seed))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps({"run": run.id, "seed": seed, "top1": value, "top5": 99.0} | values_of_json)
        )
    return path


def made(tree: Any, **overrides: Any) -> dict[tuple[str, int], dict[str, str]]:
    """The table's rows as its CSV has them, by method and IPC."""
    tables.write(tree.experiments(**overrides), "tiny", CSV)
    with CSV.open(encoding="utf-8", newline="") as file:
        return {(row["method"], int(row["ipc"])): row for row in csv.DictReader(file)}


def refused(tree: Any) -> str:
    with pytest.raises(ArtifactError) as caught:
        made(tree)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# The tidy table
# ------------------------------------------------------------------------------


def test_the_csv_has_the_design_s_columns_in_order(tree):
    made(tree)
    assert CSV.read_text(encoding="utf-8").splitlines()[0].split(",")[: len(COLUMNS)] == COLUMNS


def test_a_measured_cell_has_mean_sample_deviation_and_difference(tree):
    measure(tree, "cda", 1, 38.0, 41.0)
    row = made(tree)["cda", 1]
    assert (row["measured"], row["measured_std"], row["seeds"]) == ("39.5", "2.12", "2")
    assert (row["reported"], row["reported_std"], row["delta"]) == ("40.0", "0.5", "-0.5")
    assert (row["status"], row["run"]) == ("measured", tree.runs("cda", 1)["validate"].id)
    assert (row["recovery_iterations"], row["scale"], row["table"]) == ("6", "own", "tiny")


def test_a_row_names_the_devices_of_its_seeds(tree):
    measure(tree, "cda", 1, 38.0, 41.0, provenance={"device": "NVIDIA H100"})
    measure(tree, "cda", 2, 38.0, 41.0)
    path = measure(tree, "random", 1, 30.0, provenance={"device": "a CPU"})
    path.with_name("seed-1.json").write_text(
        path.read_text().replace('"seed": 0', '"seed": 1').replace("a CPU", "b")
    )
    rows = made(tree)
    devices = [
        rows[key]["device"] for key in (("cda", 1), ("cda", 2), ("random", 1), ("random", 2))
    ]
    assert devices == ["NVIDIA H100", "", "a CPU; b", ""]


def test_one_seed_has_no_deviation(tree):
    measure(tree, "cda", 2, 38.0)
    row = made(tree)["cda", 2]
    assert (row["measured"], row["measured_std"], row["seeds"], row["delta"]) == (
        "38.0",
        "",
        "1",
        "",
    )


def test_a_cell_is_measured_not_run_or_quoted(tree):
    measure(tree, "cda", 1, 38.0)
    status = {key: row["status"] for key, row in made(tree).items()}
    assert status.pop(("cda", 1)) == "measured"
    assert status.pop(("old", 1)) == "quoted"
    assert set(status.values()) == {"not_run"}
    assert len(status) == 5


def test_only_the_requested_seeds_count(tree):
    measure(tree, "cda", 1, 38.0, 41.0, 99.0)
    assert made(tree)["cda", 1]["measured"] == "39.5"
    assert made(tree, seeds=1)["cda", 1]["measured"] == "38.0"


def test_what_is_present_counts_with_all_its_seeds(tree):
    measure(tree, "cda", 1, 38.0, 41.0, 44.0)
    row = made(tree, cells="present", seeds=1)["cda", 1]
    assert (row["measured"], row["measured_std"], row["seeds"]) == ("41.0", "3.0", "3")


def test_the_better_of_two_relabel_models_counts_once_both_are_measured(tree):
    tree.experiment(
        "tiny", {"methods": ["cda"], "ipc": [1], "relabel_models": ["resnet18", "resnet34"]}
    )
    (cell,) = [cell for cell in tree.experiments().cells("tiny") if cell.run]
    layout = tree.experiments().layout
    for run, values in zip(cell.runs, ((40.0, 42.0), (50.0, 30.0)), strict=True):
        assert made(tree)["cda", 1]["status"] == "not_run"
        for seed, value in enumerate(values):
            path = Path(layout.run_json(run, seed))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"run": run.id, "seed": seed, "top1": value}))
    row = made(tree)["cda", 1]
    assert (row["measured"], row["run"]) == ("41.0", cell.run.id)


def test_a_cell_shows_its_own_metric(tree):
    tree.experiment("tiny", {"metrics": ["top5"]})
    measure(tree, "cda", 1, 38.0)
    assert made(tree)["cda", 1]["measured"] == "99.0"


def test_roles_distinguish_the_paper_s_cells_controls_and_others(tree):
    tree.experiment("tiny", {"methods": ["cda"]}, {"methods": ["random"], "control": True})
    rows = made(tree)
    assert [rows[key]["role"] for key in (("cda", 1), ("cda", 2), ("random", 1))] == [
        "paper",
        "ours",
        "control",
    ]


def test_a_data_set_that_is_not_declared_is_listed_with_the_reason(tree):
    tree.experiment("tiny", {"dataset": "imagenet1k", "methods": ["cda"], "ipc": [50]})
    row = made(tree)["cda", 50]
    assert (row["status"], row["run"]) == ("not_run", "")
    assert row["note"] == "data set imagenet1k is not declared in config/datasets/"
    assert "Not run: data set imagenet1k is not declared" in CSV.with_suffix(".md").read_text(
        encoding="utf-8"
    )


def test_a_table_made_again_has_the_same_bytes(tree):
    measure(tree, "cda", 1, 38.0, 41.0)
    made(tree)
    files = (CSV, CSV.with_suffix(".md"))
    before = [path.read_bytes() for path in files]
    for path in files:
        path.unlink()
    made(tree)
    assert [path.read_bytes() for path in files] == before


def test_a_table_needs_neither_data_nor_artifacts_nor_torch(tree):
    measure(tree, "cda", 1, 38.0)
    code = (
        "import sys; sys.modules['torch'] = None\nfrom cda.cli import "
        "main\nsys.exit(main(['table', 'tiny', '--show']))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert printed.stdout.startswith("# Table tiny\n")
    assert not Path("artifacts").exists()


# Refused
# ------------------------------------------------------------------------------


def test_a_json_of_another_run_is_refused(tree):
    path = measure(tree, "cda", 1, 38.0, run="another-00000000")
    line = refused(tree)
    assert line.startswith(f"{path}: ")
    assert tree.runs("cda", 1)["validate"].id in line


@pytest.mark.parametrize(
    "wrong", [{"top1": None}, {"top1": "38"}, {"top1": float("nan")}, {"seed": 5}]
)
def test_a_json_without_its_number_is_refused(wrong, tree):
    path = measure(tree, "cda", 1, 38.0, **wrong)
    assert refused(tree).startswith(f"{path}: ")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_a_damaged_json_is_refused(content, tree):
    path = measure(tree, "cda", 1, 38.0)
    path.write_bytes(content)
    assert refused(tree).startswith(f"{path}: ")


def test_a_refused_json_leaves_the_old_table(tree):
    measure(tree, "cda", 1, 38.0)
    made(tree)
    before = CSV.read_bytes()
    measure(tree, "cda", 1, 38.0, run="another-00000000")
    refused(tree)
    assert CSV.read_bytes() == before


# For people
# ------------------------------------------------------------------------------


def body(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_markdown_table_has_the_paper_s_layout_and_its_numbers_in_parentheses(tree):
    measure(tree, "cda", 1, 38.0, 41.0)
    measure(tree, "random", 2, 20.0)
    made(tree)
    text = CSV.with_suffix(".md").read_text(encoding="utf-8")
    head, _, *rows = body(text)
    assert head == ["ipc", "old", "CDA", "SRe²L", "Random real images"]
    assert rows == [
        ["1", "– (12.8)", "39.50 ± 2.12 (40.0 ± 0.5)", "–", "–"],
        ["2", "", "–", "– (60.0)", "20.00"],
    ]
    assert text.startswith("# Table tiny\n")
    assert "What it shows. In parentheses: what the paper reported." in text
    assert "Cells: 2 measured, 1 quoted, 4 not_run." in text
    assert "Scaled down" not in text


def test_rows_and_columns_are_the_experiment_s(tree):
    tree.experiment(
        "tiny",
        {"ipc": [1]},
        reported=None,
        layout={"rows": ["method"], "columns": ["dataset", "ipc"]},
    )
    made(tree)
    head, _, *rows = body(CSV.with_suffix(".md").read_text(encoding="utf-8"))
    assert head == ["method", "digits · 1"]
    assert [row[0] for row in rows] == ["CDA", "SRe²L", "Random real images"]


def test_controls_stand_apart_from_the_paper_s_rows(tree):
    tree.experiment("tiny", {"methods": ["cda"]}, {"methods": ["random"], "control": True})
    measure(tree, "random", 2, 20.0)
    made(tree)
    text = CSV.with_suffix(".md").read_text(encoding="utf-8")
    paper_part, control_part = text.split("Controls of this project, not of the paper:")
    assert body(paper_part)[0] == ["ipc", "old", "CDA"]
    assert body(control_part)[2:] == [["1", "–"], ["2", "20.00"]]


def test_what_sets_controls_apart_stands_before_them_without_the_value_that_varies(tree):
    varied = {"methods": ["cda"], "ipc": [2], "vary": {"recover.min_crop": [0.2, 0.5]}}
    layout = {"rows": ["ipc"], "columns": ["varied"], "varied": "β_l = {}"}
    other = {"control": True, "set": {"validate.lr": 0.5}, "setting": "beta_l={};lr=0.5"}
    tree.experiment(
        "tiny", varied | {"setting": "beta_l={}"}, varied | other, reported=None, layout=layout
    )
    made(tree)
    paper_part, control_part = (
        CSV.with_suffix(".md")
        .read_text(encoding="utf-8")
        .split("Controls of this project, not of the paper:")
    )
    assert body(paper_part)[::2] == [["ipc", "β_l = 0.2", "β_l = 0.5"], ["2", "–", "–"]]
    assert body(control_part)[::2] == [
        ["ipc", "setting", "β_l = 0.2", "β_l = 0.5"],
        ["2", "lr=0.5", "–", "–"],
    ]


def test_cells_that_the_layout_does_not_distinguish_are_refused_and_not_lost(tree, capsys):
    tree.experiment(
        "tiny", {"methods": ["cda"]}, {"methods": ["cda"], "setting": "labels=hard", "ipc": [1, 2]}
    )
    measure(tree, "cda", 1, 38.0)
    assert tree.cda("table", "tiny", "--show") == 1
    assert "setting" in capsys.readouterr().err


def test_another_scale_is_noted_and_has_its_own_folder(tree, capsys):
    tree.scale("small", recipe={"recover": {"iterations": 3}})
    tree.experiment("tiny", scales=["paper", "small"])
    assert tree.cda("table", "tiny", "--show", "--config", "scale=small") == 0
    assert "**Scaled down: scale small, not comparable with the paper.**" in capsys.readouterr().out
    assert sorted(path.name for path in Path("results").rglob("*") if path.is_file()) == [
        "tiny.csv",
        "tiny.md",
    ]
    assert Path("results/small/tiny.csv").is_file()
    assert "(40.0 ± 0.5)" in Path("results/small/tiny.md").read_text(encoding="utf-8")


def test_a_table_names_replaced_ipcs_and_explains_single_seeds(tree):
    tree.scale("small", ipc={2: 1})
    tree.experiment(
        "tiny", {"methods": ["cda"], "ipc": [2]}, scales=["paper", "small"], reported=None
    )
    measure(tree, "cda", 2, 38.0)
    made(tree)
    text = CSV.with_suffix(".md").read_text(encoding="utf-8")
    assert "A measured number without ± is of one seed." in text
    assert "runs as" not in text
    made(tree, scale="small")
    text = CSV.with_suffix(".md").read_text(encoding="utf-8")
    assert "IPC 2 runs as 1." in text
    assert "one seed" not in text


def test_a_measurement_of_another_scale_is_not_counted(tree):
    tree.scale("small", recipe={"recover": {"iterations": 3}})
    tree.experiment("tiny", scales=["paper", "small"])
    measure(tree, "cda", 1, 38.0)
    assert made(tree, scale="small")["cda", 1]["status"] == "not_run"


@pytest.mark.parametrize("dataset", ["cifar100", "tiny_imagenet", "imagenet1k", "imagenet21k_p"])
def test_a_table_shows_all_its_cells_whatever_is_narrowed(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Path(__file__).parents[3] / "config"
    every = ExperimentSet(load_settings({}, config), config)
    narrowed = ExperimentSet(
        load_settings({"datasets": [dataset], "cells": "present"}, config), config
    )
    for name in every.tables:
        frame = tables.table(narrowed, name)
        assert list(frame["status"]) == list(tables.table(every, name)["status"])
        assert tables.markdown(narrowed, name, frame) == tables.markdown(every, name, frame)
    assert {run.dataset for run in narrowed.runs().values()} == {dataset}


# Label stores
# ------------------------------------------------------------------------------

CODECS = [
    {"setting": "bits=16"},
    {"setting": "bits={}", "vary": {"relabel.bits": [8, 4]}},
    {"setting": "bits=8;reuse={}", "vary": {"relabel.reuse": [2]}, "set": {"relabel.bits": 8}},
]


def codecs(tree: Any, **top: Any) -> None:
    """A table of codecs: 20 bytes a row of 10 classes in fp16, 14 and 9 quantised, 5 epochs."""
    groups = [{"methods": ["cda"], "ipc": [2], **group} for group in CODECS]
    layout = {"rows": ["setting"], "columns": ["method"]}
    tree.experiment("codecs", *groups, reported=None, layout=layout, label_sizes=True, **top)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_can_show_what_labels_take(tree):
    codecs(tree)
    path = Path("results/codecs.csv")
    tables.write(tree.experiments(), "codecs", path)
    rows = rows_of(path)
    assert list(rows[0])[: len(COLUMNS)] == COLUMNS
    found = [(row["setting"], row["label_bytes"], row["label_ratio"]) for row in rows]
    assert found == [
        ("bits=16", str(20 * 5 * 20), "1.0"),
        ("bits=8", str(20 * 5 * 14), "1.43"),
        ("bits=4", str(20 * 5 * 9), "2.22"),
        ("bits=8;reuse=2", str(20 * 3 * 14), "2.38"),  # three epochs of labels for five of training
    ]
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    assert lines[0] == ["setting", "label store", "times smaller", "CDA"]
    assert lines[2:] == [
        ["bits=16", "2 kB", "1.0×", "–"],
        ["bits=8", "1.4 kB", "1.4×", "–"],
        ["bits=4", "900 B", "2.2×", "–"],
        ["bits=8;reuse=2", "840 B", "2.4×", "–"],
    ]


def test_hard_labels_take_nothing(tree):
    codecs(tree, controls=True)
    tables.write(tree.experiments(), "codecs", Path("results/codecs.csv"))
    hard = [row for row in rows_of(Path("results/codecs.csv")) if "hard" in row["setting"]]
    assert hard
    assert {(row["label_bytes"], row["label_ratio"]) for row in hard} == {("", "")}


def test_other_tables_have_no_label_sizes(tree):
    made(tree)
    assert "label_bytes" not in CSV.read_text(encoding="utf-8")


def test_sizes_are_computed_for_every_store_and_nothing_is_run(tree):
    tree.scale("small")
    codecs(tree, scales=["small"])
    about = {"title": "Sizes", "caption": "Computed.", "scales": ["paper"], "sizes_of": "codecs"}
    tree.write("experiments/sizes.yaml", json.dumps(about))
    tree.experiment("longer", {"ipc": [1], "set": {"relabel.epochs": 9}})
    experiments, path = tree.experiments(), Path("results/sizes.csv")
    assert experiments.requested_runs("sizes") == []
    tables.write(experiments, "sizes", path)
    rows = rows_of(path)
    assert [(row["dataset"], row["ipc"], row["epochs"]) for row in rows[::4]] == [
        ("digits", "1", "5"), ("digits", "1", "9"), ("digits", "2", "5"),
    ]  # fmt: skip
    found = [
        (row["setting"], row["row_bytes"], row["label_bytes"], row["label_ratio"])
        for row in rows[4:8]
    ]
    assert found == [
        ("bits=16", "20", str(10 * 9 * 20), "1.0"),
        ("bits=8", "14", str(10 * 9 * 14), "1.43"),
        ("bits=4", "9", str(10 * 9 * 9), "2.22"),
        ("bits=8;reuse=2", "14", str(10 * 5 * 14), "2.57"),
    ]
    assert {row["status"] for row in rows} == {"computed"}
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    assert (
        "| codec          | bytes a row | IPC 1, 5 epochs | IPC 1, 9 epochs | IPC 2, 5 epochs |"
        in text
    )
    assert (
        "| bits=8;reuse=2 | 14          | 420 B (2.4×)    | 700 B (2.6×)    | 840 B (2.4×)    |"
        in text
    )
    assert "Computed." in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"groups": []},
            "groups must hold grids of cells, or else sizes_of name a table of codecs",
        ),
        (
            {"sizes_of": "codecs"},
            "groups must hold grids of cells, or else sizes_of name a table of codecs",
        ),
        (
            {"layout": {"rows": [], "columns": ["method"]}},
            "layout must name rows and columns, at least one key each",
        ),
    ],
)
def test_a_table_of_nothing_is_refused(tree, change, message):
    declared = (
        yaml.safe_load((tree.folder / "experiments/tiny.yaml").read_text(encoding="utf-8")) | change
    )
    tree.write("experiments/tiny.yaml", yaml.safe_dump(declared))
    with pytest.raises(ConfigError, match=message):
        tree.experiments().cells("tiny")


def test_what_a_scale_has_no_place_for_is_in_the_csv_and_the_notes_alone(tree):
    tree.scale("small", models={"resnet34": None})
    tree.experiment(
        "tiny",
        {"methods": ["cda"]},
        {"methods": ["cda"], "validation_models": ["resnet34"]},
        scales=["paper", "small"],
        layout={"rows": ["ipc"], "columns": ["method", "validation_model"]},
    )
    path = Path("results/small/tiny.csv")
    tables.write(tree.experiments(scale="small"), "tiny", path)
    assert [row["validation_model"] for row in rows_of(path)] == ["convnet3"] + ["resnet18"] * 2 + [
        "resnet34"
    ] * 2
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    assert "ResNet-18" in text
    assert "ResNet-34" not in text
    assert "Not run: scale small has no place for resnet34." in text


# Contrasts
# ------------------------------------------------------------------------------


def contrasted(tree: Any, contrast: dict[str, Any]) -> str:
    tree.experiment("tiny", contrasts=[contrast])
    made(tree)
    return CSV.with_suffix(".md").read_text(encoding="utf-8")


BETTER = {
    "claim": "CDA against real images",
    "of": {"method": "cda"},
    "against": {"method": "random"},
}


def test_a_contrast_shows_the_difference_and_its_interval(tree):
    """Means 40 and 37, variances 4 and 1 over three seeds.

    Welch's interval, t = 3.219 at 2.94 degrees of freedom.
    """
    tree.experiment("tiny")
    tree.edit("config.yaml", "seeds: 2", "seeds: 3")
    measure(tree, "cda", 1, 38.0, 40.0, 42.0)
    measure(tree, "random", 1, 36.0, 37.0, 38.0)
    measure(tree, "cda", 2, 50.0)
    measure(tree, "random", 2, 44.0)
    lines = [" ".join(line.split()) for line in contrasted(tree, BETTER).splitlines()]
    assert (
        "| CDA against real images | digits | 1 | +3.00 | -1.16 to +7.16 | 3 against 3 |" in lines
    )
    assert "| CDA against real images | digits | 2 | +6.00 | too few seeds | 1 against 1 |" in lines


def test_a_contrast_waits_for_both_of_its_cells(tree):
    tree.experiment("tiny")
    measure(tree, "cda", 1, 38.0, 40.0)
    assert "against" not in contrasted(tree, BETTER)


def test_a_contrast_with_controls_that_the_setting_leaves_out_is_left_out(tree):
    tree.experiment(
        "tiny", {"methods": ["cda"]}, {"methods": ["random"], "control": True}, contrasts=[BETTER]
    )
    measure(tree, "cda", 1, 38.0, 40.0)
    measure(tree, "random", 1, 36.0, 37.0)
    made(tree)
    assert "CDA against real images" in CSV.with_suffix(".md").read_text(encoding="utf-8")
    made(tree, controls="none")
    assert "CDA against real images" not in CSV.with_suffix(".md").read_text(encoding="utf-8")


@pytest.mark.parametrize("wrong", [{"of": {"method": "cdaa"}}, {"against": {"method": "nobody"}}])
def test_a_contrast_of_no_cells_is_refused(tree, wrong):
    with pytest.raises(ConfigError) as caught:
        contrasted(tree, BETTER | wrong)
    assert str(caught.value).startswith(
        "config/experiments/tiny.yaml: contrasts: 'CDA against real images' finds no two"
    )


def test_an_interval_is_welchs():
    """By hand: a variance by sample, and the degrees of freedom of Welch and Satterthwaite."""
    first, second = [1.0, 2.5, 4.0, 3.0], [0.5, 0.7, 1.4]
    parts = [statistics.variance(values) / len(values) for values in (first, second)]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 3 + parts[1] ** 2 / 2)
    reach = stats.t.ppf(0.975, freedom) * math.sqrt(sum(parts))
    difference = statistics.fmean(first) - statistics.fmean(second)
    wanted = (difference - reach, difference + reach)
    assert contrasts.interval(first, second) == pytest.approx(wanted)
    assert contrasts.interval([2.0, 2.0], [1.0, 1.0]) == (1.0, 1.0)
