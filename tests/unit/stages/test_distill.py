"""Images by matching, from the real ones to a measurement, killed on the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cda.data.shards import load_distilled, read_shard
from cda.engine.distillation import Distillation
from cda.experiments.jobs import graph_of, table_jobs
from cda.experiments.paths import Layout

METHODS = """\
  dm:
    distill:
      match: embedding
      iterations: 6
      lr: 1.0
      real_batch: 20
    ipc:
      2:
        distill:
          lr: 0.5
  dc:
    distill:
      match: gradient
      iterations: 2
      lr: 0.1
      start: noise
      augment: none
      real_batch: 20
      outer_steps: 2
      inner_epochs: 1
variants:
  own-protocol:
    relabel:
      labels: hard
      mixing: none
      augment: none
      operation: dsa
    validate:
      optimizer: sgd
      lr: 0.01
      epochs: 4
      schedule: step
      step_epochs: 2
      restart: true
"""


@pytest.fixture
def tree(tree):
    text = (tree.folder / "recipes/digits.yaml").read_text(encoding="utf-8")
    head, tail = text.split("variants:\n") if "variants:\n" in text else (text, "")
    tree.write("recipes/digits.yaml", head + METHODS + tail)
    usual: dict[str, Any] = {"recovery_models": ["convnet2"], "validation_models": ["convnet2"]}
    usual |= {"variants": ["own-protocol"]}
    tree.experiment("tiny", usual | {"methods": ["dm", "dc"], "ipc": [1, 2]})
    return tree


def made(tree: Any, out: str, method: str = "dm", ipc: int = 2) -> Path:
    run = tree.runs(method, ipc)["distill"].id
    assert tree.cda("distill", "--run", run, "--out", f"{out}/part-0") == 0
    return Path(out)


def test_a_set_is_made_labelled_and_judged_without_any_squeezed_model(tree):
    targets = table_jobs(tree.experiments(), "tiny")
    jobs = graph_of(tree.experiments()).missing(targets)
    stages = [job.run.stage for job in jobs]
    assert set(stages) == {"distill", "relabel", "validate"}
    own = tree.runs("dm", 2)
    wanted = {one.id for one in own.values()}
    for job in [job for job in jobs if job.run.id in wanted]:
        assert tree.cda(*job.arguments) == 0
    record = json.loads(Path(Layout("paper").run_json(own["validate"], 0)).read_text())
    assert 0 <= record["top1"] <= 100
    assert record["ipc"] == 2


def test_shards_hold_floats_that_may_lie_beyond_black_and_white(tree):
    images, labels, classes, _ = load_distilled(made(tree, "out", "dc"), 2, size=8)
    assert (images.dtype, images.shape) == (np.float32, (20, 8, 8, 3))
    assert images.min() < 0
    assert images.max() > 1
    assert labels.tolist() == [*range(10)] * 2
    assert len(classes) == 10
    described = json.loads(Path("out/part-0/ipc-000.json").read_text())
    assert [row["iteration"] for row in described["trace"]] == [1, 2]


def test_killed_and_continued_it_has_the_bytes_of_an_undisturbed_run(tree, monkeypatch, capsys):
    made(tree, "undisturbed")
    original, steps = Distillation.step, []

    class Killed(BaseException):
        pass

    def step(self: Distillation) -> float:
        if len(steps) == 3:
            raise Killed
        steps.append(self.done)
        return original(self)

    monkeypatch.setattr(Distillation, "step", step)
    run = tree.runs("dm", 2)["distill"].id
    arguments = ["distill", "--run", run, "--out", "again/part-0", "--config"]
    arguments.append("runtime.checkpoint_seconds=0")
    with pytest.raises(Killed):
        tree.cda(*arguments)
    steps.append(-1)
    assert tree.cda(*arguments) == 0
    assert steps == [0, 1, 2, -1, 3, 4, 5]
    assert "going on from iteration 3 of 6" in capsys.readouterr().err
    for shard in ("ipc-000.tar", "ipc-001.tar"):
        own, other = (
            Path(place, "part-0", shard).read_bytes() for place in ("again", "undisturbed")
        )
        assert own == other


def test_a_method_has_values_of_its_own_for_an_ipc(tree):
    rates = [tree.runs("dm", ipc)["distill"].recipe.distill.lr for ipc in (1, 2)]
    assert rates == [1.0, 0.5]


def test_every_ipc_is_a_set_of_its_own(tree):
    runs = [tree.runs("dm", ipc)["distill"] for ipc in (1, 2)]
    assert len({run.id for run in runs}) == 2
    assert [run.ipc for run in runs] == [1, 2]
    one, _ = read_shard(made(tree, "one", ipc=1) / "part-0/ipc-000.tar")
    two, _ = read_shard(made(tree, "two", ipc=2) / "part-0/ipc-000.tar")
    assert not np.array_equal(one, two)


def test_it_begins_with_the_images_of_the_random_control(tree):
    tree.edit("recipes/digits.yaml", "          lr: 0.5\n", "          lr: 1.0e-9\n")
    tree.experiment(
        "tiny",
        {"methods": ["dm", "random"], "ipc": [2], "recovery_models": ["convnet2"],
         "validation_models": ["convnet2"], "variants": ["own-protocol"]},
    )  # fmt: skip
    images, *_ = load_distilled(made(tree, "out"), 2)
    run = tree.runs("random", 2)["recover"].id
    assert tree.cda("recover", "--run", run, "--part", "0", "--out", "random/part-0") == 0
    real, *_ = load_distilled(Path("random"), 2)
    np.testing.assert_allclose(images, real / 255, atol=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layout: digits\n", "layout: digits\nstream: true\n", "is streamed: matching needs all"),
        ("", "", "cannot distil by matching; use a ConvNet"),
    ],
)
def test_what_cannot_be_matched_is_one_line(old, new, message, tree, capsys):
    if old:
        tree.edit("datasets/digits.yaml", old, new)
    else:
        tree.experiment("tiny", {"methods": ["dm"], "ipc": [2], "recovery_models": ["resnet18"]})
    run = tree.runs("dm", 2)["distill"].id
    assert tree.cda("distill", "--run", run) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]


def test_a_scale_has_values_for_a_method_and_for_a_variant(tree):
    tree.scale(
        "small",
        recipe={"validate": {"epochs": 3}},
        methods={"dm": {"distill": {"iterations": 3}}},
        variants={"own-protocol": {"validate": {"epochs": 5}}},
    )
    shutil.copy(tree.folder / "experiments/tiny.yaml", "tiny.yaml")
    text = Path("tiny.yaml").read_text().replace("- paper", "- paper\n- small", 1)
    tree.write("experiments/tiny.yaml", text)
    own = tree.runs("dm", 2, scale="small")
    assert own["distill"].recipe.distill.iterations == 3
    assert own["validate"].recipe.validate_.epochs == 5
    assert tree.runs("dc", 2, scale="small")["distill"].recipe.distill.iterations == 2
