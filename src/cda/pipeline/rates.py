"""How fast a device works, in operations a second, and what a job takes on it.

A rate is a share of the device's peak, both from `config/devices.yaml`. A job also reads its images
and takes a fixed time a step. Finished jobs on the same kind of device correct the rate: it is the
median of those with which their estimates would be the time they took.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import Field

from cda.config.experiment import Several
from cda.config.settings import Computing, Settings
from cda.config.types import Count, Positive, Ratio, Strict, Weight, parse
from cda.config.yaml_source import places, read_layer, read_plain
from cda.errors import ArtifactError, ConfigError
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.paths import Layout
from cda.experiments.runs import MEASURING, Run, part_experts, seeds_of
from cda.files import read_json
from cda.pipeline.costs import Counting, multiply_adds, operations, read_images, steps
from cda.progress import log


class DataSheet(Strict):
    """A kind of device: its data sheet."""

    names: Several[str] = Field(
        description="any of these in a device's name, as provenance records it, makes it this kind"
    )
    tflops: Positive = Field(
        description="peak of what its matrix units do here, in 10¹² operations a second"
    )
    memory_gb: Positive = Field(description="memory of one, in GB")
    threads: Count | None = Field(
        None, description="of a CPU: the threads that tflops is of; a job has runtime.cpu_threads"
    )
    step: Weight = Field(0.0, description="seconds that a step takes beside its operations")
    share: dict[Computing, Ratio] = Field(
        {}, description="share of the peak that a stage reaches; replaces all devices'"
    )


class Devices(Strict):
    """`config/devices.yaml`."""

    decode: Positive = Field(description="images a second that one process decodes")
    start: Weight = Field(0.0, description="seconds until a process begins its work")
    share: dict[Computing, Ratio] = Field(description="share of the peak that a stage reaches")
    devices: dict[str, DataSheet] = Field(description="by the name that --gpu takes")


SMALL = 0.03  # of the time that decoding a file of 256 pixels takes: opening a small one


@dataclass(frozen=True)
class Rate:
    """Operations a second of one device in one stage, in 10¹², and where the number is from."""

    tflops: float
    source: str
    measured: int = 0  # jobs


@dataclass
class Rates:
    """The rates of one kind of device."""

    name: str
    device: DataSheet
    decode: float
    start: float
    assumed: dict[str, Rate]
    measured: dict[tuple[str, str], list[float]] = field(default_factory=dict)  # stage and data set

    def of(self, run: Run) -> Rate:
        """The run's stage: as measured on its data set, else on any data set, else as assumed."""
        near = self.measured.get((run.stage, run.dataset), [])
        any_data = [rates for (stage, _), rates in self.measured.items() if stage == run.stage]
        found = near or [rate for rates in any_data for rate in rates]
        if not found:
            return self.assumed[run.stage]
        where = run.dataset if near else "other data sets"
        jobs = f"{len(found)} job{'s' if len(found) > 1 else ''}"
        source = f"measured on {self.name} with {where} ({jobs})"
        return Rate(statistics.median(found), source, len(found))

    def seconds_of(self, run: Run, settings: Settings, count: Counting = multiply_adds) -> float:
        """Estimated seconds of one job's work, without its start and decoding while it trains."""
        if run.stage == "decode":
            return 0.0
        rate = self.of(run)
        assumed = self.assumed_seconds(run, settings, settings.runtime.cpu_threads, count)
        return assumed * self.assumed[run.stage].tflops / rate.tflops

    def assumed_seconds(
        self, run: Run, settings: Settings, threads: int, count: Counting = multiply_adds
    ) -> float:
        """As `seconds_of`, by the assumed rate and with `threads` of a CPU."""
        reading = read_images(run) * max(SMALL, (run.data.resolution / 256) ** 2) / self.decode
        speed = 1e12 * self.assumed[run.stage].tflops * threads / (self.device.threads or threads)
        work = operations(run, settings.labels.max_gb, count) / speed
        return reading + steps(run, settings) * self.device.step + work


def read_devices(config: Path) -> Devices:
    """`config/devices.yaml`; raises ConfigError."""
    file = config / "devices.yaml"
    return parse(Devices, read_plain(file), str(file), places(read_layer(file)))


