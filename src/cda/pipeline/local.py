"""`cda run`: the missing jobs of some tables, one after another, within a time budget.

It needs no Snakemake. It makes the files that Snakemake's rules make, so the two can take turns in
one folder. Jobs run in the order of the targets, then of their groups, and all first seeds run
before any second one. The later validation seeds of a run share a process, which reads and compiles
once. A job that has to stop gets SIGTERM and saves; the next call continues it. After a failed job
only those that read its output are skipped.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from cda.errors import CdaError, ConfigError, DataError, Interrupted
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.jobs import Job, figure_jobs, graph_of
from cda.experiments.paths import missing_data
from cda.experiments.runs import seeds_of
from cda.pipeline.limits import job_hours
from cda.pipeline.rates import Rates
from cda.progress import log
from cda.text import align_columns, clock

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
GRACE = 20.0  # seconds at the end of the budget in which a stage may save
START = 5.0  # seconds of a job before its work begins
# stages that always read real images
READING = ("decode", "squeeze", "expert", "distill", "validate", "continual")
POLL = 0.1  # seconds between two checks of a running job
LISTED = 15  # jobs that a forecast lists


def ordered_jobs(experiments: ExperimentSet, targets: Sequence[str]) -> list[Job]:
    """The missing jobs of tables and figures, inputs first, in order; raises ConfigError."""
    graph, wanted = graph_of(experiments), []
    for seed in range(experiments.settings.seeds):
        for target in targets:
            if target in experiments.figures:
                wanted += figure_jobs(experiments, target) if seed == 0 else []
                continue
            runs = experiments.requested_runs(target)
            wanted += [graph.job(run, seed) for run in runs if seed < seeds_of(run, seed + 1)]
    return [job for jobs in processes_of(graph.missing(wanted)) for job in jobs]


def processes_of(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs of each process: one, or a run's validation seeds after seed 0.

    Seed 0 has a process of its own, so that every table has its first numbers early.
    """
    processes: dict[str, list[Job]] = {}
    for job in jobs:
        later = job.run.stage == "validate" and job.index > 0
        processes.setdefault(job.run.id if later else job.output, []).append(job)
    return list(processes.values())


def arguments(jobs: Sequence[Job]) -> list[str]:
    """The command line, after `cda`, of the process that does `jobs`."""
    if len(jobs) == 1:
        return jobs[0].arguments
    return [*jobs[0].arguments[:3], "--seeds", *(str(job.index) for job in jobs)]


def command(jobs: Sequence[Job]) -> list[str]:
    """The program that does `jobs`."""
    return [sys.executable, "-m", "cda", *arguments(jobs)]


@dataclass(frozen=True)
class Budget:
    """Seconds from `began` on the monotonic clock; infinite without `--minutes`."""

    began: float
    seconds: float = math.inf

    @property
    def used(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    @property
    def working(self) -> float:
        """Seconds in which jobs may work; the rest is for saving."""
        return self.seconds - GRACE

    def allows(self, expected: float, used: float) -> bool:
        """Whether a job of `expected` seconds is worth starting: it ends in time or can save."""
        return used + min(expected, START + GRACE) <= self.working


@dataclass
class Outcome:
    """What happened to the jobs of one call."""

    done: list[Job] = field(default_factory=list)
    stopped: Job | None = None
    failed: dict[str, str] = field(default_factory=dict)  # a job's name, and how it ended
    skipped: list[Job] = field(default_factory=list)  # they read the output of a failed job
    signal: int = 0


class Runner:
    """Runs jobs until all are done, the budget ends or a signal comes."""

    def __init__(self, experiments: ExperimentSet, overrides: Mapping[str, Any], budget: Budget):
        self.graph, self.budget, self.outcome = graph_of(experiments), budget, Outcome()
        self.environment = {**os.environ, "CDA_CONFIG": json.dumps(overrides, sort_keys=True)}

    def run(self, jobs: Sequence[Job], seconds: Mapping[Job, float]) -> Outcome:
        """Run `jobs`, each after its inputs; `seconds` is the time each is expected to take.

        A signal that is ignored already (by nohup) stays ignored.
        """
        caught = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._interrupt) for number in caught}
        try:
            self._run(jobs, seconds)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return self.outcome

    def _interrupt(self, number: int, _frame: FrameType | None) -> None:
        self.outcome.signal = number

    def _run(self, jobs: Sequence[Job], seconds: Mapping[Job, float]) -> None:
        absent: set[Job] = set()  # jobs whose output this call will not make
        for process in processes_of(jobs):
            todo = [job for job in process if not job.is_done()]  # another process made the rest
            if not todo:
                continue
            if absent.intersection(self.graph.inputs(todo[0])):
                absent.update(todo)
                self.outcome.skipped += todo
                continue
            expected = sum(seconds[job] for job in todo)
            if self.outcome.signal or not self.budget.allows(expected, self.budget.used):
                return
            run, number = todo[0].run, jobs.index(todo[0]) + 1
            name = " ".join([run.stage, run.dataset, run.id, *arguments(todo)[3:]])
            log(f"[{number} of {len(jobs)}] {name}, about {clock(expected)}")
            child = subprocess.Popen(command(todo), env=self.environment)
            interrupted = self._wait(child)
            left = [job for job in todo if not job.is_done()]
            self.outcome.done += [job for job in todo if job not in left]
            if interrupted:
                self.outcome.stopped = left[0] if left else None
                return
            absent.update(left)
            self.outcome.failed |= {job.name: _ending(child.returncode) for job in left}

    def _wait(self, child: subprocess.Popen[bytes]) -> bool:
        """Wait for a job, or make it save and end in time; whether it was interrupted."""
        since = 0.0
        while child.poll() is None:
            if not since and (self.outcome.signal or self.budget.used >= self.budget.working):
                child.terminate()
                since = time.monotonic()
            elif since and time.monotonic() >= since + 0.9 * GRACE:
                child.kill()
            time.sleep(POLL)
        return since > 0


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def forecast(jobs: Sequence[Job], seconds: Mapping[Job, float], budget: Budget) -> str:
    """What a call will do: its first jobs, the time each is expected to take, and what finishes."""
    rows, used, finished = [["job", "about", "in this call"]], budget.used, 0
    fits = True
    for job in jobs:
        fits = fits and budget.allows(seconds[job], used)
        used += seconds[job] if fits else 0.0
        ends = fits and used <= budget.working
        finished += ends
        if len(rows) <= LISTED:
            fate = "finishes" if ends else "begins" if fits else "waits"
            rows.append([job.name, clock(seconds[job]), fate])
        fits = ends
    lines = align_columns(rows, left={0, 2})
    if more := jobs[LISTED:]:
        lines.append(f"… and {len(more)} more, {clock(sum(seconds[job] for job in more))}")
    limit = "" if math.isinf(budget.seconds) else f" in {clock(budget.seconds)}"
    return "\n".join([*lines, f"Expected{limit}: {finished} of {len(jobs)} jobs finish."])


