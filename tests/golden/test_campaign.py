"""A campaign that is killed and continued in slices measures what an undisturbed chain does.

Its stages are real.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cda.campaign.jobs import jobs_of, stretches
from cda.campaign.steps import read_campaign

EVERY_STEP = ("--config", "runtime.checkpoint_seconds=0", "seeds=1")
STEPS = "steps: [{table: tiny, methods: [cda], ipc: [2]}]\n"


class Slice:
    """`cda campaign` as a process of its own."""

    def __init__(self) -> None:
        self.log = Path("log")
        command = [sys.executable, "-m", "cda", "campaign", *EVERY_STEP]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def reach(self, stage: str) -> int:
        """Wait until a stage has saved its work for the first time; returns its process."""
        while self.process.poll() is None:
            for state in Path("artifacts/work").glob(f"{stage}/*/*/*/state.safetensors"):
                return int(json.loads(state.with_name("lease.json").read_text())["pid"])
            time.sleep(0.005)
        raise AssertionError(self.log.read_text())

    def end(self, code: int) -> str:
        assert self.process.wait(600) == code, self.log.read_text()
        return self.log.read_text()


def gone(process: int) -> bool:
    """Whether a process has ended; a zombie has."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    return True


def made() -> dict[str, Any]:
    """Every measurement, without where and how long."""
    found = {
        str(path): json.loads(path.read_text()) for path in Path("results/runs").rglob("*.json")
    }
    for record in found.values():
        assert record.pop("provenance")
    return found


@pytest.mark.slow
def test_a_campaign_killed_and_continued_measures_what_an_undisturbed_chain_does(tree):
    tree.few_images()
    tree.edit("recipes/digits.yaml", "iterations: 6 ", "iterations: 12 ")
    tree.edit("recipes/digits.yaml", "epochs: 5 ", "epochs: 30 ")
    tree.edit("recipes/digits.yaml", "epochs: 3 ", "epochs: 30 ")
    tree.write("campaign.yaml", STEPS)
    experiments = tree.experiments(seeds=1)
    jobs = jobs_of(experiments, stretches(experiments, read_campaign(tree.folder)))
    assert [job.run.stage for job in jobs] == ["squeeze", "recover", "relabel", "validate"]
    for job in jobs:
        assert tree.cda(*job.arguments, *EVERY_STEP) == 0
    wanted = made()
    Path("artifacts").rename("undisturbed-artifacts")
    Path("results").rename("undisturbed-results")
    shutil.copytree("undisturbed-artifacts/squeeze", "artifacts/squeeze")

    first = Slice()
    stage = first.reach("recover")
    first.process.kill()
    os.kill(stage, signal.SIGKILL)
    first.end(-signal.SIGKILL)
    while not gone(stage):
        time.sleep(0.01)
    assert not list(Path("artifacts/recover").glob("*/*/part-*"))

    second = Slice()
    second.reach("validate")
    second.process.send_signal(signal.SIGTERM)
    log = second.end(128 + signal.SIGTERM)
    assert re.search(r"^recover .* (going on from step|blocks are done already)", log, re.MULTILINE)
    assert (
        "This slice finished 2 jobs.\nStopped in the middle, the next slice goes on from "
        "there: validate" in log
    )
    assert made() == {}

    log = Slice().end(0)
    assert re.search(r"^validate .* going on from epoch ", log, re.MULTILINE)
    assert log.splitlines()[-1] == "1 of 1 cell measured; 4 of 4 jobs done."
    assert made() == wanted
    assert len(wanted) == 1
