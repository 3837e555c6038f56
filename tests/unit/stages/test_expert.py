"""Experts, and images that follow them, up to a measurement at the learned step size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cda.data.shards import read_shard
from cda.engine.trainer import Trainer
from cda.engine.trajectory import TrajectoryMatching
from cda.experiments.jobs import graph_of, table_jobs
from cda.experiments.paths import Layout


@pytest.fixture
def tree(tree):
    tree.few_images()
    tree.trajectories()
    return tree


def trained(tree: Any, out: str = "experts") -> Path:
    """All experts, by the jobs of the present layout of parts."""
    experts = tree.runs("mtt", 2)["expert"]
    for job in graph_of(tree.experiments()).jobs(experts, 0):
        target = Path(out, f"part-{job.index}")
        part = str(job.index)
        assert tree.cda("expert", "--run", experts.id, "--part", part, "--out", str(target)) == 0
    return Path(out)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("part-*/*.safetensors")}


def test_two_methods_follow_the_same_experts_and_are_judged_at_their_step_size(tree):
    jobs = graph_of(tree.experiments()).missing(table_jobs(tree.experiments(), "tiny"))
    first_seeds = [job for job in jobs if job.run.stage != "validate" or job.index == 0]
    stages = [job.run.stage for job in first_seeds]
    assert sorted(stages) == sorted(["expert"] * 2 + ["distill", "relabel", "validate"] * 2)
    for job in first_seeds:
        assert tree.cda(*job.arguments) == 0
    for method in ("mtt", "tesla"):
        own = tree.runs(method, 2)
        described = [
            json.loads(Path(Layout("paper").part(own["distill"], 0), name).read_text())
            for name in ("ipc-000.json", "ipc-001.json")
        ]
        learned = {one["step_size"] for one in described}
        assert len(learned) == 1
        assert learned != {0.01}
        assert described[0]["trace"][-1]["step_size"] == described[0]["step_size"]
        record = json.loads(Path(Layout("paper").run_json(own["validate"], 0)).read_text())
        assert {record["lr"]} == learned


def test_an_expert_has_its_weights_before_training_and_after_each_epoch(tree):
    folder = trained(tree)
    weights = [load_file(path)["weights"] for path in sorted(folder.glob("part-*/*.safetensors"))]
    assert len(weights) == 3
    for own in weights:
        assert own.shape[0] == 3
        assert own.dtype == torch.float32
        assert all(not torch.equal(own[epoch], own[epoch + 1]) for epoch in range(2))
    assert not torch.equal(weights[0][0], weights[1][0])
    described = json.loads((folder / "part-1/expert-002.json").read_text())
    assert [row["epoch"] for row in described["curve"]] == [1, 2]
    assert described["top1"] == described["curve"][-1]["top1"]


def test_the_layout_of_parts_changes_neither_experts_nor_ids(tree):
    before, run = contents(trained(tree)), tree.runs("mtt", 2)
    tree.edit("recipes/digits.yaml", "per_job: 2", "per_job: 1")
    after = trained(tree, "others")
    assert len(list(after.glob("part-*"))) == 3
    assert contents(after) == before
    assert tree.runs("mtt", 2)["validate"].id == run["validate"].id


class Killed(BaseException):
    pass


def test_killed_experts_continue_to_the_bytes_of_undisturbed_ones(tree, monkeypatch, capsys):
    undisturbed = contents(trained(tree))
    original, steps = Trainer.step, []

    def step(self: Trainer, *arguments: Any) -> None:
        if len(steps) == 8:  # in the second epoch of the second expert
            raise Killed
        steps.append(self.at)
        original(self, *arguments)

    monkeypatch.setattr(Trainer, "step", step)
    run = tree.runs("mtt", 2)["expert"].id
    arguments = ["expert", "--run", run, "--part", "0", "--out", "again/part-0"]
    arguments += ["--config", "runtime.checkpoint_seconds=0"]
    with pytest.raises(Killed):
        tree.cda(*arguments)
    steps.append((-1, -1))
    assert tree.cda(*arguments) == 0
    epoch = [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert steps == [(0, 0), *epoch, (0, 0), (0, 1), (-1, -1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert "going on from epoch 0 of 2, step 2" in capsys.readouterr().err
    again = contents(Path("again"))
    assert len(again) == 2
    assert again.items() <= undisturbed.items()


@pytest.mark.parametrize("method", ["mtt", "tesla"])
def test_killed_trajectories_continue_to_the_bytes_of_undisturbed_ones(
    method, tree, monkeypatch, capsys
):
    folder, run = str(trained(tree)), tree.runs(method, 2)["distill"].id
    arguments = ["distill", "--run", run, "--experts", folder]
    assert tree.cda(*arguments, "--out", "undisturbed/part-0") == 0
    original, steps = TrajectoryMatching.step, []

    def step(self: TrajectoryMatching) -> float:
        if len(steps) == 2:
            raise Killed
        steps.append(self.done)
        return original(self)

    monkeypatch.setattr(TrajectoryMatching, "step", step)
    arguments += ["--out", "again/part-0", "--config", "runtime.checkpoint_seconds=0"]
    with pytest.raises(Killed):
        tree.cda(*arguments)
    steps.append(-1)
    assert tree.cda(*arguments) == 0
    assert steps == [0, 1, -1, 2, 3]
    assert "going on from iteration 2 of 4" in capsys.readouterr().err
    described = []
    for shard in ("ipc-000", "ipc-001"):
        own, other = (Path(place, "part-0", shard) for place in ("again", "undisturbed"))
        assert own.with_suffix(".tar").read_bytes() == other.with_suffix(".tar").read_bytes()
        described += [json.loads(path.with_suffix(".json").read_text()) for path in (own, other)]
    assert len({one["step_size"] for one in described}) == 1


def test_trajectories_change_the_images_they_begin_with(tree):
    folder, run = str(trained(tree)), tree.runs("mtt", 2)["distill"].id
    assert tree.cda("distill", "--run", run, "--experts", folder, "--out", "out/part-0") == 0
    images, _ = read_shard(Path("out/part-0/ipc-000.tar"))
    distance = abs(images * 255 - (images * 255).round()).max()  # of real images 0
    assert distance > 0.01


def test_a_step_size_that_no_one_learned_is_one_line(tree, capsys):
    group = {"methods": ["random"], "recovery_models": ["convnet2"], "ipc": [2]}
    group |= {"validation_models": ["convnet2"], "variants": ["own-protocol", "learned-lr"]}
    tree.experiment("tiny", group)
    own = tree.runs("random", 2)
    assert tree.cda("recover", "--run", own["recover"].id) == 0
    assert tree.cda("relabel", "--run", own["relabel"].id) == 0
    assert tree.cda("validate", "--run", own["validate"].id) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert "ipc-000.json: has no step_size" in lines[-1]
    assert "mtt, tesla" in lines[-1]


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("datasets", "layout: image_folder", "layout: image_folder\nstream: true", "is streamed"),
        ("recipes", "count: 3", "count: 2", "--part 1: the experts of"),
    ],
)
def test_experts_that_cannot_be_trained_are_one_line(file, old, new, message, tree, capsys):
    tree.edit(f"{file}/digits.yaml", old, new)
    run = tree.runs("mtt", 2)["expert"].id
    assert tree.cda("expert", "--run", run, "--part", "1") == 1
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_experts_must_be_convnets(tree, capsys):
    tree.experiment("tiny", {"methods": ["mtt"], "ipc": [2], "recovery_models": ["resnet18"]})
    assert tree.cda("expert", "--run", tree.runs("mtt", 2)["expert"].id) == 1
    assert "cannot distil by matching; use a ConvNet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  epochs: 2\n  batch_size: 20", "  epochs: 1\n  batch_size: 20",
         r"expert.epochs (1) must reach distill.max_start - 1 + distill.expert_epochs (2)"),
        ("expert:\n  count: 3\n  per_job: 2\n  epochs: 2\n  batch_size: 20\n", "",
         "expert is missing"),
    ],
)  # fmt: skip
def test_recipes_whose_experts_end_too_early_are_one_line(old, new, message, tree, capsys):
    tree.edit("recipes/digits.yaml", old, new)
    assert tree.cda("list", "tiny") == 1
    assert message in capsys.readouterr().err


def test_mtt_without_the_memory_names_tesla(tree, capsys):
    text = (tree.folder / "recipes/digits.yaml").read_text(encoding="utf-8")
    tree.write(
        "recipes/digits.yaml", text.replace("synthetic_steps: 3", "synthetic_steps: 10000000")
    )
    folder = str(trained(tree))
    run = tree.runs("mtt", 2)["distill"].id
    assert tree.cda("distill", "--run", run, "--experts", folder) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "does not fit into memory; use TESLA (method tesla, distill.backward: two_pass)" in line


@pytest.mark.parametrize(
    ("method", "line"),
    [("mtt", "use TESLA (method tesla"), ("tesla", "lower distill.synthetic_batch")],
)
def test_memory_that_runs_out_on_the_way_is_one_line(method, line, tree, monkeypatch, capsys):
    def step(_self: TrajectoryMatching) -> float:
        raise MemoryError

    folder, run = str(trained(tree)), tree.runs(method, 2)["distill"].id
    monkeypatch.setattr(TrajectoryMatching, "step", step)
    assert tree.cda("distill", "--run", run, "--experts", folder) == 1
    assert line in capsys.readouterr().err.strip().splitlines()[-1]
