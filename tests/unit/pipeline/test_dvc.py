"""Tracked runs: what a `.dvc` file records, what differs here, and what a target needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cda.errors import ArtifactError
from cda.experiments.jobs import graph_of, table_jobs
from cda.pipeline.dvc import Changes, Tracked, find_needs, has_below, tracked


def write(folder: str, size: int, **entries: int) -> None:
    """Write a run's `.dvc` file."""
    file = Path(f"{folder}.dvc")
    file.parent.mkdir(parents=True, exist_ok=True)
    out = {"md5": "0" * 32 + ".dir", "size": size, "path": file.stem}
    file.write_text(yaml.safe_dump({"outs": [out], "meta": {"bytes": entries}}))


def test_a_dvc_file_records_the_bytes_of_its_folder_and_entries(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tracked("a/run") is None
    write("a/run", 30, **{"part-0": 10, "part-1": 20})
    assert tracked("a/run") == Tracked(30, {"part-0": 10, "part-1": 20})
    assert tracked("a/run").is_recorded
    write("a/run", 40, **{"part-0": 10, "part-1": 20})
    assert not tracked("a/run").is_recorded


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "outs: []", "outs: [{}]", "outs: [{md5: x, size: large}]", "\0"]
)
def test_a_damaged_dvc_file_takes_one_line(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run.dvc").write_text(text)
    with pytest.raises(ArtifactError, match=r"^run.dvc: is no DVC file of a run; take it from git"):
        tracked("run")


def test_files_below_a_path():
    assert has_below({"a/part-1/x"}, "a/part-1")
    assert has_below({"a/part-1"}, "a/part-1")
    assert not has_below({"a/part-10/x"}, "a/part-1")


def test_new_files_beside_missing_ones_are_refused():
    changes = Changes(new=frozenset({"run/part-0/a"}), missing=frozenset({"run/part-0/b"}))
    with pytest.raises(ArtifactError, match=r"^run/part-0: lacks tracked files and has others;"):
        changes.require_complete("run/part-0")
    changes.require_complete("run/part-1")


@pytest.fixture
def needs(tree):
    """A function that returns stages and whether they are tracked, of what table tiny needs."""
    tree.experiment("tiny", {"methods": ["cda"], "ipc": [2]})

    def find(everything=False, **overrides):
        experiments = tree.experiments(seeds=1, **overrides)
        found = find_needs(experiments, table_jobs(experiments, "tiny"), everything)
        return {job.run.stage: one is not None for job, one in found.values()}

    return find


def test_below_a_tracked_job_nothing_is_needed(tree, needs):
    layout, runs = tree.experiments().layout, tree.runs(ipc=2)
    assert needs() == {"squeeze": False, "recover": False, "relabel": False}
    write(layout.run_folder(runs["recover"]), 10, **{"part-0": 10})
    write(layout.run_folder(runs["squeeze"]), 10)
    assert needs() == {"squeeze": True, "recover": True, "relabel": False}
    write(layout.run_folder(runs["relabel"]), 10)
    assert needs() == {"recover": True, "relabel": True}
    assert needs(everything=True) == {"squeeze": True, "recover": True, "relabel": True}


def test_a_part_that_is_here_and_lacks_shards_needs_the_model(tree, needs):
    layout, runs = tree.experiments().layout, tree.runs(ipc=2)
    for stage in ("squeeze", "relabel", "recover"):
        write(layout.run_folder(runs[stage]), 10, **({"part-0": 10} if stage == "recover" else {}))
    assert needs() == {"recover": True, "relabel": True}
    part = Path(layout.part(runs["recover"], 0))
    part.mkdir(parents=True)
    (part / "ipc-000.tar").touch()
    assert needs() == {"squeeze": True, "recover": True, "relabel": True}
    (part / "ipc-001.tar").touch()
    assert needs() == {"recover": True, "relabel": True}


def test_a_part_that_is_not_recorded_is_not_tracked(tree, needs):
    folder = tree.experiments().layout.run_folder(tree.runs(ipc=2)["recover"])
    write(folder, 10, **{"part-1": 10})
    assert needs()["recover"] is False
    write(folder, 20, **{"part-1": 10})  # some entries are not recorded: perhaps
    assert needs()["recover"] is True


def test_finished_measurements_need_nothing(tree, needs):
    assert needs(cells="present") == {}
    job = graph_of(tree.experiments()).job(tree.runs(ipc=2)["validate"])
    Path(job.output).parent.mkdir(parents=True)
    Path(job.output).write_text("{}\n")
    assert needs() == {}
    assert set(needs(everything=True)) == {"squeeze", "recover", "relabel"}


def test_experts_are_tracked_part_by_part(tree):
    tree.trajectories()
    experiments, runs = tree.experiments(seeds=1), tree.runs("mtt", 2)

    def missing():
        found = find_needs(experiments, table_jobs(experiments, "tiny"), False)
        return [job.index for job, one in found.values() if job.run.stage == "expert" and not one]

    assert missing() == [0, 1]
    write(experiments.layout.run_folder(runs["expert"]), 10, **{"part-1": 10})
    assert missing() == [0]
    for method in ("mtt", "tesla"):
        folder = experiments.layout.run_folder(tree.runs(method, 2)["distill"])
        write(folder, 10, **{"part-0": 10})
    assert missing() == []
