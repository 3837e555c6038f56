"""What some tables still cost: jobs, GPU-hours, wall time, disk.

A job counts if its output is missing and a missing measurement depends on it
(`cda.experiments.jobs`). An estimate needs no data and no artifact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cda.config.settings import Settings
from cda.errors import ConfigError
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.jobs import Job, JobGraph, gpu_count, graph_of, table_jobs
from cda.experiments.runs import MAKING, VERSIONS, Run, label_gigabytes, label_mode
from cda.pipeline.costs import (
    Counting,
    decoded_images,
    expert_gigabytes,
    multiply_adds,
    pixel_gigabytes,
    shard_gigabytes,
)
from cda.pipeline.rates import Rate, Rates, measure, rates_of
from cda.text import number


@dataclass(frozen=True)
class Line:
    """One stage of one data set."""

    dataset: str
    stage: str
    runs: int
    jobs: int
    done: int
    to_do: int
    gpu_hours: float  # of the missing jobs
    rate: Rate | None  # of the stage; None where nothing is missing


@dataclass
class Estimate:
    """What the missing jobs cost. Sizes in GB (1e9 bytes)."""

    lines: list[Line] = field(default_factory=list)
    memory_gb: float = 0.0  # of one GPU
    chain_hours: float = 0.0  # of the longest chain of jobs from squeeze to a measurement
    gpus: int = 1
    shards_gb: float = 0.0
    experts_gb: float = 0.0
    labels_gb: float = 0.0
    decoded_gb: float = 0.0
    pixels_gb: float = 0.0  # the most that one job holds in a GPU's memory
    online: list[Run] = field(default_factory=list)  # relabel runs that store no labels
    notes: list[str] = field(default_factory=list)

    @property
    def gpu_hours(self) -> float:
        """Of all missing jobs."""
        return sum(line.gpu_hours for line in self.lines)

    @property
    def wall_hours(self) -> float:
        """On GPUs that are always busy: the longest chain, or an equal share each if larger."""
        return max(self.chain_hours, self.gpu_hours / self.gpus)


def hours_of(
    run: Run, rates: Rates, settings: Settings, count: Counting = multiply_adds
) -> tuple[float, float]:
    """GPU-hours of one job: those its work takes, and those that decoding streamed images takes.

    The job takes the larger of the two, after its start. A measured rate includes the decoding,
    which then is 0.
    """
    images = 0 if run.stage == "decode" or rates.of(run).measured else decoded_images(run)
    decoding = images / rates.decode / max(1, settings.runtime.requested_workers)
    return rates.seconds_of(run, settings, count) / 3600, decoding / 3600


def estimate(experiments: ExperimentSet, names: Sequence[str], gpu: str, gpus: int) -> Estimate:
    """What the tables `names` cost on `gpus` devices of the kind `gpu`; raises ConfigError."""
    if gpus < 1:
        raise ConfigError(f"--gpus {gpus}: must be at least 1")
    settings, graph = experiments.settings, graph_of(experiments)
    rates = rates_of(experiments.config, gpu)
    measure(rates, experiments.runs().values(), settings, experiments.layout)
    targets = table_jobs(experiments, *names)
    missing = graph.missing(targets)
    runs = {job.run.id: job.run for job in missing}
    each = {run_id: hours_of(run, rates, settings) for run_id, run in runs.items()}
    hours = {job: job.share * max(each[job.run.id]) + rates.start / 3600 for job in missing}
    found = Estimate(gpus=gpus, memory_gb=rates.device.memory_gb)
    found.lines = list(_lines(graph.all(targets), missing, hours, rates, settings))
    found.chain_hours = _chain(graph, missing, hours, rates, gpus, settings)
    _add_sizes(found, missing, settings)
    found.notes = [line for name in names for line in experiments.not_run(name)]
    found.notes += _uncounted(runs.values())
    found.notes += _decode_bound(runs.values(), each)
    return found


def _lines(
    jobs: Sequence[Job],
    missing: Sequence[Job],
    hours: Mapping[Job, float],
    rates: Rates,
    settings: Settings,
) -> Iterator[Line]:
    """A line for each data set and stage."""
    to_do = set(missing)
    for dataset in dict.fromkeys(job.run.dataset for job in jobs):
        for stage in VERSIONS:
            own = [job for job in jobs if (job.run.dataset, job.run.stage) == (dataset, stage)]
            left = [job for job in own if job in to_do]
            if own:
                rated = next((job.run for job in left if gpu_count(job.run, settings)), None)
                yield Line(
                    dataset,
                    stage,
                    runs=len({job.run.id for job in own}),
                    jobs=len(own),
                    done=sum(job.is_done() for job in own),
                    to_do=len(left),
                    gpu_hours=sum(hours[job] for job in left),
                    rate=rates.of(rated) if rated else None,
                )


def _chain(
    graph: JobGraph,
    missing: Sequence[Job],
    hours: Mapping[Job, float],
    rates: Rates,
    gpus: int,
    settings: Settings,
) -> float:
    """Hours of the longest chain of jobs that wait for each other."""
    ends: dict[Job, float] = {}
    for job in missing:
        run = job.run
        several = min(run.data.gpus, settings.runtime.gpus, gpus) if run.stage == "squeeze" else 1
        own = hours[job] / several
        if run.stage == "decode":
            own = decoded_images(run) / rates.decode / 3600
        ends[job] = own + max((ends.get(one, 0.0) for one in graph.inputs(job)), default=0.0)
    return max(ends.values(), default=0.0)


def _add_sizes(found: Estimate, missing: Sequence[Job], settings: Settings) -> None:
    """Add the sizes of what the missing jobs write and hold in memory."""
    for job in missing:
        run = job.run
        if run.stage in MAKING:
            found.shards_gb += shard_gigabytes(run, job.missing_files())
        elif run.stage == "expert":
            found.experts_gb += expert_gigabytes(run, job.index)
        elif run.stage == "decode":
            found.decoded_gb += pixel_gigabytes(run, run.data.val_images or 0)
        elif run.stage == "relabel":
            mode = label_mode(run, settings.labels.max_gb)
            found.labels_gb += label_gigabytes(run) if mode == "stored" else 0.0
            found.online += [run] if mode == "online" else []
        elif run.stage in ("validate", "continual"):
            images = run.ipc * run.data.classes
            found.pixels_gb = max(found.pixels_gb, pixel_gigabytes(run, images))


def _uncounted(runs: Iterable[Run]) -> Iterator[str]:
    """A line for each data set whose number of images is not declared."""
    for name, data in {run.dataset: run.data for run in runs}.items():
        if data.train_images is None or data.val_images is None:
            fix = f"declare train_images and val_images in config/datasets/{name}.yaml"
            yield f"{name}: passes over images whose number is not known count nothing; {fix}"


def _decode_bound(runs: Iterable[Run], each: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    """A line for each stage that decodes images more slowly than it computes on them."""
    stages: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        computing, decoding = each[run.id]
        if decoding > computing:
            stages.setdefault(f"{run.dataset} {run.stage}", []).append((computing, decoding))
    for stage, pairs in stages.items():
        computing, decoding = (sum(hours) for hours in zip(*pairs, strict=True))
        share = f"computes {number(computing)} of its {number(decoding)} GPU-hours"
        yield f"{stage}: {share} and waits for decoding in the others; raise runtime.workers"
