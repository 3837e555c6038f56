"""Devices of known speed, and finished runs with the provenance that a rate is measured from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cda.config.load import load_settings
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.jobs import graph_of
from cda.experiments.runs import MEASURING, Run
from cda.pipeline.estimate import Estimate, Line

ROOT = Path(__file__).resolve().parents[3]

DEVICES = """\
decode: 100            # our choice
share:
  squeeze: 0.5         # a book
  recover: 0.25        # another book
  expert: 0.5          # our choice
  distill: 0.25        # our choice
  relabel: 0.5         # our choice
  validate: 0.5        # our choice
  score: 0.5           # our choice
  continual: 0.5       # our choice
devices:
  fast:
    names: [Fast 1, Fast 2]  # our choice
    tflops: 2.0e-6     # its leaflet: 2 million operations a second
    memory_gb: 1       # its leaflet
  odd:
    names: [Odd]       # our choice
    tflops: 8          # its leaflet
    memory_gb: 1       # its leaflet
    share:
      recover: 0.125   # a third book
"""


@pytest.fixture
def devices(tree: Any) -> Any:
    tree.write("devices.yaml", DEVICES)
    return tree


def line(found: Estimate, stage: str) -> Line:
    (only,) = [line for line in found.lines if line.stage == stage]
    return only


def write_done(
    experiments: ExperimentSet, run: Run, provenance: dict[str, Any] | None = None, ipc: int = 0
) -> None:
    """Write every output of a run, with `provenance` in its description."""
    graph, seeds = graph_of(experiments), experiments.settings.seeds
    jobs = graph.jobs(run, ipc or run.ipc)
    if run.stage in MEASURING:
        jobs = [graph.job(run, seed) for seed in range(seeds)]
    for job in jobs:
        path = Path(job.output)
        described = {
            "squeeze": path.with_name("squeeze.json"),
            "recover": path / f"ipc-{job.index * run.data.shards_per_job:03d}.json",
            "expert": path / "expert-000.json",
            "distill": path / "ipc-000.json",
            "relabel": path / "header.json",
        }.get(run.stage, path)
        described.parent.mkdir(parents=True, exist_ok=True)
        content = {"run": run.id, "seed": job.index, "provenance": provenance or {}}
        described.write_text(json.dumps(content))
        if run.stage == "squeeze":
            path.touch()
        for shard in job.files.values():
            Path(shard).touch()


@pytest.fixture(scope="module")
def paper() -> ExperimentSet:
    return ExperimentSet(
        load_settings({"scale": "paper", "controls": "none"}, ROOT / "config"), ROOT / "config"
    )


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory without artifacts or data."""
    monkeypatch.chdir(tmp_path)
