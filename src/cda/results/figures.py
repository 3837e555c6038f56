"""Pictures: distilled images by class, and how recovery progresses (the idea of the paper's Figure 6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from cda.data.shards import read_shard, shard_name
from cda.errors import ArtifactError
from cda.experiments import ExperimentSet
from cda.files import whole
from cda.runs import Run

mpl.use("agg")
import matplotlib.pyplot as plt

Pixels = NDArray[np.uint8]
NAMES = {"cda": "CDA", "sre2l": "SRe²L", "random": "Random real images"}
MOST = 10  # classes or shards shown side by side


def recover_runs(experiments: ExperimentSet, table: str) -> dict[str, Run]:
    """The recover runs of a table's cells by method (the first of each), in declared order."""
    found: dict[str, Run] = {}
    for cell in experiments.cells(table):
        if cell.run is not None:
            found.setdefault(str(cell.key["method"]), cell.run.upstream["labels"].upstream["images"])
    return found


def _snapshots(run: Run) -> set[int]:
    """The steps whose images a run keeps."""
    recipe = run.recipe.recover
    return {step for step in recipe.snapshots if step <= recipe.iterations}


def _first_part(experiments: ExperimentSet, run: Run) -> Path:
    return Path(experiments.layout.part(run, 0))


def _mosaic(images: Pixels, across: int, gap: int = 1) -> Pixels:
    """Images [N, R, R, 3] in rows of `across` with white gaps; N is a multiple of `across`."""
    padded = np.pad(images, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    rows = [np.concatenate(list(padded[i : i + across]), axis=1) for i in range(0, len(padded), across)]
    return np.concatenate(rows, axis=0)[:-gap, :-gap]


def _show(axis: Any, image: Pixels, title: str = "", label: str = "") -> None:
    axis.imshow(image, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.set_title(title, fontsize=10)
    axis.set_ylabel(label, fontsize=10)


def _caption(experiments: ExperimentSet) -> str:
    scale = experiments.settings.scale
    return "" if scale == "paper" else f"Scaled down: scale {scale}, not comparable with the paper."


def _save(figure: Any, out: Path, note: str) -> None:
    figure.supxlabel(note, fontsize=8, color="0.35")
    with whole(out) as aside:
        figure.savefig(aside, format="png", dpi=150, metadata={"Software": None})
    plt.close(figure)


def distilled(experiments: ExperimentSet, table: str, out: Path) -> None:
    """Distilled images by class: a panel a method, a column a class, a row a shard."""
    runs = recover_runs(experiments, table)
    figure, axes = plt.subplots(1, len(runs), figsize=(3.6 * len(runs), 4.4), squeeze=False, layout="constrained")
    for axis, (method, run) in zip(axes[0], runs.items(), strict=True):
        part = _first_part(experiments, run)
        shards = [read_shard(part / shard_name(index)) for index in range(min(MOST, run.data.shards_per_job))]
        classes = shards[0][1]["classes"][:MOST]
        _show(
            axis,
            _mosaic(np.concatenate([images[:MOST] for images, _ in shards]), len(classes)),
            NAMES.get(method, method),
        )
        ticks = (run.data.resolution + 1) * (np.arange(len(classes)) + 0.5)
        axis.set_xticks(ticks, classes, fontsize=8, rotation=90 if max(map(len, classes)) > 2 else 0)
        axis.set_xlabel("class", fontsize=9)
    axes[0][0].set_ylabel("shard: one image of every class", fontsize=9)
    figure.suptitle(experiments.tables[table].title, fontsize=11)
    _save(figure, out, _caption(experiments))


def progress(experiments: ExperimentSet, table: str, out: Path) -> None:
    """How images emerge: a row a synthetic method, a column a recovery step, all from the same noise."""
    runs = {method: run for method, run in recover_runs(experiments, table).items() if run.recipe.recover.synthetic}
    steps = sorted(set.intersection(*(_snapshots(run) for run in runs.values())) if runs else set())
    if not steps:
        raise ArtifactError(
            f"table {table}: its methods share no recover.snapshots; set the same steps in the recipe and recover again"
        )
    figure, axes = plt.subplots(
        len(runs), len(steps), figsize=(2.4 * len(steps), 1.1 * len(runs) + 0.9), squeeze=False, layout="constrained"
    )
    for row, (method, run) in zip(axes, runs.items(), strict=True):
        for axis, step in zip(row, steps, strict=True):
            images, _ = read_shard(_first_part(experiments, run) / "snapshots" / f"step-{step:05d}.tar")
            title = f"step {step:,}" if axis in axes[0] else ""
            _show(
                axis,
                _mosaic(images[:MOST], min(5, len(images))),
                title,
                NAMES.get(method, method) if axis is row[0] else "",
            )
    figure.suptitle(f"Images of one shard during recovery, {next(iter(runs.values())).dataset}", fontsize=11)
    _save(figure, out, _caption(experiments))
