"""Abandoned runs: what is listed and removed, and what never is."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from cda.errors import ConfigError
from cda.experiments.runs import Run
from cda.pipeline.abandoned import list_abandoned

CONFIG = Path("config")


def make(tree: Any, run: Run, scale: str = "paper") -> Path:
    """A run's folder with its description and 1,000 bytes; returns the folder."""
    folder = Path(tree.experiments(scale=scale).layout.run_folder(run))
    names = {
        "squeeze": "squeeze.json",
        "relabel": "labels/header.json",
        "expert": "part-0/expert-000.json",
    }
    description = folder / names.get(run.stage, "part-0/ipc-000.json")
    description.parent.mkdir(parents=True, exist_ok=True)
    description.write_text(json.dumps({"run": run.id, "spec": dict(run.spec)}))
    (description.parent / "bytes").write_bytes(bytes(1000))
    return folder


@pytest.fixture
def old(tree: Any) -> dict[str, Path]:
    """Folders of runs whose crop was changed since; their squeezed model is still needed."""
    runs = tree.runs()
    folders = {stage: make(tree, runs[stage]) for stage in ("squeeze", "recover", "relabel")}
    tree.edit("recipes/digits.yaml", "min_crop: 0.4 ", "min_crop: 0.5 ")
    for stage in ("recover", "relabel"):
        make(tree, tree.runs()[stage])
    return folders


def work(run_folder: Path, **owner: Any) -> Path:
    """The work folder of a run's job, with a lease if `owner` is there; returns the lease."""
    stage, dataset, name = run_folder.parts[-3:]
    file = Path("artifacts/work", stage, dataset, name, "part-0", "lease.json")
    file.parent.mkdir(parents=True)
    (file.parent / "state").write_bytes(bytes(10))
    if owner:
        file.write_text(json.dumps(owner))
    return file