def run_tables(
    experiments: ExperimentSet,
    overrides: Mapping[str, Any],
    targets: Sequence[str],
    rates: Rates,
    *,
    minutes: float | None = None,
    dry: bool = False,
) -> None:
    """Print what is missing for `targets` and do as much of it as `minutes` allow (None: all).

    `overrides` is this call's configuration, which its jobs get too. Raises ConfigError; CdaError
    if a job failed; Interrupted after a signal.
    """
    if minutes is not None and 60 * minutes <= GRACE + START:
        least = f"the last {GRACE:g} s are for saving and a job takes {START:g} s to start"
        raise ConfigError(f"--minutes {minutes:g}: too few, {least}; use 1 or more")
    budget = Budget(time.monotonic(), 60 * minutes if minutes else math.inf)
    jobs, settings = ordered_jobs(experiments, targets), experiments.settings
    if not jobs:
        print(f"{', '.join(targets)}: nothing is missing.")
        return
    seconds = {job: 3600 * job.share * job_hours(job.run, rates, settings) for job in jobs}
    for process in processes_of(jobs):
        seconds[process[0]] += rates.start
    print(forecast(jobs, seconds, budget), flush=True)
    load, cores, threads = os.getloadavg()[0], os.cpu_count() or 1, settings.runtime.cpu_threads
    if threads > 1 and load > cores / 2 and rates.name == "cpu":
        log(
            f"The load is {load:.1f} on {cores} cores: while other programs work, a job's threads "
            "wait for each other, and --config runtime.cpu_threads=1 is several times faster."
        )
    if dry:
        return
    absent = missing_data(settings, (job.run for job in jobs if job.run.stage in READING))
    for name, root in absent.items():
        raise DataError(
            f"{root}: data set {name} is not here; {experiments.dataset(name).get}, or point "
            f"config key data_paths.{name} at it"
        )
    outcome = Runner(experiments, overrides, budget).run(jobs, seconds)
    left = ordered_jobs(experiments, targets)
    rest = f"; {len(left)} left, about {clock(sum(seconds.get(job, START) for job in left))}"
    print(
        f"{len(outcome.done)} jobs finished{rest if left else ', nothing is missing'}.", flush=True
    )
    if outcome.stopped:
        print(f"Interrupted, the next call continues it: {outcome.stopped.name}")
    if outcome.signal:
        name = signal.Signals(outcome.signal).name
        message = f"stopped by {name}; all work is saved, the same command continues it"
        raise Interrupted(message, outcome.signal)
    if outcome.failed:
        names = "; ".join(f"{name} ({how})" for name, how in outcome.failed.items())
        skipped = f"{len(outcome.skipped)} jobs that read their output were skipped"
        fix = "fix what the lines above name, then the same command continues"
        raise CdaError(f"failed: {names}; {skipped}; {fix}")
