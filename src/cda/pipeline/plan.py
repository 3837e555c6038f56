"""The page of `cda plan`: what tables will cost, before any of it is spent."""

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
    total = [
        sum(getattr(line, key) for line in found.lines) for key in ("runs", "jobs", "done", "to_do")
    ]
    rows.append(["all", "", *map(str, total), number(found.gpu_hours), ""])
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
    busy = found.wall_hours > found.chain_hours
    bound = (
        f"all of them always busy; the longest chain of jobs takes {chain}"
        if busy
        else "the longest chain of jobs"
    )
    lines = [f"Wall time  {wall} on {found.gpus} × {gpu} ({bound})"]
    sizes = [
        ("shards", found.shards_gb),
        ("soft labels", found.labels_gb),
        ("decoded validation images", found.decoded_gb),
    ]
    lines.append(
        "Disk       "
        + ", ".join(f"{number(size)} GB {name}" for name, size in sizes if size or name == "shards")
    )
    if found.pixels_gb > found.memory_gb / 2:
        lines.append(
            f"Memory     up to {number(found.pixels_gb)} GB of images in the "
            f"{found.memory_gb:g} GB of one {gpu}"
        )
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
