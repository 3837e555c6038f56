"""How long a campaign's jobs take on this kind of device: by what was measured, else by what is
assumed.

A job that was stopped tells in its output the seconds of its last start alone. So a small file
keeps what earlier slices spent on such jobs: it makes their rates right, and says how much of an
unfinished job is left.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from cda.campaign.jobs import Job
from cda.config.types import Strict, Weight, parse
from cda.engine.gpus import visible_gpus
from cda.errors import ConfigError
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.jobs import process_count
from cda.experiments.runs import Run
from cda.files import read_json, write_json
from cda.pipeline.costs import decoded_images, operations
from cda.pipeline.estimate import hours_of
from cda.pipeline.limits import rough_multiply_adds
from cda.pipeline.rates import measure, rates_of, read_devices
from cda.progress import log

START = 15.0  # seconds of a job before its work begins: torch, data, model
NAME = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"


class Spent(Strict):
    """Seconds of work on a job that was stopped at least once, its start-ups left out."""

    kind: str  # of the device, as config/devices.yaml names it; empty if it was several
    seconds: Weight  # of all its starts
    done: bool  # whether the campaign finished it


class Record(Strict):
    """What the file holds: jobs by their outputs."""

    jobs: dict[str, Spent]


class Times:
    """Seconds of jobs on a kind of device; keeps the record of those that were stopped."""

    def __init__(self, experiments: ExperimentSet, kind: str, jobs: Sequence[Job]) -> None:
        """`jobs` are those of the whole campaign.

        Raises ConfigError for a kind that config/devices.yaml lacks.
        """
        self._experiments, self.kind, self._jobs = experiments, kind, jobs
        self._file = Path(experiments.layout.artifacts) / "work" / "campaign.json"
        self._record = Record(jobs={})
        if self._file.is_file():
            self._record = parse(
                Record, read_json(self._file, "the campaign's record"), str(self._file)
            )
        self.measure()

    def measure(self) -> None:
        """Take the rates from what is there now."""
        settings, layout = self._experiments.settings, self._experiments.layout
        self.rates = rates_of(self._experiments.config, self.kind)
        own: dict[str, list[Job]] = {}
        for job in self._jobs:
            own.setdefault(job.run.id, []).append(job)
        for jobs in own.values():
            found = (self._record.jobs.get(job.output) for job in jobs if job.done)
            if stopped := [spent for spent in found if spent and spent.done]:
                self._take(jobs[0].run, stopped)
            else:
                measure(self.rates, [jobs[0].run], settings, layout, rough_multiply_adds)

    def _take(self, run: Run, stopped: Sequence[Spent]) -> None:
        """Take the rates of a run's jobs that were stopped and are done.

        Their outputs tell less than they took.
        """
        work = (
            operations(run, self._experiments.settings.labels.max_gb, rough_multiply_adds)
            / self._together(run)
            / 1e12
        )
        for spent in stopped:
            rate = work / max(spent.seconds, 1.0)
            if spent.kind == self.kind and 0 < rate <= self.rates.device.tflops:
                self.rates.measured.setdefault((run.stage, run.dataset), []).append(rate)

    def _together(self, run: Run) -> int:
        """Devices that a job of a run keeps busy."""
        return process_count(run, self._experiments.settings) if run.stage == "squeeze" else 1

    def measured(self, run: Run) -> bool:
        """Whether the rate of a run's stage was measured."""
        return run.stage in self.rates.assumed and bool(self.rates.of(run).measured)

    def begun(self, job: Job) -> bool:
        """Whether an earlier slice has worked on a job that is not done."""
        spent = self._record.jobs.get(job.output)
        return spent is not None and not spent.done and spent.seconds > 0

    def of(self, job: Job) -> float:
        """Expected seconds of a job that is to do, its start-up among them, less what earlier
        slices spent on it.
        """
        spent = self._record.jobs.get(job.output)
        return START + max(
            0.0, self._seconds(job.run) - (spent.seconds if spent and not spent.done else 0.0)
        )

    def total(self, jobs: Iterable[Job]) -> float:
        """Expected seconds of jobs that are to do, one after another."""
        return sum(map(self.of, jobs))

    def _seconds(self, run: Run) -> float:
        settings = self._experiments.settings
        if run.stage == "decode":
            return decoded_images(run) / self.rates.decode
        return (
            3600
            * max(hours_of(run, self.rates, settings, rough_multiply_adds))
            / self._together(run)
        )

    def note(self, job: Job, seconds: float) -> None:
        """Keep that a job ran for `seconds`, start-up included, if it was stopped now or before."""
        before = self._record.jobs.get(job.output)
        if before is None and job.done:
            return
        fresh = before is None or before.done  # its output was deleted since
        earlier = 0.0 if fresh or before is None else before.seconds
        kind = self.kind if fresh or before is None or before.kind == self.kind else ""
        spent = Spent(kind=kind, seconds=earlier + max(0.0, seconds - START), done=job.done)
        self._record = Record(jobs=self._record.jobs | {job.output: spent})
        write_json(self._file, self._record.model_dump(mode="json"))


def kind_of(experiments: ExperimentSet, gpu: str | None) -> str:
    """The kind of device that jobs run on, as config/devices.yaml names it: `gpu`, or what torch
    sees here.

    Torch is asked in a process of its own, since a look at the GPU takes memory of it. A GPU that
    the file does not know is reckoned as runtime.gpu.
    """
    runtime = experiments.settings.runtime
    if gpu is not None or runtime.device == "cpu":
        return gpu or "cpu"
    name = _device_name() if visible_gpus() else ""
    if not name:
        return "cpu"
    for kind, device in read_devices(experiments.config).devices.items():
        if any(known.lower() in name.lower() for known in device.names):
            return kind
    mend = f"add it to {experiments.config}/devices.yaml, or give --gpu"
    log(f"campaign: {name} is no known device: reckoning with {runtime.gpu}; {mend}")
    return runtime.gpu


def _device_name() -> str:
    """What torch calls the GPU that it would use; empty where it sees none."""
    done = subprocess.run([sys.executable, "-c", NAME], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConfigError(f"torch cannot tell the GPU ({reason}); mend the driver, or give --gpu")
    return done.stdout.strip()
