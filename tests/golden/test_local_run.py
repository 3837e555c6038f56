"""`cda run`, killed and continued, measures what an undisturbed Snakemake run does.

Its stages are real, and the two take turns in one folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.workflow.conftest import planned, snakemake

from cda.experiments.jobs import graph_of, table_jobs

EVERY_STEP = ("--config", "runtime.checkpoint_seconds=0", "seeds=1")


class Call:
    """`cda run tiny` as a process of its own."""

    def __init__(self) -> None:
        self.log = Path("log")
        command = [sys.executable, "-m", "cda", "run", "tiny", *EVERY_STEP]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def wait_for(self, stage: str) -> int:
        """Wait until a stage has saved its work for the first time; returns its process."""
        while self.process.poll() is None:
            for state in Path("artifacts/work").glob(f"{stage}/*/*/*/state.safetensors"):
                return int(json.loads(state.with_name("lease.json").read_text())["pid"])
            time.sleep(0.005)
        raise AssertionError(self.log.read_text())

    def end(self, code: int) -> str:
        assert self.process.wait(600) == code, self.log.read_text()
        return self.log.read_text()


def is_gone(process: int) -> bool:
    """Whether a process has ended; a zombie has."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    return True


def measurements() -> dict[str, Any]:
    """Every run JSON less its provenance."""
    found = {str(p): json.loads(p.read_text()) for p in Path("results/runs").rglob("*.json")}
    for content in found.values():
        assert content.pop("provenance")
    return found


@pytest.mark.slow
def test_a_run_killed_and_continued_measures_what_undisturbed_snakemake_does(tree):
    tree.few_images()
    tree.experiment("tiny", {"methods": ["cda"], "ipc": [2]})
    tree.edit("recipes/digits.yaml", "iterations: 6 ", "iterations: 12 ")
    tree.edit("recipes/digits.yaml", "epochs: 5 ", "epochs: 30 ")
    tree.edit("recipes/digits.yaml", "epochs: 3 ", "epochs: 30 ")
    experiments = tree.experiments(seeds=1)
    jobs = graph_of(experiments).missing(table_jobs(experiments, "tiny"))
    assert [job.run.stage for job in jobs] == ["squeeze", "recover", "relabel", "validate"]
    snakemake("--cores", "1", "results/tiny.csv", "--config", "seeds=1", cwd=Path.cwd())
    wanted = measurements()
    table = Path("results/tiny.csv").read_bytes()
    Path("artifacts").rename("undisturbed-artifacts")
    Path("results").rename("undisturbed-results")

    model = Path(jobs[0].output)  # Snakemake's turn
    snakemake("--cores", "1", str(model), "--config", "seeds=1", cwd=Path.cwd())

    first = Call()
    stage = first.wait_for("recover")
    first.process.kill()
    os.kill(stage, signal.SIGKILL)
    first.end(-signal.SIGKILL)
    while not is_gone(stage):
        time.sleep(0.01)
    assert not list(Path("artifacts/recover").glob("*/*/part-*"))

    second = Call()
    second.wait_for("validate")
    second.process.send_signal(signal.SIGTERM)
    printed = second.end(128 + signal.SIGTERM)
    continued = r"^recover .* (going on from step|blocks are done already|continuing)"
    assert re.search(continued, printed, re.MULTILINE)
    assert "2 jobs finished; 1 left" in printed
    assert "Interrupted, the next call continues it: validate" in printed
    assert measurements() == {}

    printed = Call().end(0)
    assert re.search(r"^validate .* (going on|continuing) from epoch ", printed, re.MULTILINE)
    assert printed.splitlines()[-1] == "results/tiny.md"
    assert measurements() == wanted
    assert Path("results/tiny.csv").read_bytes() == table
    dry = snakemake("-n", "results/tiny.csv", "--config", "seeds=1", cwd=Path.cwd())
    assert planned(dry) == {"table": 1}