def listed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The folders that are printed, in order."""
    capsys.readouterr()
    list_abandoned(CONFIG)
    words = [line.split() for line in capsys.readouterr().out.splitlines()]
    return [line[2] for line in words if line[2].startswith("artifacts/")]


def test_runs_of_a_changed_value_are_listed_with_their_bytes_and_removed_on_request(
    tree, old, capsys
):
    work(old["recover"])
    measured = Path("results/runs/digits/old-0123abcd/seed-0.json")
    tree.write(f"../{measured}", "{}")
    assert tree.cda("list", "--abandoned") == 0
    lines = capsys.readouterr().out.splitlines()
    size = sum(file.stat().st_size for file in old["recover"].rglob("*") if file.is_file())
    assert lines[0].split() == [f"{size / 1000:.3g}", "kB", str(old["recover"])]
    assert lines[1].endswith(str(old["relabel"]))
    assert lines[2].split()[-1].startswith("artifacts/work/recover/digits/")
    assert lines[3].startswith("3 folders, ")
    assert lines[3].endswith("--delete removes them.")
    assert all(folder.is_dir() for folder in old.values())
    assert tree.cda("list", "--abandoned", "--delete") == 0
    assert "removed" in capsys.readouterr().out
    assert not old["recover"].exists()
    assert not old["relabel"].exists()
    assert list(Path("artifacts/work").glob("*/*/*")) == []
    runs = tree.runs()
    layout = tree.experiments().layout
    for stage in ("squeeze", "recover", "relabel"):
        assert Path(layout.run_folder(runs[stage])).is_dir()
    assert measured.exists()
    assert tree.cda("list", "--abandoned") == 0
    assert capsys.readouterr().out == "Nothing is abandoned.\n"


def test_what_any_scale_needs_stays(tree, old, capsys):
    """Whatever folder it lies in, and whatever `datasets` and `controls` the settings choose."""
    assert len(listed(capsys)) == 2
    tree.scale("small", recipe={"recover": {"min_crop": 0.4}})
    tree.experiment("shrunk", scales=["small"])
    assert listed(capsys) == []
    tree.edit("config.yaml", "seeds: 2", "seeds: 1\ndatasets: []\ncontrols: none")
    assert listed(capsys) == []
    Path("artifacts/small").mkdir()
    Path("artifacts/recover").rename("artifacts/small/recover")
    tree.edit("scales/small.yaml", "min_crop: 0.4", "min_crop: 0.3")
    assert [Path(path).parts[1] for path in listed(capsys)] == ["relabel", "small"]


def test_what_a_tracked_run_was_made_from_stays(tree, old, capsys):
    tree.edit("recipes/digits.yaml", "lr: 0.1 ", "lr: 0.2 ")  # nothing needs the old model now
    everything = listed(capsys)
    assert str(old["squeeze"]) in everything
    Path(f"{old['relabel']}.dvc").touch()
    left = set(everything) - {str(folder) for folder in old.values()}
    assert left
    assert set(listed(capsys)) == left


def test_a_data_set_of_a_tracked_run_that_is_not_here_is_skipped(tree, old, capsys):
    Path(f"{old['relabel']}.dvc").touch()
    old["relabel"].rename("elsewhere")
    list_abandoned(CONFIG, delete=True)
    out = capsys.readouterr().out
    assert f"data set digits of scale paper is skipped ({old['relabel'].name}: a tracked" in out
    assert old["recover"].is_dir()


@pytest.mark.parametrize("owner", ["this process", "another host"])
def test_a_job_at_work_and_its_inputs_stay(owner, tree, old, capsys):
    host = socket.gethostname() if owner == "this process" else "elsewhere"
    lease = work(old["relabel"], host=host, pid=os.getpid())
    before = time.time() - 3600  # the clock of its file system may be behind
    os.utime(lease, (before, before))
    list_abandoned(CONFIG, delete=True)
    assert "is skipped (artifacts/work/relabel" in capsys.readouterr().out
    assert lease.exists()
    assert old["recover"].is_dir()


def test_the_work_of_a_job_that_is_gone_is_removed(tree, old, capsys):
    lease = work(old["relabel"], host=socket.gethostname(), pid=2**22 + 1)
    list_abandoned(CONFIG, delete=True)
    assert not lease.parent.parent.exists()
    assert not old["recover"].exists()


def test_a_removal_that_was_killed_is_finished(old, capsys):
    old["recover"].rename(old["recover"].with_name(f".{old['recover'].name}.gone"))
    list_abandoned(CONFIG, delete=True)
    assert list(old["recover"].parent.glob(".*")) == []


def test_links_and_foreign_folders_are_left_alone(old, capsys):
    target = old["recover"].rename("real")
    old["recover"].symlink_to(target.resolve())
    foreign = Path("artifacts/squeeze/weights/timm:a1_in1k")
    foreign.mkdir(parents=True)
    list_abandoned(CONFIG, delete=True)
    assert old["recover"].is_symlink()
    assert foreign.is_dir()


def test_without_a_config_that_can_be_read_nothing_is_abandoned(tree, old):
    tree.write("scales/broken.yaml", "datasets: [")
    with pytest.raises(ConfigError, match=r"broken.yaml"):
        list_abandoned(CONFIG, delete=True)
    assert old["recover"].is_dir()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--delete"],
        ["tiny", "--delete"],
        ["tiny", "--abandoned"],
        ["tiny", "--abandoned", "--delete"],
    ],
)
def test_a_target_or_abandoned(words, tree, capsys):
    with pytest.raises(SystemExit) as ended:
        tree.cda("list", *words)
    assert ended.value.code == 2
    assert "takes a TARGET, or --abandoned with or without --delete" in capsys.readouterr().err


def test_experts_of_tracked_images_stay_and_tracked_experts_are_known(tree, capsys):
    """Their epochs were changed since."""
    tree.trajectories()
    runs = tree.runs("mtt", 2)
    folders = {stage: make(tree, runs[stage]) for stage in ("expert", "distill")}
    tree.edit(
        "recipes/digits.yaml", "  epochs: 2\n  batch_size: 20", "  epochs: 3\n  batch_size: 20"
    )
    assert listed(capsys) == [str(folders["expert"]), str(folders["distill"])]
    Path(f"{folders['distill']}.dvc").write_text("")
    list_abandoned(CONFIG)
    assert capsys.readouterr().out == "Nothing is abandoned.\n"
