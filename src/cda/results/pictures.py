"""Pictures of distilled images: by class (Figures 9 to 11), and emerging (Figures 6 and 8)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cda.data.shards import read_shard, shard_name, to_pixels
from cda.errors import ArtifactError, ConfigError
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.runs import Run, part_shards
from cda.results.style import FAINT, LETTER, WIDTH, network_name, style_of

Pixels = NDArray[np.uint8]
Labelled = tuple[Pixels, list[str]]  # images [classes, R, R, 3] and their classes' labels
MOST = 10  # classes or shards side by side
LONGEST = 40  # letters of a class's name
PANEL = 3.6  # inches of one of several panels
LEAST = 4.5  # inches that a title needs
PAGE = 9.0  # inches of a page


@dataclass(frozen=True)
class Source:
    """A recover run of a figure, its label there, and its images.

    `classes` maps the names of the classes to draw to their labels; if empty, the first `count` are
    drawn. `present` allows missing images.
    """

    figure: str
    label: str
    run: Run
    part: Path
    classes: Mapping[str, str]
    count: int
    present: bool

    @property
    def resolution(self) -> int:
        """Height and width of an image, in pixels."""
        return self.run.data.resolution

    def chosen(self, names: list[str]) -> tuple[list[int], list[str]]:
        """Indices and labels of the classes to draw among all `names`; raises ConfigError."""
        if not self.classes:
            return list(range(self.count)), [_drawable(name) for name in names[: self.count]]
        for name in self.classes:
            if name not in names:
                there = ", ".join(names[:3])
                raise ConfigError(
                    f"figure {self.figure}: classes: {name!r} is no class of "
                    f"{self.run.dataset}; it has such as {there}"
                )
        return [names.index(name) for name in self.classes], list(self.classes.values())

    def images(self, file: str) -> Labelled | None:
        """The images of a shard to draw and their labels; None if it may be missing and is.

        Raises ArtifactError for a shard of another run.
        """
        path = self.part / file
        if self.present and not path.is_file():
            return None
        images, meta = read_shard(path, self.resolution)
        if (meta["run"], len(meta["classes"])) != (self.run.id, self.run.data.classes):
            raise ArtifactError(
                f"{path}: belongs to run {meta['run']}, not {self.run.id}; recover it again "
                "or pull it"
            )
        indices, labels = self.chosen(meta["classes"])
        return to_pixels(images[indices]), labels

    def steps(self) -> set[int]:
        """The recovery steps with stored images: the snapshots, and the last."""
        recipe = self.run.recipe.recover
        return {step for step in recipe.snapshots if step <= recipe.iterations} | {
            recipe.iterations
        }

    def after(self, step: int) -> str:
        """The file of the first shard's images after `step`."""
        snapshot = step in self.run.recipe.recover.snapshots
        return f"snapshots/step-{step:05d}.tar" if snapshot else shard_name(0)


def _sources(experiments: ExperimentSet, name: str) -> list[Source]:
    """The recover runs of a figure in declared order; raises ConfigError if there is none."""
    figure, runs = experiments.figures[name], experiments.pictured(name)
    if figure.kind == "progress":
        runs = [(key, run) for key, run in runs if run.recipe.recover.synthetic]
    if not runs:
        raise ConfigError(
            f"figure {name}: groups give no run whose images it could draw; name data sets "
            "of the scale"
        )
    classes = {
        name: label or name for name, _, label in (one.partition("=") for one in figure.classes)
    }
    present = experiments.settings.cells == "present"
    found = []
    for (key, run), label in zip(runs, _labels([key for key, _ in runs]), strict=True):
        own = classes if key["dataset"] == run.dataset else {}  # a stand-in has other classes
        count = min(len(classes) or MOST, run.data.classes)
        part = Path(experiments.layout.part(run, 0))
        found.append(Source(name, label, run, part, own, count, present))
    return found


