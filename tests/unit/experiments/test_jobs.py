"""The job graph: what each job reads, which jobs are missing, and in which order they stand."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tests.conftest import GROUP

from cda.data.shards import shard_name
from cda.experiments.jobs import Job, JobGraph, figure_jobs, graph_of, table_jobs


@pytest.fixture
def graph(tree) -> JobGraph:
    return graph_of(tree.experiments())


def jobs_by_stage(tree, graph: JobGraph, **cell) -> dict[str, list[Job]]:
    runs = tree.runs(**cell)
    (target,) = [graph.job(run) for stage, run in runs.items() if stage == "validate"]
    found: dict[str, list[Job]] = {}
    for job in graph.all([target]):
        found.setdefault(job.run.stage, []).append(job)
    return found


def finish(*jobs: Job) -> None:
    for job in jobs:
        path = Path(job.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n") if path.suffix else path.mkdir(exist_ok=True)
        for shard in job.files.values():
            Path(shard).touch()
        if job.run.stage == "squeeze":
            path.with_name("squeeze.json").touch()


def test_a_measurement_reads_images_and_labels_and_labels_read_the_model(tree, graph):
    jobs = jobs_by_stage(tree, graph, ipc=2)
    (validate,), (relabel,), parts = jobs["validate"], jobs["relabel"], jobs["recover"]
    assert graph.inputs(validate) == [*parts, relabel]
    assert graph.inputs(relabel) == [*parts, *jobs["squeeze"]]
    assert graph.inputs(parts[0]) == jobs["squeeze"]


def test_labels_made_online_need_the_model_and_no_part_of_it_is_stored(tree):
    graph = JobGraph(tree.experiments().layout, 1e-9, tree.experiments().required_shards)
    jobs = jobs_by_stage(tree, graph, ipc=2)
    assert graph.inputs(jobs["validate"][0])[-1] == jobs["squeeze"][0]
    assert graph.inputs(jobs["relabel"][0]) == jobs["recover"]


def test_inputs_come_before_what_reads_them_and_no_job_comes_twice(tree, graph):
    jobs = graph.all(table_jobs(tree.experiments(), "tiny"))
    assert len(jobs) == len(set(jobs))
    for place, job in enumerate(jobs):
        assert set(graph.inputs(job)) <= set(jobs[:place])


def test_what_a_finished_job_was_made_from_may_be_gone(tree, graph):
    targets = table_jobs(tree.experiments(), "tiny")
    assert graph.missing(targets) == graph.all(targets)
    finish(*targets)
    assert graph.missing(targets) == []
    Path(targets[0].output).unlink()
    jobs = jobs_by_stage(tree, graph)
    assert graph.missing(targets) == [
        *jobs["squeeze"],
        *jobs["recover"],
        *jobs["relabel"],
        targets[0],
    ]
    finish(*jobs["relabel"], *jobs["recover"])
    assert graph.missing(targets) == [targets[0]]


@pytest.mark.parametrize("content", ["", '{"run": "a",\n "curve": [1, ', "[]\n", "{\n<<<<<<< HEAD"])
def test_damaged_measurements_are_not_done(content, tree, graph):
    (target, *_) = table_jobs(tree.experiments(), "tiny")
    assert not target.is_done()
    assert not target.is_damaged()
    finish(*graph.all([target]))
    assert target.is_done()
    assert not target.is_damaged()
    Path(target.output).write_text(content)
    assert not target.is_done()
    assert target.is_damaged()
    assert graph.missing([target]) == [target]


def test_a_model_without_its_description_is_not_done(tree, graph):
    (squeeze,) = jobs_by_stage(tree, graph)["squeeze"]
    finish(squeeze)
    assert squeeze.is_done()
    Path(squeeze.output).with_name("squeeze.json").unlink()
    assert not squeeze.is_done()


def test_a_part_has_the_shards_that_tables_and_figures_read(tree):
    def shards(method: str = "cda") -> list[list[int]]:
        run, graph = tree.runs(method)["recover"], graph_of(tree.experiments())
        return [list(graph.job(run, part).files) for part in range(3)]

    tree.experiment("tiny", {"methods": ["cda", "random"], "ipc": [1]})
    before = tree.runs()["recover"].id
    assert shards() == [[0], [2, 3], [4, 5]]  # of a part that nothing reads all
    tree.experiment("more", {"methods": ["cda"], "ipc": [3]})
    assert shards() == [[0, 1], [2], [4, 5]]
    assert shards("random") == [[0], [2, 3], [4, 5]]
    group = {**GROUP, "methods": ["random"], "ipc": [2]}
    figure = {"title": "Seen", "kind": "grid", "scales": ["paper"], "groups": [group]}
    tree.write("experiments/seen.yaml", yaml.safe_dump(figure))
    assert shards("random")[0] == [0, 1]
    assert tree.runs()["recover"].id == before


def test_a_part_that_lacks_a_shard_is_not_done(tree, graph):
    (part,) = jobs_by_stage(tree, graph, ipc=2)["recover"]
    assert (part.target, part.share) == (part.output, 1.0)
    finish(part)
    assert part.is_done()
    assert part.target == part.output
    Path(part.files[1]).unlink()
    assert not part.is_done()
    assert (part.target, part.share) == (part.files[1], 0.5)
    assert Path(part.files[1]).name == shard_name(1)


def test_jobs_name_their_command(tree, graph):
    runs = tree.runs()
    assert graph.job(runs["validate"], 1).arguments[2:] == [runs["validate"].id, "--seed", "1"]
    assert graph.job(runs["recover"], 3).arguments[2:] == [runs["recover"].id, "--part", "3"]
    assert graph.job(runs["squeeze"]).arguments == ["squeeze", "--run", runs["squeeze"].id]


def test_a_picture_needs_the_first_part_of_its_runs(tree):
    tree.write(
        "experiments/seen.yaml",
        "{title: What, kind: grid, scales: [paper], groups: [{dataset: digits, methods: [cda], "
        "recovery_models: [resnet18], ipc: [2]}]}",
    )
    (job,) = figure_jobs(tree.experiments(), "seen")
    assert (job.run.stage, job.index) == ("recover", 0)
