"""One slice of a campaign: its jobs one after another, each a process of its own, until the time is
over.

A job that has to make way is told so by SIGTERM: it saves where it is, and the next slice goes on
from there. One that fails costs those that need it, and no other. A slice may be killed at any
instant, as its stages may.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from cda.campaign import page
from cda.campaign.jobs import Job, jobs_of, stretches
from cda.campaign.steps import read_campaign
from cda.campaign.times import START, Times, kind_of
from cda.errors import ArtifactError, CdaError, ConfigError, Interrupted
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.paths import Layout
from cda.files import read_json
from cda.progress import log

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
POLL = 0.1  # seconds
CLOSING = 0.1  # share of the grace that is left for the last lines


@dataclass(frozen=True)
class Budget:
    """The seconds of a slice from the moment it `began`, and those at their end in which a stage
    may save.
    """

    began: float
    seconds: float
    grace: float

    @property
    def limited(self) -> bool:
        """Whether it ends before the campaign does."""
        return math.isfinite(self.seconds)

    @property
    def stop(self) -> float:
        """When the running job is told to stop."""
        return self.began + self.seconds - self.grace

    @property
    def working(self) -> float:
        """Seconds in which jobs may work."""
        return self.seconds - self.grace

    def begins(self, expected: float, used: float) -> bool:
        """Whether a job of so many seconds is worth starting after `used`.

        It ends in time, or gets to work.
        """
        return used + min(expected, START + self.grace) <= self.working


@dataclass
class Outcome:
    """What a slice did."""

    done: list[Job] = field(default_factory=list)
    stopped: Job | None = None
    failed: dict[str, str] = field(default_factory=dict)  # a job's name, and how it ended
    busy: dict[str, str] = field(default_factory=dict)  # a job's name, and who works on it
    left_out: list[Job] = field(default_factory=list)  # for want of what those would have made
    signal: int = 0


def command(job: Job) -> list[str]:
    """The program that does a job."""
    return [sys.executable, "-m", "cda", *job.arguments]


class Runner:
    """Runs jobs until they are done, the budget ends or a signal comes."""

    def __init__(
        self, budget: Budget, times: Times, layout: Layout, environment: Mapping[str, str]
    ) -> None:
        self.budget, self.times, self.layout, self.environment = budget, times, layout, environment
        self.outcome = Outcome()
        self._missing: set[str] = set()  # outputs that this slice will not see

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.outcome.signal = number

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Notice signals within, but those that whoever started this has it ignore (nohup)."""
        heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._ask) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self, jobs: Sequence[Job]) -> Outcome:
        """What became of the jobs, which stand after what they need."""
        with self._listening():
            for number, job in enumerate(jobs, start=1):
                if job.done:  # by another process, meanwhile
                    continue
                if self._missing.intersection(job.needs):
                    self._missing.add(job.output)
                    self.outcome.left_out.append(job)
                    continue
                expected, used = self.times.of(job), time.monotonic() - self.budget.began
                if self.outcome.signal or not self.budget.begins(expected, used):
                    break
                log(f"campaign: {number} of {len(jobs)}: {job.name}, about {page.clock(expected)}")
                if not self._do(job):
                    break
        return self.outcome

    def _do(self, job: Job) -> bool:
        """Run a job to its end, or stop it in time; whether to go on with the next."""
        began = time.monotonic()
        child = subprocess.Popen(command(job), env=self.environment)
        asked = self._wait(child)
        self.times.note(job, time.monotonic() - began)
        if job.done:
            self.outcome.done.append(job)
        elif asked:
            self.outcome.stopped = job
        else:
            self._missing.add(job.output)
            if other := self._other(job, child.pid):
                self.outcome.busy[job.name] = other
            else:
                self.outcome.failed[job.name] = _ended(child.returncode)
        return not asked

    def _wait(self, child: subprocess.Popen[bytes]) -> bool:
        """Wait for a job; told to stop it saves, and what does not end in the grace is killed.

        Whether it was told.
        """
        asked = 0.0
        while child.poll() is None:
            now = time.monotonic()
            if not asked and (self.outcome.signal or now >= self.budget.stop):
                child.terminate()
                asked = now
            elif asked and now >= asked + (1 - CLOSING) * self.budget.grace:
                child.kill()
            time.sleep(POLL)
        return asked > 0

    def _other(self, job: Job, pid: int) -> str:
        """Who else works on a job: the owner of the lease that is left where it ended.

        Empty if nobody.
        """
        lease = Path(self.layout.work(job.run, job.work)) / "lease.json"
        try:
            owner = read_json(lease, "a lease")
        except ArtifactError:
            return ""
        return (
            "" if owner.get("pid") == pid else f"process {owner.get('pid')} of {owner.get('host')}"
        )


def _ended(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def campaign(
    experiments: ExperimentSet,
    given: Mapping[str, Any],
    *,
    began: float,
    minutes: float | None,
    grace: float,
    dry: bool,
    gpu: str | None,
) -> None:
    """Say what is to do, do the most valuable of it in `minutes` (None: all of it), say what is
    done of the whole.

    `given` is the configuration of this call, which its stages get too; `began` when it started, on
    the monotonic clock; `grace` the seconds at the end of the budget in which a stage may save.
    Raises ConfigError; CdaError if jobs failed; Interrupted after a signal.
    """
    _check(minutes, grace)
    asked = stretches(experiments, read_campaign(experiments.config))
    every = jobs_of(experiments, asked, every=True)
    times = Times(experiments, kind_of(experiments, gpu), every)
    told = page.Page(experiments, asked, every, times)
    left = jobs_of(experiments, asked)
    budget = Budget(began, 60 * minutes if minutes else math.inf, grace)
    print(told.before(left, budget, time.monotonic() - began), flush=True)
    if dry or minutes == 0 or not left:
        return
    environment = {**os.environ, "CDA_CONFIG": json.dumps(given, sort_keys=True)}
    outcome = Runner(budget, times, experiments.layout, environment).run(left)
    times.measure()
    print(told.after(jobs_of(experiments, asked), outcome), flush=True)
    if outcome.signal:
        name = signal.Signals(outcome.signal).name
        raise Interrupted(
            f"stopped by {name}; what is done is saved, start it again to go on", outcome.signal
        )
    if outcome.failed:
        names = ", ".join(outcome.failed)
        raise CdaError(
            f"campaign: failed: {names}; mend what its lines above say and start it again: it "
            "goes on"
        )


def _check(minutes: float | None, grace: float) -> None:
    if not 1 <= grace <= 3600:
        raise ConfigError(f"--grace {grace:g}: must be 1 to 3600 seconds, in which a stage saves")
    if minutes is not None and not minutes >= 0:
        raise ConfigError(f"--minutes {minutes:g}: must be at least 0")
    if minutes and 60 * minutes <= grace + START:
        least = f"a job takes {START:g} s to start and the last {grace:g} s are for saving"
        raise ConfigError(
            f"--minutes {minutes:g}: too few, {least}; give more, or a smaller --grace"
        )
