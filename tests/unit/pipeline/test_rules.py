"""Snakemake's input functions: what a job names as its inputs, and which targets are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cda.errors import ArtifactError, ConfigError
from cda.experiments.jobs import Job, graph_of
from cda.pipeline.rules import Plan, one_of
from cda.pipeline.summary import summary

ROOT = Path(__file__).parents[3]


def call(**forced: Any) -> SimpleNamespace:
    """Snakemake's workflow in a call with these forcing options."""
    options = {"forceall": False, "forcerun": set(), "forcetargets": False, "targets": set()}
    return SimpleNamespace(dag_settings=SimpleNamespace(**options | forced))


@pytest.fixture
def plan_of(tree):
    """A function that makes the plan of a call."""
    return lambda workflow=None, **config: Plan(config, workflow or call())


def wildcards(job: Job) -> SimpleNamespace:
    number = {"recover": "part", "validate": "seed"}.get(job.run.stage)
    return SimpleNamespace(run=job.run.id, **({number: str(job.index)} if number else {}))


def chain(tree) -> dict[str, Job]:
    """The jobs behind one cell, by stage."""
    graph, runs = graph_of(tree.experiments()), tree.runs(ipc=2)
    return {stage: graph.job(run) for stage, run in runs.items()}


def finish(*jobs: Job) -> None:
    for job in jobs:
        path = Path(job.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n") if path.suffix else path.mkdir()
        path.with_name("squeeze.json").touch()
        for shard in job.files.values():
            Path(shard).touch()


def test_damaged_measurements_end_the_call_with_the_fix(tree, plan_of):
    validate = chain(tree)["validate"]
    finish(validate)
    plan_of()
    Path(validate.output).write_text('{"run": ')
    line = rf"^{validate.output}: a run's measurements are damaged \(not JSON\); delete it, and"
    with pytest.raises(ArtifactError, match=line):
        plan_of()


def test_a_job_without_output_names_all_its_inputs(tree, plan_of):
    plan, jobs = plan_of(), chain(tree)
    validate, relabel = wildcards(jobs["validate"]), wildcards(jobs["relabel"])
    assert plan.shards(validate) == plan.shards(relabel) == [jobs["recover"].output]
    assert plan.labels(validate) == [jobs["relabel"].output]
    assert plan.model(validate) == []  # stored labels need it no more
    assert plan.model(relabel) == plan.model(wildcards(jobs["recover"])) == [jobs["squeeze"].output]


def test_a_part_that_lacks_shards_is_completed_by_its_last_one(tree, plan_of):
    jobs = chain(tree)
    part, relabel = jobs["recover"], wildcards(jobs["relabel"])
    finish(part)
    for path in part.files.values():
        Path(path).unlink()
    assert plan_of().shards(relabel) == [part.files[1]]
    Path(part.files[1]).touch()
    assert plan_of().shards(relabel) == [part.files[0]]
    Path(part.files[0]).touch()
    assert plan_of().shards(relabel) == [part.output]


def test_a_job_with_output_names_only_inputs_that_exist(tree, plan_of):
    plan, jobs = plan_of(), chain(tree)
    validate = wildcards(jobs["validate"])
    finish(jobs["validate"], jobs["recover"])
    assert plan.shards(validate) == [jobs["recover"].output]
    assert plan.labels(validate) == []
    finish(jobs["relabel"])
    assert plan.labels(validate) == [jobs["relabel"].output]
    assert plan.model(wildcards(jobs["relabel"])) == []
    second = SimpleNamespace(run=jobs["validate"].run.id, seed="1")  # a seed without output
    assert plan.labels(second) == [jobs["relabel"].output]


@pytest.mark.parametrize(
    ("forced", "names_all"),
    [
        ({}, False),
        ({"forceall": True}, True),
        ({"forcerun": {"validate"}}, True),
        ({"forcerun": {"OUTPUT"}}, True),
        ({"forcerun": {"table", "relabel"}}, False),
        ({"forcetargets": True, "targets": {"OUTPUT"}}, True),
        ({"forcetargets": True, "targets": {"results/tiny.csv"}}, False),
        ({"targets": {"OUTPUT"}}, False),
    ],
)
def test_a_forced_job_names_all_its_inputs(forced, names_all, tree, plan_of):
    job = chain(tree)["validate"]
    finish(job)
    for key, value in forced.items():
        if isinstance(value, set):
            forced = forced | {key: {name.replace("OUTPUT", job.output) for name in value}}
    assert bool(plan_of(call(**forced)).labels(wildcards(job))) == names_all


def test_published_weights_are_forced_by_their_own_rule(tree, plan_of):
    tree.experiment("tiny", {"set": {"squeeze.init": "torchvision:ResNet18_Weights.X"}})
    job = chain(tree)["squeeze"]
    fetched = ["artifacts/squeeze/weights/torchvision:ResNet18_Weights.X/resnet18.json"]
    assert plan_of().weights(wildcards(job)) == fetched
    finish(job)
    assert plan_of().weights(wildcards(job)) == []
    assert plan_of(call(forcerun={"published"})).weights(wildcards(job)) == fetched


def test_while_the_snakefile_is_read_every_input_is_named(tree, plan_of):
    job = chain(tree)["validate"]
    finish(job)
    assert plan_of(SimpleNamespace(dag_settings=None)).labels(wildcards(job))


def test_a_model_that_came_alone_is_not_trained_again_for_its_test_images(tree, plan_of):
    tree.edit("datasets/digits.yaml", "shards_per_job: 2", "shards_per_job: 2\nstream: true")
    plan, job = plan_of(), chain(tree)["squeeze"]
    assert len(plan.decoded(wildcards(job))) == 1
    finish(job)
    assert plan.decoded(wildcards(job)) == []


@pytest.mark.parametrize(("runtime", "cores"), [({}, 1 + 8), ({"workers": 3}, 1 + 3)])
def test_a_squeeze_of_streamed_data_requests_cores_to_decode(runtime, cores, tree, plan_of):
    squeeze = wildcards(chain(tree)["squeeze"])
    assert plan_of(runtime=runtime).squeeze_threads(squeeze) == 1
    tree.edit("datasets/digits.yaml", "shards_per_job: 2", "shards_per_job: 2\nstream: true")
    assert plan_of(runtime=runtime).squeeze_threads(squeeze) == cores
    tree.edit("datasets/digits.yaml", "stream: true", "stream: true\ngpus: 2")
    assert plan_of(runtime=runtime).squeeze_threads(squeeze) == 2 * cores


def test_a_table_reads_its_run_jsons_and_with_present_cells_those_that_exist(tree, plan_of):
    table = SimpleNamespace(table="tiny")
    everything = plan_of().measurements(table)
    assert len(everything) == 12  # three methods, two IPCs, two seeds
    assert plan_of(cells="present").measurements(table) == []
    job = chain(tree)["validate"]
    finish(job)
    assert plan_of(cells="present").measurements(table) == [job.output]


@pytest.mark.parametrize(
    "words",
    [
        ["--profile", "slurm", "results/tiny.csv"],
        ["--profile=workflow/profiles/slurm"],
        ["--executor", "slurm"],
    ],
)
def test_submitting_without_slurm_is_one_line(words, tree, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r"^--profile slurm: there is no sbatch on the PATH; "):
        Plan({}, None, words)
    Plan({}, None, [*words, "-n"])
    Plan({}, None, ["--executor", "slurm-jobstep"])  # a job on a node
    Path("sbatch").touch(0o755)
    monkeypatch.setenv("PATH", str(Path.cwd()))
    Plan({}, None, words)


def test_a_plan_s_text_does_not_change_between_calls(plan_of):
    assert repr(plan_of()) == repr(plan_of())  # Snakemake compares it


@pytest.mark.parametrize(
    ("target", "line"),
    [
        (
            "results/mini/table1.csv",
            "is of scale mini, but this is scale paper; add --config scale",
        ),
        (
            "results/table77.csv",
            "there is no table table77 (nearest: table7); use one of label_siz",
        ),
        ("results/table77.md", "there is no table table77 (nearest: table7); use one of label_siz"),
        ("results/figure99.png", "there is no figure figure99 (nearest: figure9); use one of "),
        ("table4", "table4 is no target; use results/table4.csv"),
        ("figure5", "figure5 is no target; use results/figure5.png"),
        ("demo", "demo is no target of scale paper; add --config scale=demo"),
    ],
)
def test_a_wrong_target_takes_one_line(target, line, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError) as caught:
        Plan({}, call(), [target])
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_target_without_a_cell_that_can_run_takes_one_line(tree):
    tree.experiment("wrong", {"dataset": "digit"})
    with pytest.raises(
        ConfigError, match=r"^config/experiments/wrong\.yaml: no cell of this table"
    ):
        Plan({}, None, ["-n", "results/wrong.csv"])
    plan = Plan({}, None, ["results/tiny.csv"])
    assert "Not run: data set digit is not declared" in summary(plan.experiments, [])


def test_other_words_of_a_command_line_are_no_targets(monkeypatch):
    monkeypatch.chdir(ROOT)
    Plan({}, call(), ["-n", "all", "artifacts/x.csv", "results/other/deep/x.csv", "results/x.txt"])
    Plan({"scale": "mini"}, call(), ["results/mini/table1.csv"])


def test_a_constraint_of_no_names_matches_nothing():
    import re

    assert re.fullmatch(one_of(["a.b", "c"]), "a.b")
    assert not re.fullmatch(one_of(["a.b", "c"]), "axb")
    assert not re.fullmatch(one_of([]), "")


def test_images_that_follow_experts_wait_for_all_of_their_parts(tree, plan_of):
    tree.trajectories()
    graph, runs = graph_of(tree.experiments()), tree.runs("tesla", 2)
    parts = graph.jobs(runs["expert"], 0)
    plan, distill = plan_of(), wildcards(graph.job(runs["distill"]))
    assert plan.experts(distill) == [part.output for part in parts]
    assert len(parts) == 2
    finish(parts[0], graph.job(runs["distill"]))
    assert plan.experts(distill) == [parts[0].output]
    assert plan.experts(wildcards(graph.job(runs["relabel"]))) == []
    assert plan.minutes(SimpleNamespace(run=runs["expert"].id, part="1"), 1) >= 10
