"""A `config/` folder of the test's own, so small that a stage takes a second."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from tests.slurm.cluster import INSTALL, Cluster

from cda.cli import main
from cda.config.load import load_settings
from cda.data import sources
from cda.engine.device import Device
from cda.experiments.cells import Cell
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.runs import Run
from cda.stages.context import Context

ROOT = Path(__file__).parents[1]

REQUIREMENTS = {
    "compiler": (
        lambda: shutil.which("cc") and shutil.which("g++"),
        "a C and a C++ compiler (Debian: apt-get install g++)",
    ),
    "fake_gpu": (
        lambda: (
            (sys.platform, platform.machine()) == ("linux", "x86_64")
            and torch.__version__.startswith("2.13.")
            and shutil.which("g++")
        ),
        "g++ and torch 2.13 on x86-64 Linux, whose internals tests/fake_gpu patches",
    ),
    "gpu": (torch.cuda.is_available, "a CUDA device"),
    "slurm": (lambda: not Cluster().missing(), INSTALL),
}

CONFIG = """\
scale: paper
seeds: 2
data_paths: {}
runtime:
  device: cpu
  cpu_threads: 1
"""

DATASET = """\
name: digits
layout: digits
classes: 10
resolution: 8
mean: [0.305, 0.305, 0.305]
std: [0.318, 0.318, 0.318]
train_images: 1438
val_images: 359
shards_per_job: 2
get: scikit-learn ships it
"""

RECIPE = """\
architecture:
  stem: small            # our choice: small images
  width: 0.125           # our choice: speed
squeeze:
  epochs: 2              # paper Table 10a
  batch_size: 256        # our choice: few steps
  lr: 0.1                # paper Table 10a
  augment: pad_crop      # authors' code
  padding: 1             # our choice: small images
  flip: 0.0              # our choice: a mirrored digit is no digit
recover:
  mode: curriculum       # paper Algorithm 1
  min_crop: 0.4          # paper Table 11
  max_crop: 1.0          # paper Section 3.1
  iterations: 6          # our choice: speed
  block_size: 5          # our choice: two blocks a shard
  jitter: 1              # our choice: small images
  snapshots: [3, 6]      # our choice
relabel:
  labels: stored         # our choice
  epochs: 5              # our choice: more than validate uses
  mixing: cutmix         # authors' code
  batch_size: 8          # our choice
  crop_scale: [0.4, 1.0] # our choice
  flip: 0.0              # our choice
validate:
  epochs: 3              # our choice: speed
  batch_size: 6          # our choice: some steps, the last one short
  optimizer: adamw       # paper Table 16b
  lr: 2.0e-3             # our choice
  warmup_epochs: 1       # our choice
  temperature: 4.0       # our choice
methods:
  cda: {}
  sre2l:
    recover:
      mode: constant     # SRe2L has no curriculum
      min_crop: 0.08     # authors' code
  random:
    recover:
      mode: random       # our choice: the control
  released:
    recover:
      mode: imported     # the authors' released images
      release: theirs    # the name of their archive
variants:
  slow:
    validate:
      lr: 1.0e-3         # our choice
"""

TRAJECTORIES = """\
  mtt:
    distill:
      match: trajectory
      iterations: 4
      lr: 10.0
      synthetic_steps: 3
      expert_epochs: 1
      max_start: 2
      step_size: 0.01
      step_lr: 1.0e-6
      backward: unrolled
  tesla:
    distill:
      match: trajectory
      iterations: 4
      lr: 10.0
      synthetic_steps: 3
      synthetic_batch: 15
      expert_epochs: 1
      max_start: 2
      step_size: 0.01
      step_lr: 1.0e-6
      backward: two_pass
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
      epochs: 2
      warmup_epochs: 0
      schedule: constant
  learned-lr:
    validate:
      learned_lr: true
"""
EXPERT = """\
expert:
  count: 3
  per_job: 2
  epochs: 2
  batch_size: 20
"""

GROUP = {
    "dataset": "digits",
    "methods": ["cda", "sre2l", "random"],
    "recovery_models": ["resnet18"],
    "ipc": [1, 2],
    "validation_models": ["resnet18"],
}

REPORTED = """\
table,dataset,method,recovery_model,ipc,recovery_iterations,setting,validation_model,metric,value,std
9,digits,old,convnet3,1,,quoted,convnet3,top1,12.8,
9,digits,cda,resnet18,1,6,,resnet18,top1,40.0,0.5
9,digits,sre2l,resnet18,2,6,,resnet18,top1,60.0,
"""


def cell_of(
    experiments: ExperimentSet, table: str = "tiny", method: str = "cda", ipc: int = 1
) -> Cell:
    """A table's first cell of a method and an IPC."""
    found = [
        cell
        for cell in experiments.cells(table)
        if (cell.key["method"], int(cell.key["ipc"])) == (method, ipc)
    ]
    return found[0]


