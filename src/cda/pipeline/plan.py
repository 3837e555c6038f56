"""The page that `cda plan` prints: what tables will cost, and where each rate is from."""

from __future__ import annotations

from collections.abc import Sequence

from cda.experiments.experiment_set import ExperimentSet
from cda.pipeline.estimate import Estimate, Line, estimate
from cda.text import align_columns, number


def plan(experiments: ExperimentSet, names: Sequence[str], gpu: str, gpus: int) -> str:
    """The estimate as a page of text."""
    found = estimate(experiments, names, gpu, gpus)
    settings = experiments.settings
    seeds = f"{settings.seeds} seed{'s' if settings.seeds > 1 else ''}"
    hours = "CPU-hours" if gpu == "cpu" else "GPU-hours"
    head = ["data set", "stage", "runs", "jobs", "done", "to do", hours, "TFLOP/s"]
    rows = [_row(line) for line in found.lines]
    counts = ("runs", "jobs", "done", "to_do")
    total = [str(sum(getattr(line, count) for line in found.lines)) for count in counts]
    rows.append(["all", "", *total, number(found.gpu_hours), ""])
    lines = [f"{', '.join(names)} at scale {settings.scale}, {seeds}, on {gpus} × {gpu}", ""]
    lines += [*align_columns([head, *rows], left={0, 1}), "", *_overall(found, gpu)]
    lines += ["", *_sources(found)] if found.gpu_hours else []
    return "\n".join([*lines, *([""] if found.notes else []), *found.notes])


def _row(line: Line) -> list[str]:
    counts = [str(value) for value in (line.runs, line.jobs, line.done, line.to_do)]
    rate = f"{line.rate.tflops:.3g}" if line.rate else "–"
    return [line.dataset, line.stage, *counts, number(line.gpu_hours), rate]


def _overall(found: Estimate, gpu: str) -> list[str]:
    wall, chain = _time(found.wall_hours), _time(found.chain_hours)
    bound = "the longest chain of jobs"
    if found.wall_hours > found.chain_hours:
        bound = f"all of them always busy; {bound} takes {chain}"
    lines = [f"Wall time  {wall} on {found.gpus} × {gpu} ({bound})"]
    sizes = [
        ("shards", found.shards_gb),
        ("experts' weights", found.experts_gb),
        ("soft labels", found.labels_gb),
        ("decoded validation images", found.decoded_gb),
    ]
    disk = [f"{number(size)} GB {name}" for name, size in sizes if size or name == "shards"]
    lines.append(f"Disk       {', '.join(disk)}")
    if found.pixels_gb > found.memory_gb / 2:
        images = f"up to {number(found.pixels_gb)} GB of images"
        lines.append(f"Memory     {images} in the {found.memory_gb:g} GB of one {gpu}")
    if found.online:
        which = dict.fromkeys(f"{run.dataset} IPC {run.ipc}" for run in found.online)
        lines.append(f"Labels     made while validating, not stored: {', '.join(which)}")
    return lines


def _sources(found: Estimate) -> list[str]:
    """Where each rate is from, a line each."""
    rates = dict.fromkeys((line.stage, line.rate) for line in found.lines if line.rate)
    rows = [[stage, f"{rate.tflops:.3g} TFLOP/s", rate.source] for stage, rate in rates]
    return ["Rates", *align_columns(rows, left={0, 2})]


def _time(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min"
