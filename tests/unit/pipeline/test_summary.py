"""The lines before a snakemake call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cda.config.load import load_settings
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.jobs import graph_of
from cda.pipeline.summary import summary

ROOT = Path(__file__).parents[3]


def finish(tree: Any, stage: str = "validate") -> None:
    """Write the output of one of the jobs behind CDA's cell at IPC 2."""
    job = graph_of(tree.experiments()).job(tree.runs(ipc=2)[stage])
    Path(job.output).parent.mkdir(parents=True)
    Path(job.output).write_text("{}\n") if stage == "validate" else Path(job.output).mkdir()
    for shard in job.files.values():
        Path(shard).touch()


def test_a_named_table_counts_its_own_measurements_and_jobs(tree):
    tree.experiment("other", {"methods": ["cda"], "ipc": [2], "validation_models": ["resnet34"]})
    finish(tree)
    finish(tree, "recover")
    experiments = tree.experiments()
    table, other = "results/tiny.csv", "results/other.csv"
    # 1 squeeze, 2 recover (an IPC is a prefix of a larger one), 6 relabel, 11 validate
    assert summary(experiments, ["-n", table]) == (
        f"{table}: 1 of 12 measurements done, 20 jobs left to do."
    )
    assert summary(experiments, [table.replace(".csv", ".md"), other]).splitlines() == [
        f"{table}: 1 of 12 measurements done, 20 jobs left to do.",
        f"{other}: 0 of 2 measurements done, 4 jobs left to do.",
    ]
    present = tree.experiments(cells="present")
    assert summary(present, [table]) == f"{table}: 1 of 12 measurements done, nothing is computed."


def test_a_bare_call_says_how_to_request_one_table(tree):
    tree.experiment("other", reported=None)  # is not the example: it is none of the paper's
    finish(tree)
    first = "Scale paper: 12 measurements in its tables, 1 done."
    hint = "This call plans all tables and figures; for one: snakemake "
    experiments, table = tree.experiments(), "results/tiny.csv"
    assert summary(experiments, ["-n"]).splitlines() == [first, f"{hint}-n {table}"]
    assert summary(experiments, ["--cores", "2"]).splitlines() == [first, f"{hint}{table}"]
    for words in (["tables"], ["artifacts/x"], ["--target-jobs", "validate:run=x"]):
        assert summary(experiments, words) == first
    assert summary(tree.experiments(cells="present"), ["-n"]) == first
    tree.scale("small")
    tree.experiment("shrunk", scales=["small"])
    tree.experiment("shrunk2", scales=["small"])
    line = summary(tree.experiments(scale="small"), []).splitlines()[1]
    assert line == f"{hint}results/small/shrunk.csv --config scale=small"


def test_the_only_table_of_a_scale_needs_no_hint(tree):
    assert summary(tree.experiments(), []) == "Scale paper: 12 measurements in its tables, 0 done."


def test_a_picture_counts_its_sets_of_images(monkeypatch, tmp_path):
    experiments = ExperimentSet(load_settings({"scale": "demo"}, ROOT / "config"), ROOT / "config")
    monkeypatch.chdir(tmp_path)
    picture = "results/demo/demo-distilled.png"
    line = summary(experiments, [picture])
    count = len(experiments.pictured("demo-distilled"))
    assert line.startswith(f"{picture}: 0 of {count} sets of images done, ")


@pytest.mark.parametrize("words", [[], ["results/tiny.csv"]])
def test_a_data_set_that_is_not_here_is_named_before_anything_runs(words, tree):
    tree.edit("datasets/digits.yaml", "layout: digits", "layout: image_folder")
    line = "Not here: data sets digits; cda check names what to get."
    assert summary(tree.experiments(), words).splitlines()[1:] == [line]
    Path("data/digits").mkdir(parents=True)
    assert len(summary(tree.experiments(), words).splitlines()) == 1
