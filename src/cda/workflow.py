"""What the rules ask: input functions and parameters, as plain tested Python. Nothing here imports snakemake or torch."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from cda.errors import ConfigError
from cda.experiments import ExperimentSet, load_settings
from cda.paths import Layout
from cda.runs import Run, label_mode, parts


class Wildcards(Protocol):
    """The wildcards that rules use; a rule has some of them."""

    artifacts: str
    results: str
    run: str
    part: str
    seed: str
    table: str


def job_options(overrides: Mapping[str, Any], prefix: str = "") -> str:
    """The command line's configuration as `cda` options, so that a job resolves its run as the workflow did.

    >>> job_options({"scale": "demo", "runtime": {"device": "cpu"}, "cells": "present"})
    '--config scale=demo runtime.device=cpu'
    """
    pairs = []
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            pairs += shlex.split(job_options(value, f"{prefix}{key}."))[1:]
        elif key not in ("cells", "datasets"):
            pairs.append(f"{prefix}{key}={value}")
    return shlex.join(["--config", *pairs]) if pairs else ""


class Plan:
    """The experiments of one snakemake call and what each job of it needs."""

    def __init__(self, overrides: Mapping[str, Any]) -> None:
        self.experiments = ExperimentSet(load_settings(overrides))
        self.settings = self.experiments.settings
        self.layout = Layout(self.settings.scale)
        self.options = job_options(overrides)
        self.threads = self.settings.runtime.cpu_threads

    def _run(self, wildcards: Wildcards, stage: str) -> Run:
        return self.experiments.run(wildcards.run, stage)

    def tables(self) -> list[str]:
        """Every table of the scale."""
        return [self.layout.table(name) for name in self.experiments.tables]

    def recovery_model(self, wildcards: Wildcards) -> list[str]:
        """A recover job's model; none for real and imported images."""
        return [self.layout.model(run) for name, run in self._run(wildcards, "recover").upstream.items() if name == "model"]

    def shards(self, wildcards: Wildcards) -> list[str]:
        """The part folders that a relabel or validate job reads."""
        run = self.experiments.run(wildcards.run)
        labels = run.upstream["labels"] if run.stage == "validate" else run
        images = labels.upstream["images"]
        return [self.layout.part(images, part) for part in parts(images, labels.ipc)]

    def _teacher(self, labels: Run, mode: str) -> list[str]:
        used = label_mode(labels, self.settings.labels.max_gb) == mode
        return [self.layout.model(labels.upstream["model"])] if used else []

    def relabel_model(self, wildcards: Wildcards) -> list[str]:
        """A relabel job's model, if it stores logits."""
        return self._teacher(self._run(wildcards, "relabel"), "fp16")

    def labels(self, wildcards: Wildcards) -> str:
        """A validate job's label store."""
        return self.layout.labels(self._run(wildcards, "validate").upstream["labels"])

    def online_model(self, wildcards: Wildcards) -> list[str]:
        """A validate job's relabel model, if it runs while validating."""
        return self._teacher(self._run(wildcards, "validate").upstream["labels"], "online")

    def recipe(self, wildcards: Wildcards) -> dict[str, Any]:
        """What a run's result depends on: Snakemake re-runs what it was changed for."""
        return dict(self.experiments.run(wildcards.run).spec)

    def _of_this_scale(self, wildcards: Wildcards) -> None:
        if wildcards.results != self.layout.results:
            asked = wildcards.results.partition("/")[2] or "paper"
            scale = self.settings.scale
            raise ConfigError(f"{wildcards.results}/… is scale {asked}, but this is scale {scale}; add --config scale={asked}")

    def measurements(self, wildcards: Wildcards) -> list[str]:
        """The run JSONs a table reads: all of its cells', or with `cells=present` those that exist."""
        self._of_this_scale(wildcards)
        runs = [cell.run for cell in self.experiments.cells(wildcards.table) if cell.run]
        wanted = [self.layout.run_json(run, seed) for run in runs for seed in range(self.settings.seeds)]
        return wanted if self.settings.cells == "all" else [path for path in wanted if Path(path).is_file()]

    def pictured(self, wildcards: Wildcards) -> list[str]:
        """The first part of each recover run of a table: what its pictures show."""
        self._of_this_scale(wildcards)
        runs = [cell.run.upstream["labels"].upstream["images"] for cell in self.experiments.cells(wildcards.table) if cell.run]
        return list(dict.fromkeys(self.layout.part(run, 0) for run in runs))

    def undeclared(self, table: str) -> list[str]:
        """Why some cells of a table cannot be run."""
        return sorted({cell.note for cell in self.experiments.cells(table) if cell.run is None and "not declared" in cell.note})


def growing(base: int) -> Any:
    """A resource that grows with each attempt: `base` minutes (or MB) times the attempt's number."""

    def grown(_wildcards: Any, attempt: int) -> int:
        return base * attempt

    return grown
