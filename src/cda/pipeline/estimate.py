"""What is left to do for some tables, and what it costs: jobs, GPU-hours, wall time, disk. Needs no
data, no artifact.

A job is counted where its output is missing and a missing measurement asks for it, as the workflow
does; what a finished measurement was made from may be gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cda.config.settings import Settings
from cda.errors import ConfigError
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.jobs import inputs, outputs
from cda.experiments.runs import MEASURING, VERSIONS, Run, label_gigabytes, label_mode
from cda.pipeline.costs import (
    Counting,
    decoded_images,
    multiply_adds,
    operations,
    pixel_gigabytes,
    shard_gigabytes,
)
from cda.pipeline.rates import Rate, Rates, measure, rates_of


@dataclass(frozen=True)
class Line:
    """One stage of one data set."""

    dataset: str
    stage: str
    runs: int
    jobs: int
    done: int
    to_do: int
    gpu_hours: float  # of what is to do
    rate: Rate | None  # that they are reckoned with; None where nothing is


@dataclass
class Estimate:
    """What tables cost. Sizes in GB (1e9 bytes), of what is to do."""

    lines: list[Line] = field(default_factory=list)
    memory_gb: float = 0.0  # of one GPU
    chain_hours: float = (
        0.0  # the longest way from squeeze to a measurement, parts and seeds side by side
    )
    gpus: int = 1
    shards_gb: float = 0.0
    labels_gb: float = 0.0
    decoded_gb: float = 0.0
    pixels_gb: float = 0.0  # the most that one job keeps in a GPU's memory
    online: list[Run] = field(
        default_factory=list
    )  # relabel runs whose labels are made while validating
    notes: list[str] = field(default_factory=list)

    @property
    def gpu_hours(self) -> float:
        """Of everything that is to do."""
        return sum(line.gpu_hours for line in self.lines)

    @property
    def wall_hours(self) -> float:
        """On so many GPUs, always busy.

        The longest chain or an equal share each, whichever is larger.
        """
        return max(self.chain_hours, self.gpu_hours / self.gpus)


@dataclass(frozen=True)
class Work:
    """One run: all its outputs, and which of them are to do."""

    run: Run
    outputs: list[str]
    missing: list[int]  # indices of the outputs to do


def _demanded(
    runs: Sequence[Run], asked: Callable[[Run, int], bool], max_gb: float
) -> dict[str, int]:
    """The runs that are read, with the largest IPC.

    Those below a run only where it is `asked` for itself.
    """
    demand = {run.id: run.ipc for run in runs if run.stage in MEASURING}
    for run in reversed(runs):  # upstream last
        if run.id in demand and asked(run, demand[run.id]):
            for below in inputs(run, max_gb):
                demand[below.id] = max(demand.get(below.id, 0), run.ipc)
    return demand


def works_of(experiments: ExperimentSet, names: Sequence[str]) -> list[Work]:
    """Every run of the tables with its jobs, upstream first."""
    settings, layout = experiments.settings, experiments.layout
    runs = list(experiments.runs(tuple(names)).values())
    kept = settings.labels.max_gb

    def left(run: Run, ipc: int) -> list[int]:
        paths = outputs(run, ipc, layout, settings.seeds)
        return [index for index, path in enumerate(paths) if not Path(path).exists()]

    every = _demanded(runs, lambda _run, _ipc: True, kept)
    wanted = _demanded(runs, lambda run, ipc: bool(left(run, ipc)), kept)
    return [
        Work(
            run,
            outputs(run, every[run.id], layout, settings.seeds),
            left(run, wanted[run.id]) if run.id in wanted else [],
        )
        for run in runs
        if run.id in every
    ]


def hours_of(
    run: Run, rates: Rates, settings: Settings, count: Counting = multiply_adds
) -> tuple[float, float]:
    """GPU-hours of one job as its networks take them, and as its decoding processes do where
    nothing was measured.
    """
    if run.stage == "decode":
        return 0.0, 0.0
    rate = rates.of(run)
    computing = operations(run, settings.labels.max_gb, count) / rate.tflops / 1e12
    decoding = (
        0.0
        if rate.measured
        else decoded_images(run) / rates.decode / max(1, settings.runtime.workers)
    )
    return computing / 3600, decoding / 3600


def estimate(experiments: ExperimentSet, names: Sequence[str], gpu: str, gpus: int) -> Estimate:
    """What the tables `names` cost on `gpus` devices of the kind `gpu`.

    Raises ConfigError for an unknown one.
    """
    if gpus < 1:
        raise ConfigError(f"--gpus {gpus}: must be at least 1")
    settings = experiments.settings
    rates = rates_of(experiments.config, gpu)
    works = works_of(experiments, names)
    measure(rates, experiments.runs().values(), settings, experiments.layout)
    found = Estimate(gpus=gpus, memory_gb=rates.device.memory_gb)
    each = {work.run.id: hours_of(work.run, rates, settings) for work in works if work.missing}
    hours = {run_id: max(pair) for run_id, pair in each.items()}
    found.lines = list(_lines(works, hours, rates))
    found.chain_hours = _chain(works, hours, rates, gpus, settings)
    _sizes(found, works, settings)
    found.notes = [*_left_out(experiments, names), *_uncounted(works), *_waiting(works, each)]
    return found


def _lines(works: Sequence[Work], hours: dict[str, float], rates: Rates) -> Iterator[Line]:
    for dataset in dict.fromkeys(work.run.dataset for work in works):
        for stage in VERSIONS:
            own = [work for work in works if (work.run.dataset, work.run.stage) == (dataset, stage)]
            if not own:
                continue
            paths = [path for work in own for path in work.outputs]
            used = next((work.run for work in own if hours.get(work.run.id)), None)
            yield Line(
                dataset,
                stage,
                runs=len(own),
                jobs=len(paths),
                done=sum(Path(path).exists() for path in paths),
                to_do=sum(len(work.missing) for work in own),
                gpu_hours=sum(len(work.missing) * hours.get(work.run.id, 0.0) for work in own),
                rate=rates.of(used) if used else None,
            )


def _chain(
    works: Sequence[Work], hours: dict[str, float], rates: Rates, gpus: int, settings: Settings
) -> float:
    """Hours of the longest chain of jobs that wait for each other.

    A squeeze job may use several GPUs.
    """
    ends: dict[str, float] = {}
    for work in works:
        run = work.run
        if not work.missing:
            continue
        together = min(run.data.gpus, settings.runtime.gpus, gpus) if run.stage == "squeeze" else 1
        own = hours.get(run.id, 0.0) / together
        if run.stage == "decode":
            own = decoded_images(run) / rates.decode / 3600
        ends[run.id] = own + max(
            (ends.get(below.id, 0.0) for below in inputs(run, settings.labels.max_gb)), default=0
        )
    return max(ends.values(), default=0.0)


def _sizes(found: Estimate, works: Sequence[Work], settings: Settings) -> None:
    """What the jobs to do leave on the disk and keep in memory."""
    for work in works:
        run = work.run
        if run.stage == "recover":
            found.shards_gb += sum(shard_gigabytes(run, part) for part in work.missing)
        elif run.stage == "decode" and work.missing:
            found.decoded_gb += pixel_gigabytes(run, run.data.val_images or 0)
        elif run.stage == "relabel" and work.missing:
            mode = label_mode(run, settings.labels.max_gb)
            found.labels_gb += label_gigabytes(run) if mode == "stored" else 0.0
            found.online += [run] if mode == "online" else []
        elif run.stage in ("validate", "continual") and work.missing:
            found.pixels_gb = max(found.pixels_gb, pixel_gigabytes(run, run.ipc * run.data.classes))


def _left_out(experiments: ExperimentSet, names: Sequence[str]) -> Iterator[str]:
    """Cells that stay not_run, a line a table and reason."""
    for name in names:
        reasons = Counter(
            cell.note for cell in experiments.cells(name) if cell.run is None and not cell.quoted
        )
        for note, count in reasons.items():
            yield f"{name}: {count} cell{'s' if count > 1 else ''} will stay not_run: {note}"


def _uncounted(works: Iterable[Work]) -> Iterator[str]:
    data = {work.run.dataset: work.run.data for work in works if work.missing}
    for name, one in data.items():
        if one.train_images is None or one.val_images is None:
            mend = f"declare train_images and val_images in config/datasets/{name}.yaml"
            yield f"{name}: passes over images whose number is not known count nothing; {mend}"


def _waiting(works: Iterable[Work], each: dict[str, tuple[float, float]]) -> Iterator[str]:
    """A line for each stage whose jobs are reckoned to wait for decoded images."""
    stages: dict[str, list[tuple[float, float]]] = {}
    for work in works:
        computing, decoding = each.get(work.run.id, (0.0, 0.0))
        if decoding > computing:
            stages.setdefault(f"{work.run.dataset} {work.run.stage}", []).append(
                (computing, decoding)
            )
    for stage, pairs in stages.items():
        computing, decoding = (sum(hours) for hours in zip(*pairs, strict=True))
        told = (
            f"computes {number(computing)} of its {number(decoding)} GPU-hours and waits "
            "for decoding in the others"
        )
        yield f"{stage}: {told}; raise runtime.workers"


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return (
        f"{value:,.0f}"
        if value >= 100
        else f"{value:.3g}"
        if value >= 0.001 or not value
        else "<0.001"
    )