def _labels(keys: list[dict[str, Any]]) -> list[str]:
    """Labels of runs: the method, and the recovery model and data set if these differ."""
    differ = [
        name for name in ("recovery_model", "dataset") if len({key[name] for key in keys}) > 1
    ]
    return [
        ", ".join([style_of(key["method"]).label, *(network_name(key[name]) for name in differ)])
        for key in keys
    ]


def _drawable(name: str) -> str:
    """A class's name, cut and without unprintable letters, so that it fits below its images."""
    return "".join(letter if letter.isprintable() else "?" for letter in name[:LONGEST])


def _gap(resolution: int) -> int:
    """White pixels between images."""
    return max(1, resolution // 16)


def _mosaic(images: Pixels, across: int) -> Pixels:
    """Images [N, R, R, 3] in rows of `across` with white gaps; white fills the last row."""
    gap, missing = _gap(images.shape[1]), -len(images) % across
    padded = np.pad(images, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    padded = np.concatenate([padded, np.full((missing, *padded.shape[1:]), 255, np.uint8)])
    rows = [
        np.concatenate(list(padded[i : i + across]), axis=1) for i in range(0, len(padded), across)
    ]
    return np.concatenate(rows, axis=0)[:-gap, :-gap]


def _show(axis: Axes, images: Pixels | None, across: int, count: int, resolution: int) -> None:
    """`count` images in rows of `across`; an empty frame of their size if there are none."""
    blank = np.full((count, resolution, resolution, 3), 255, np.uint8)
    mosaic = _mosaic(blank if images is None else images, across)
    axis.imshow(mosaic, interpolation="nearest" if resolution <= 64 else "hanning")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(images is None)
    axis.spines[:].set_color("0.7")
    if images is None:
        middle: dict[str, Any] = {"transform": axis.transAxes, "ha": "center", "va": "center"}
        axis.text(0.5, 0.5, "not run", color=FAINT, style="italic", **middle)


def grid(experiments: ExperimentSet, name: str) -> Figure:
    """About a hundred images: a panel a run, a column a class, a row a shard (Figures 9 to 11).

    Classes whose names do not fit side by side take several bands, each with fewer shards.
    """
    sources = _sources(experiments, name)
    albums = [[source.images(shard_name(0))] for source in sources]
    labels = [
        label
        for source, album in zip(sources, albums, strict=True)
        for label in _class_labels(source, album)
    ]
    panel, most = PANEL if len(sources) > 1 else WIDTH, max(source.count for source in sources)
    word = max((len(word) for label in labels for word in label.split()), default=1)
    bands = math.ceil(most / max(1, min(MOST, int(panel / (LETTER * word + 0.04)))))
    across = math.ceil(most / bands)
    cell = panel / across
    fits = max(word, int(cell / LETTER))
    below = 0.13 * max((len(textwrap.wrap(label, fits)) for label in labels), default=1) + 0.1
    shards = min(
        MOST // bands,
        int((PAGE / bands - below) / cell),
        *(len(part_shards(s.run, 0, experiments.required_shards(s.run))) for s in sources),
    )
    shards = max(1, shards if labels else min(shards, 2))  # an empty frame need not be large
    height = (
        bands * (shards * cell + below) + (0.5 if bands == 1 else 0.3) + 0.2 * (len(sources) > 1)
    )
    figure = Figure(figsize=(panel * len(sources), height), layout="constrained")
    axes = figure.subplots(bands, len(sources), squeeze=False)
    for source, album, column in zip(sources, albums, axes.T, strict=True):
        album += [source.images(shard_name(index)) for index in range(1, shards)]
        for band, axis in enumerate(column):
            images, names = _band(album, slice(band * across, (band + 1) * across), across)
            _show(axis, images, across, shards * across, source.resolution)
            _name_columns(axis, [textwrap.fill(label, fits) for label in names], source.resolution)
        column[0].set_title(source.label if len(sources) > 1 else "")
        column[-1].set_xlabel("" if source.classes else "class")
    if bands == 1 and shards * cell > 2.2:  # the label has room
        axes[0][0].set_ylabel("shard: one image of every class")
    return figure


def _class_labels(source: Source, read: Iterable[Labelled | None]) -> list[str]:
    """Labels of a run's classes: as declared, else as its images name them; may be empty."""
    return list(source.classes.values()) or next((labels for _, labels in filter(None, read)), [])


def _band(
    album: Sequence[Labelled | None], part: slice, across: int
) -> tuple[Pixels | None, list[str]]:
    """Some classes of every shard, with white up to `across` a shard, and their labels."""
    found = [(images[part], labels[part]) for images, labels in filter(None, album)]
    if len(found) < len(album):
        return None, []
    missing = across - len(found[0][0])
    filled = [
        np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)), constant_values=255)
        for images, _ in found
    ]
    return np.concatenate(filled), found[0][1]