class ConfigTree:
    """The folder, by default with one table `tiny` of six cells on the digits, and what tests do
    with it.
    """

    def __init__(self) -> None:
        self.folder = Path("config")
        self.write("config.yaml", CONFIG)
        self.write("datasets/digits.yaml", DATASET)
        self.write("recipes/digits.yaml", RECIPE)
        self.write("reported.csv", REPORTED)
        self.write("devices.yaml", (ROOT / "config" / "devices.yaml").read_text(encoding="utf-8"))
        self.experiment("tiny")

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def edit(self, name: str, old: str, new: str) -> int:
        """Replace `old`, which must be there once; returns its line."""
        text = (self.folder / name).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
        self.write(name, text.replace(old, new))
        return text[: text.index(old)].count("\n") + 1

    def experiment(self, name: str, *changes: Mapping[str, Any], **top: Any) -> None:
        """Declare a table of a group for each of `changes` to the usual one."""
        declared = {
            "title": f"Table {name}",
            "caption": "What it shows.",
            "reported": 9,
            "scales": ["paper"],
        }
        declared |= {"layout": {"rows": ["ipc"], "columns": ["method"]}, **top}
        declared["groups"] = [GROUP | dict(change) for change in changes or ({},)]
        self.write(f"experiments/{name}.yaml", yaml.safe_dump(declared, sort_keys=False))

    def scale(self, name: str, **digits: Any) -> None:
        """Declare a scale that shrinks the digits so: `recipe`, `ipc`, `instead` …"""
        self.write(
            f"scales/{name}.yaml", yaml.safe_dump({"datasets": {"digits": digits}}, sort_keys=False)
        )

    def trajectories(self) -> None:
        """Add methods mtt and tesla with three experts, and make them the table `tiny`."""
        text = (self.folder / "recipes/digits.yaml").read_text(encoding="utf-8")
        top, named = text.split("methods:\n")
        methods, variants = named.split("variants:\n")
        text = f"{top}{EXPERT}methods:\n{methods}{TRAJECTORIES}{variants}"
        self.write("recipes/digits.yaml", text)
        convnets = {"recovery_models": ["convnet2"], "validation_models": ["convnet2"]}
        convnets |= {"ipc": [2], "variants": ["own-protocol", "learned-lr"]}
        self.experiment("tiny", convnets | {"methods": ["mtt", "tesla"]})

    def experiments(self, **overrides: Any) -> ExperimentSet:
        return ExperimentSet(load_settings(overrides, self.folder), self.folder)

    def runs(
        self, method: str = "cda", ipc: int = 1, table: str = "tiny", **overrides: Any
    ) -> dict[str, Run]:
        """The runs behind one cell, by stage."""
        for cell in self.experiments(**overrides).cells(table):
            if cell.run and (cell.key["method"], cell.key["ipc"]) == (method, ipc):
                return {run.stage: run for run in cell.run.chain()}
        raise AssertionError(f"table {table} has no cell {method}, IPC {ipc}")

    def context(self, run: Run, **overrides: Any) -> Context:
        experiments = self.experiments(**overrides)
        return Context(run, experiments.settings, experiments.layout)

    def few_images(self, train: int = 6, val: int = 4) -> None:
        """Make the data set a few real digits of every class, in folders.

        A stage then takes a fraction of a second.
        """
        declared = self.experiments().dataset("digits")
        for split, count in (("train", train), ("val", val)):
            real = sources.load(declared, split, Path("data"))
            for label, name in enumerate(real.classes):
                folder = Path("data", "digits", split, name)
                folder.mkdir(parents=True)
                for index, pixels in enumerate(real.images[real.labels == label][:count]):
                    Image.fromarray(pixels).save(folder / f"{index}.png")
        self.edit("datasets/digits.yaml", "layout: digits", "layout: image_folder")
        self.edit("datasets/digits.yaml", "train_images: 1438", f"train_images: {10 * train}")
        self.edit("datasets/digits.yaml", "val_images: 359", f"val_images: {10 * val}")

    def cda(self, *arguments: str) -> int:
        """`cda …` in this process; returns its exit status."""
        return main(arguments)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose marker names what this machine lacks, or fail it: CDA_REQUIRE names those
    that must not be skipped, in CI `slurm,compiler`.
    """
    for name, (found, what) in REQUIREMENTS.items():
        if item.get_closest_marker(name) and not found():
            if name in os.environ.get("CDA_REQUIRE", "").split(","):
                pytest.fail(f"needs {what}", pytrace=False)
            pytest.skip(f"needs {what}")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigTree:
    monkeypatch.chdir(tmp_path)
    for name in ("CDA_CONFIG", "CDA_DATA"):
        monkeypatch.delenv(name, raising=False)
    return ConfigTree()


@pytest.fixture(scope="session")
def config_tree() -> type[ConfigTree]:
    """The class itself, for fixtures that outlive a test; it writes into the working directory."""
    return ConfigTree


@pytest.fixture
def compiled_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps by which each function was offered for compiling; none is compiled."""
    calls: list[int] = []

    def compiled(_device: Device, function: Any, steps: int, **_options: Any) -> Any:
        calls.append(steps)
        return function

    monkeypatch.setattr(Device, "compiled", compiled)
    return calls
