"""How fast a device works: measured where something ran on it, else a share of its peak from
`config/devices.yaml`.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field

from cda.config.experiment import Several
from cda.config.settings import Settings
from cda.config.types import Positive, Ratio, Strict, parse
from cda.config.yaml_source import places, read_layer, read_plain
from cda.errors import ArtifactError, ConfigError
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.paths import Layout
from cda.experiments.runs import MEASURING, Run, seeds_of
from cda.files import read_json
from cda.pipeline.costs import Counting, multiply_adds, operations
from cda.progress import log

Computing = Literal["squeeze", "recover", "relabel", "validate", "score", "continual"]


class DataSheet(Strict):
    """A kind of device: its data sheet."""

    names: Several[str] = Field(
        description="any of these in a device's name, as provenance tells it, makes it this kind"
    )
    tflops: Positive = Field(
        description="peak of what its matrix units do here, in 10¹² operations a second"
    )
    memory_gb: Positive = Field(description="memory of one, in GB")
    share: dict[Computing, Ratio] = Field(
        {}, description="share of the peak that a stage reaches; replaces all devices'"
    )


class Devices(Strict):
    """`config/devices.yaml`."""

    decode: Positive = Field(description="images a second that one process decodes")
    share: dict[Computing, Ratio] = Field(description="share of the peak that a stage reaches")
    devices: dict[str, DataSheet] = Field(description="by the name that --gpu takes")


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
    assumed: dict[str, Rate]
    measured: dict[tuple[str, str], list[float]] = field(default_factory=dict)  # stage and data set

    def of(self, run: Run) -> Rate:
        """What is measured for the stage on the run's data set, else on any, else what is assumed;
        medians.
        """
        near = self.measured.get((run.stage, run.dataset), [])
        found = near or [
            rate
            for (stage, _), rates in self.measured.items()
            if stage == run.stage
            for rate in rates
        ]
        if not found:
            return self.assumed[run.stage]
        where = run.dataset if near else "other data sets"
        jobs = f"{len(found)} job{'s' if len(found) > 1 else ''}"
        return Rate(
            statistics.median(found), f"measured on {self.name} with {where} ({jobs})", len(found)
        )


def read_devices(config: Path) -> Devices:
    """`config/devices.yaml`; raises ConfigError."""
    file = config / "devices.yaml"
    return parse(Devices, read_plain(file), str(file), places(read_layer(file)))


def rates_of(config: Path, name: str, key: str = "--gpu") -> Rates:
    """The assumed rates of the device `name`, which `key` named.

    Raises ConfigError that lists those there are.
    """
    devices, file = read_devices(config), config / "devices.yaml"
    if name not in devices.devices:
        raise ConfigError(
            f"{key} {name}: is not in {file}; use one of {', '.join(devices.devices)}, or add "
            "it there"
        )
    device, layer = devices.devices[name], read_layer(file)
    assumed = {}
    for stage in get_args(Computing):
        own = stage in device.share
        if not own and stage not in devices.share:
            raise ConfigError(
                f"{file}: share.{stage} is missing; add the share of the peak that the stage "
                "reaches"
            )
        share = device.share[stage] if own else devices.share[stage]
        written = layer[f"devices.{name}.share.{stage}" if own else f"share.{stage}"]
        source = f"scaled by arithmetic, {100 * share:g} % of {device.tflops:g}: {written.source}"
        assumed[stage] = Rate(share * device.tflops, source)
    return Rates(name, device, devices.decode, assumed)


def measure(
    rates: Rates,
    runs: Iterable[Run],
    settings: Settings,
    layout: Layout,
    count: Counting = multiply_adds,
) -> None:
    """Put into `rates` what the outputs of `runs` tell about this kind of device."""
    for run in runs:
        for provenance in _provenance(run, settings, layout):
            device, seconds = str(provenance.get("device", "")).lower(), provenance.get("seconds")
            if not any(name.lower() in device for name in rates.device.names):
                continue
            if not isinstance(seconds, int | float) or seconds <= 0:
                continue
            tflops = (
                operations(run, settings.labels.max_gb, count)
                / seconds
                / int(provenance.get("processes", 1))
                / 1e12
            )
            if (
                0 < tflops <= rates.device.tflops
            ):  # a job that went on after a kill tells its last part's seconds only
                rates.measured.setdefault((run.stage, run.dataset), []).append(tflops)


def _described(run: Run, settings: Settings, layout: Layout) -> list[str]:
    """The files that tell how long each job of a run took."""
    if run.stage == "squeeze":
        return [str(Path(layout.model(run)).with_name("squeeze.json"))]
    if run.stage == "recover":  # every shard of a part tells the part's seconds
        first = run.data.shards_per_job
        folders = sorted(Path(layout.run_folder(run)).glob("part-*"))
        return [
            f"{folder}/ipc-{int(folder.name[5:]) * first:03d}.json"
            for folder in folders
            if folder.name[5:].isdigit()
        ]
    if run.stage == "relabel":
        return [f"{layout.labels(run)}/header.json"]
    return (
        [layout.run_json(run, seed) for seed in range(seeds_of(run, settings.seeds))]
        if run.stage in MEASURING
        else []
    )


def _provenance(run: Run, settings: Settings, layout: Layout) -> Iterator[dict[str, Any]]:
    for path in _described(run, settings, layout):
        with contextlib.suppress(
            ArtifactError
        ):  # not there, or damaged: whoever reads it for good says so
            description = read_json(Path(path), "a job's description")
            if description.get("run") == run.id and isinstance(description.get("provenance"), dict):
                yield description["provenance"]


def device_kind(experiments: ExperimentSet, requested: str | None) -> str:
    """The kind of device jobs run on, as `config/devices.yaml` names it: `requested`, or this one.

    A process of its own asks torch, since a look at a GPU takes memory of it. A GPU that the file
    does not list counts as `runtime.gpu`. Raises ConfigError.
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
    """What torch calls the first GPU; empty where it sees none. Raises ConfigError."""
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason printed"])[-1]
        raise ConfigError(f"torch cannot name the GPU ({reason}); fix the driver, or use --gpu")
    return done.stdout.strip()
