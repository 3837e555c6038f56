"""Paths of every artifact and result; no other module writes folder names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cda.config.settings import Settings
from cda.errors import ConfigError

if TYPE_CHECKING:
    from cda.experiments.runs import Run


@dataclass(frozen=True)
class Layout:
    """The folders of one scale; `paper` has the top ones, any other scale its own below them."""

    scale: str

    def _top(self, name: str) -> str:
        return name if self.scale == "paper" else f"{name}/{self.scale}"

    @property
    def artifacts(self) -> str:
        """Large outputs: models, shards, labels."""
        return self._top("artifacts")

    @property
    def results(self) -> str:
        """Small outputs: run JSONs, tables, figures."""
        return self._top("results")

    def run_folder(self, run: Run) -> str:
        """Folder of a squeeze, recover or relabel run's outputs."""
        return f"{self.artifacts}/{run.stage}/{run.dataset}/{run.id}"

    def model(self, run: Run) -> str:
        """Weights of a squeeze run; `squeeze.json` lies beside them."""
        return f"{self.run_folder(run)}/model.safetensors"

    def fetched(self, run: Run) -> str:
        """The record that the published weights of a squeeze run's start have been fetched."""
        return f"{self.artifacts}/squeeze/weights/{run.recipe.squeeze.init}/{run.model}.json"

    def decoded(self, run: Run) -> str:
        """Validation images of a decode run; beside them `val.json`: classes, labels, digest."""
        return f"{self.run_folder(run)}/val.npy"

    def part(self, run: Run, part: int) -> str:
        """Folder of one recover job's shards."""
        return f"{self.run_folder(run)}/part-{part}"

    def shard(self, run: Run, part: int, index: int) -> str:
        """The shard with IPC index `index`, in its part's folder."""
        return f"{self.part(run, part)}/ipc-{index:03d}.tar"

    def expert(self, run: Run, part: int, index: int) -> str:
        """The weights of expert `index`, in its part's folder."""
        return f"{self.part(run, part)}/expert-{index:03d}.safetensors"

    def labels(self, run: Run) -> str:
        """Folder of a relabel run's label store."""
        return f"{self.run_folder(run)}/labels"

    def run_json(self, run: Run, seed: int) -> str:
        """What a validate, score or continual run measured with one seed."""
        return f"{self.results}/runs/{run.dataset}/{run.id}/seed-{seed}.json"

    def work(self, run: Run, name: str) -> str:
        """Folder of an unfinished job's checkpoints.

        No rule names it as output, so that Snakemake never deletes it.
        """
        return f"{self.artifacts}/work/{run.stage}/{run.dataset}/{run.id}/{name}"

    def table(self, name: str) -> str:
        """A table as tidy CSV; the Markdown table lies beside it."""
        return f"{self.results}/{name}.csv"

    def figure(self, name: str) -> str:
        """A figure as PNG; a plot's SVG lies beside it."""
        return f"{self.results}/{name}.png"


def data_root(settings: Settings, dataset: str) -> Path:
    """Folder of a real data set: its own entry in `data_paths`, else below $CDA_DATA or `data`.

    Raises ConfigError if a path names an environment variable that is not set, or ~ without a home.
    """
    if dataset in settings.data_paths:
        return _expanded(settings.data_paths[dataset], f"config key data_paths.{dataset}")
    if folder := os.environ.get("CDA_DATA"):
        return _expanded(folder, "CDA_DATA in the environment") / dataset
    return _expanded(settings.data, "config key data") / dataset


def _expanded(path: str, place: str) -> Path:
    """A path with its environment variables and ~ replaced; raises ConfigError."""
    text = os.path.expandvars(path)
    if unset := re.search(r"\$(\w+|\{\w+\})", text):
        raise ConfigError(
            f"{place}: {path} names the environment variable {unset[1].strip('{}')}, which is not "
            "set; set it, or write the path out"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"{place}: {path}: no such home folder; write the path out") from None


def missing_data(settings: Settings, runs: Iterable[Run]) -> dict[str, Path]:
    """The folder of each data set that the runs need and that does not exist."""
    sets = {run.dataset: run.data for run in runs}
    roots = {name: data_root(settings, name) for name, data in sets.items() if data.in_folder}
    return {name: root for name, root in roots.items() if not root.exists()}
