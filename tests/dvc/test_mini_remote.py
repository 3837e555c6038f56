"""The DVC remote in the repository: scale mini's models and shards come by a plain `dvc pull`."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml
from tests.dvc.programs import ROOT, damage, dry_run, dvc, git, planned, program

from cda.config.load import load_settings
from cda.data.shards import read_shard
from cda.errors import ArtifactError
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.jobs import graph_of, table_jobs

REMOTE = Path("results/mini/dvc")
TABLE = "results/mini/table1.csv"

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a git checkout")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A fresh clone of this repository's last commit."""
    folder = tmp_path_factory.mktemp("fresh") / "clone"
    git("clone", "-q", "--no-hardlinks", str(ROOT), str(folder))
    return folder


@pytest.fixture(scope="module")
def pulled(fresh):
    """The clone after a plain `dvc pull`."""
    dvc("pull", cwd=fresh)
    return fresh


@pytest.fixture
def copy(pulled, tmp_path, monkeypatch):
    """The pulled clone, to change at will."""
    shutil.copytree(pulled, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")


def tracked(folder):
    """The outputs of the `.dvc` files of scale mini, by the path of their run's folder."""
    files = sorted(folder.glob("artifacts/mini/*/*/*.dvc"))
    return {file.with_suffix(""): yaml.safe_load(file.read_text())["outs"][0] for file in files}


def test_every_tracked_run_of_scale_mini_names_the_remote_and_is_never_pushed(fresh):
    outs = tracked(fresh)
    assert {folder.parent.parent.name for folder in outs} == {"squeeze", "recover"}
    assert {(out["remote"], out["push"]) for out in outs.values()} == {("mini", False)}
    config = (fresh / ".dvc/config").read_text()
    assert "url = ../results/mini/dvc" in config
    assert not re.search(r"^ *remote *=", config, re.MULTILINE)  # no default remote
    size = sum(path.stat().st_size for path in (fresh / REMOTE).rglob("*") if path.is_file())
    assert size < 16e6


def test_a_plain_pull_brings_every_file_as_it_was_pushed(pulled):
    outs = tracked(pulled)
    for folder, out in outs.items():
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        assert (len(sizes), sum(sizes)) == (out["nfiles"], out["size"])
    stored = {path.relative_to(pulled / REMOTE) for path in (pulled / REMOTE).rglob("*.*")}
    assert {path.suffix for path in stored} == {".dir"}
    for folder in outs:
        for path in folder.rglob("*"):
            if path.is_file():
                md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
                assert (pulled / REMOTE / "files/md5" / md5[:2] / md5[2:]).is_file()
    assert git("status", "--short", cwd=pulled) == ""


def missing_jobs(**overrides):
    """The jobs that Table 1 of scale mini lacks in the clone that the test is in."""
    experiments = ExperimentSet(load_settings({"scale": "mini", **overrides}))
    return graph_of(experiments).missing(table_jobs(experiments, "table1"))


def test_what_came_is_not_planned_and_a_further_seed_squeezes_and_recovers_nothing(
    pulled, monkeypatch
):
    monkeypatch.chdir(pulled)
    assert planned(dry_run(TABLE, "scale=mini", "cells=present")) == {"table": 1}
    # Nothing but the table, as long as every cell is measured:
    stages = Counter(job.run.stage for job in missing_jobs())
    assert planned(dry_run(TABLE, "scale=mini")) == {**stages, "table": 1}
    assert not {"squeeze", "recover"} & set(stages)
    jobs = missing_jobs(seeds=4)
    stages = Counter(job.run.stage for job in jobs)
    assert planned(dry_run(TABLE, "scale=mini", "seeds=4")) == {**stages, "table": 1}
    # DM's images (1.8 MB) do not fit into the remote's 16 MB.
    assert set(stages) == {"recover", "distill", "relabel", "validate"}
    recovered = [job.run for job in jobs if job.run.stage == "recover"]
    assert not any(run.recipe.recover.synthetic for run in recovered)  # real images only


def test_a_push_to_another_default_remote_writes_nothing_into_the_repository(copy, tmp_path):
    box = tmp_path / "box"
    dvc("remote", "add", "--local", "--default", "box", str(box))
    own = Path("artifacts/mini/squeeze/cifar100/own")
    own.mkdir()
    (own / "model.safetensors").write_bytes(b"a model of my own")
    dvc("add", str(own))
    dvc("push")
    assert git("status", "--short") == f"?? {own}.dvc\n"
    assert len([path for path in box.rglob("*") if path.is_file()]) == 2  # the file and its list


def test_gc_with_a_missing_dvc_file_takes_from_the_remote_what_git_restores(copy, tmp_path):
    dvc("remote", "add", "--local", "--default", "box", str(tmp_path / "box"))
    every = ("gc", "--workspace", "--all-branches", "--all-tags", "--cloud", "--force")
    dvc(*every)
    assert git("status", "--short") == ""
    lost = sorted(Path("artifacts/mini/squeeze").rglob("*.dvc"))[0]
    lost.unlink()
    dvc(*every)
    deleted = git("status", "--short").splitlines()
    assert len([line for line in deleted if line.startswith(f" D {REMOTE}/")]) == 3
    restore = "git checkout -- results/mini/dvc"
    assert restore in (ROOT / "docs/artifacts.md").read_text(encoding="utf-8")
    program(restore, shell=True)
    assert git("status", "--short") == f" D {lost}\n"


def test_a_damaged_shard_is_refused_with_its_path_and_comes_again(copy):
    run = Path("artifacts/mini/recover/cifar100/curriculum-cosine-resnet18-cfa8a15d")
    shard = run / "part-0/ipc-003.tar"
    before = read_shard(shard)[0]
    damage(shard, 100_000)
    with pytest.raises(ArtifactError, match=rf"^{re.escape(os.fspath(shard))}: .*;"):
        read_shard(shard)
    program(f"find .dvc/cache -samefile {shard} -delete", shell=True)
    shard.unlink()
    dvc("pull", str(run))
    assert (read_shard(shard)[0] == before).all()