def _name_columns(axis: Axes, labels: Sequence[str], resolution: int) -> None:
    """Class names below the columns of a mosaic."""
    step = resolution + _gap(resolution)
    places = [step * index + (resolution - 1) / 2 for index in range(len(labels))]
    axis.set_xticks(places, labels, parse_math=False)  # a class may be called anything
    axis.tick_params(axis="x", length=0, pad=2)


def progress(experiments: ExperimentSet, name: str) -> Figure:
    """How images emerge: a row a method, a column a recovery step (Figures 6 and 8).

    All start from the same noise. Named classes have a block each; without names, one block has the
    first ten. Raises ConfigError if the runs share no step.
    """
    sources = _sources(experiments, name)
    steps, most = _steps(experiments, name, sources), min(source.count for source in sources)
    read = {
        (source.run.id, step): source.images(source.after(step))
        for source in sources
        for step in steps
    }
    if experiments.figures[name].classes:
        blocks, across = [slice(index, index + 1) for index in range(most)], min(2, most)
        wide = min(1.5, (WIDTH / across - 0.25) / len(steps))
        tall, room = wide, 0.3
    else:
        blocks, across, wide = [slice(most)], 1, 2.4
        tall, room = wide * math.ceil(most / 5) / min(5, most) + 0.08, 0.15
    down = math.ceil(len(blocks) / across)
    size = ((wide * len(steps) + 0.25) * across, (tall * len(sources) + room) * down + 0.4)
    figure = Figure(figsize=(max(size[0], LEAST), size[1]), layout="constrained")
    titles = next(
        (names for source in sources if (names := _class_labels(source, read.values()))),
        [""] * most,
    )
    for block, title, own in zip(
        blocks, titles, figure.subfigures(down, across, squeeze=False).flat, strict=False
    ):
        axes = own.subplots(len(sources), len(steps), squeeze=False)
        for row, source in zip(axes, sources, strict=True):
            for axis, step in zip(row, steps, strict=True):
                found, count = read[source.run.id, step], block.stop - (block.start or 0)
                _show(
                    axis,
                    found[0][block] if found else None,
                    min(5, count),
                    count,
                    source.resolution,
                )
            row[0].set_ylabel(source.label)
        for axis, step in zip(axes[0], steps, strict=True):
            axis.set_title(f"step {step:,}" if wide > 0.8 else f"{step:,}", fontsize=8)
        if experiments.figures[name].classes:
            own.suptitle(title, fontsize=9, style="italic", parse_math=False)
    return figure


def _steps(experiments: ExperimentSet, name: str, sources: list[Source]) -> list[int]:
    """The figure's steps that every run stored.

    If these are fewer than two, as at another scale, all steps that every run stored.
    """
    stored = set.intersection(*(source.steps() for source in sources))
    steps = [step for step in experiments.figures[name].steps if step in stored]
    steps = steps if len(steps) > 1 else sorted(stored)
    if not steps:
        raise ConfigError(
            f"figure {name}: its methods share no recover.snapshots; set the same steps in "
            "the recipe"
        )
    return steps