def rates_of(config: Path, name: str, key: str = "--gpu") -> Rates:
    """The assumed rates of the device `name`; raises ConfigError that names `key` if unknown."""
    devices, file = read_devices(config), config / "devices.yaml"
    if name not in devices.devices:
        names = ", ".join(devices.devices)
        raise ConfigError(f"{key} {name}: is not in {file}; use one of {names}, or add it there")
    device, layer = devices.devices[name], read_layer(file)
    assumed = {}
    for stage in get_args(Computing):
        own = stage in device.share
        if not own and stage not in devices.share:
            fix = "add the share of the peak that the stage reaches"
            raise ConfigError(f"{file}: share.{stage} is missing; {fix}")
        share = device.share[stage] if own else devices.share[stage]
        written = layer[f"devices.{name}.share.{stage}" if own else f"share.{stage}"]
        peak = f"{device.tflops:g}" + f" ({device.threads} threads)" * bool(device.threads)
        source = f"scaled by arithmetic, {100 * share:g} % of {peak}: {written.source}"
        assumed[stage] = Rate(share * device.tflops, source)
    return Rates(name, device, devices.decode, devices.start, assumed)


def measure(
    rates: Rates,
    runs: Iterable[Run],
    settings: Settings,
    layout: Layout,
    count: Counting = multiply_adds,
) -> None:
    """Add to `rates` what finished jobs of `runs` took on this kind of device.

    A rate above the device's peak is left out: a job that continued after a kill recorded the
    seconds of its last attempt only.
    """
    for run in runs:
        for provenance, share in _provenance(run, settings, layout):
            device, seconds = str(provenance.get("device", "")).lower(), provenance.get("seconds")
            if not any(name.lower() in device for name in rates.device.names):
                continue
            if not isinstance(seconds, int | float) or seconds <= 0:
                continue
            if not operations(run, settings.labels.max_gb, count):
                continue
            threads = provenance.get("cpu_threads")
            if not isinstance(threads, int) or threads < 1:
                threads = settings.runtime.cpu_threads
            expected = rates.assumed_seconds(run, settings, threads, count)
            speed = share * expected / seconds / int(provenance.get("processes", 1))
            tflops = speed * rates.assumed[run.stage].tflops
            if tflops <= rates.device.tflops:
                rates.measured.setdefault((run.stage, run.dataset), []).append(tflops)


def _described(run: Run, settings: Settings, layout: Layout) -> list[str]:
    """The files that record how long each job of a run took."""
    if run.stage == "squeeze":
        return [str(Path(layout.model(run)).with_name("squeeze.json"))]
    if run.stage == "recover":  # every shard of a job records the job's seconds
        first = run.data.shards_per_job
        folders = sorted(Path(layout.run_folder(run)).glob("part-*"))
        return [
            f"{folder}/ipc-{int(folder.name[5:]) * first:03d}.json"
            for folder in folders
            if folder.name[5:].isdigit()
        ]
    if run.stage == "expert":  # each expert records its own seconds
        return sorted(map(str, Path(layout.run_folder(run)).glob("part-*/expert-*.json")))
    if run.stage == "distill":
        return [f"{layout.part(run, 0)}/ipc-000.json"]
    if run.stage == "relabel":
        return [f"{layout.labels(run)}/header.json"]
    if run.stage not in MEASURING:
        return []
    return [layout.run_json(run, seed) for seed in range(seeds_of(run, settings.seeds))]


def _provenance(
    run: Run, settings: Settings, layout: Layout
) -> Iterator[tuple[dict[str, Any], float]]:
    """The provenance of each finished job, and its share of a full one's work (`Job.share`)."""
    for path in _described(run, settings, layout):
        with contextlib.suppress(ArtifactError):  # missing or damaged: the stages refuse it
            description = read_json(Path(path), "a job's description")
            if description.get("run") == run.id and isinstance(description.get("provenance"), dict):
                share = 1.0
                if run.stage == "recover":
                    full = run.data.shards_per_job
                    share = description.get("shards", full) / full
                elif run.stage == "expert":
                    share = 1 / len(part_experts(run, 0))
                yield description["provenance"], share


def device_kind(experiments: ExperimentSet, requested: str | None) -> str:
    """The kind of device that jobs run on, as `config/devices.yaml` names it; raises ConfigError.

    It is `requested`, else this machine's. A GPU that the file does not list counts as
    `runtime.gpu`.
    """
    runtime = experiments.settings.runtime
    if requested is not None or runtime.device == "cpu":
        return requested or "cpu"
    name = _device_name() if any(Path("/dev").glob("nvidia[0-9]*")) else ""
    if not name:
        return "cpu"
    for kind, sheet in read_devices(experiments.config).devices.items():
        if any(known.lower() in name.lower() for known in sheet.names):
            return kind
    log(f"{name} is not in config/devices.yaml: its rates are taken to be those of {runtime.gpu}")
    return runtime.gpu


def _device_name() -> str:
    """The first GPU's name, or an empty one; raises ConfigError.

    A process of its own imports torch, which would take GPU memory as long as this one runs.
    """
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason printed"])[-1]
        raise ConfigError(f"torch cannot name the GPU ({reason}); fix the driver, or use --gpu")
    return done.stdout.strip()
