"""Building the DAG: the workflow's imports, resolving every run, and Snakemake's dry runs.

Each is timed in a fresh process.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence

from benchmarks.harness import Case, Setting, Side, Work

PLAN = "from cda.pipeline.rules import Plan; print(len(Plan({}).experiments.runs()))"
DRY_RUNS = {"one table": "results/table1.csv", "every table": "tables", "everything": "all"}


def process(command: Sequence[str], count: Callable[[str], float]) -> Callable[[], Work]:
    """Work that is a process of its own; `count` takes its output and returns its units of work."""

    def work() -> float:
        done = subprocess.run(
            [sys.executable, *command], check=True, capture_output=True, text=True
        )
        return count(done.stdout)

    return lambda: work


def jobs_of(output: str) -> float:
    r"""How many jobs a dry run plans: the last number of its table of jobs.

    >>> jobs_of("job      count\n-------  -----\nall          1\nrecover      6\ntotal        7\n")
    7.0
    """
    return float(re.findall(r"^total\s+(\d+)", output, re.MULTILINE)[-1])


def cases(setting: Setting) -> list[Case]:
    """The import, every run, and three dry runs; there is no plain way to compare with."""

    def case(
        what: str, unit: str, build: Callable[[], Work], parameters: dict[str, object]
    ) -> Case:
        quick = 1 if setting.quick else 3
        return Case(
            "dag",
            what,
            unit,
            (Side("ours", build),),
            parameters,
            rounds=quick,
            seconds=0.0,
            memory=False,
        )

    found = [
        case(
            "import",
            "s",
            process(["-c", "import cda.pipeline.rules"], lambda _: 1.0),
            {"module": "cda.pipeline.rules"},
        )
    ]
    if setting.quick:
        return found
    found.append(case("runs", "runs/s", process(["-c", PLAN], float), {"scale": "paper"}))
    for name, target in DRY_RUNS.items():
        command = ["-m", "snakemake", "-n", "-F", "--nolock", target]
        found.append(
            case(f"dry run of {name}", "jobs/s", process(command, jobs_of), {"target": target})
        )
    return found
