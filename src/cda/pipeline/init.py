"""`cda init`: from a folder of images to a data set's file with its table, and a recipe.

The recipe is the largest budget that `cda plan` prices within the machine's limit. No file is
overwritten, and after an error nothing is left behind.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cda.config.load import CONFIG
from cda.config.names import LAYOUTS
from cda.config.settings import Dataset, Settings
from cda.data import intake
from cda.data.intake import SMALLEST, Placed, Survey
from cda.errors import ConfigError
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.paths import data_root
from cda.files import write_text
from cda.pipeline.estimate import estimate
from cda.pipeline.proposal import (
    CPU_LEVELS,
    GPU_LEVELS,
    Level,
    complete,
    dataset_text,
    propose_resolution,
    recipe_text,
)
from cda.pipeline.rates import device_kind, rates_of
from cda.text import clock

CPU_HOURS, GPU_HOURS = 1.0, 12.0  # limits of a proposal
BATCH = 100  # images that recover sends through the network together on a CPU


class Proposal(NamedTuple):
    """A data set and a budget, and the hours that `cda plan` prices the table at."""

    data: Dataset
    level: Level
    reason: str  # of the resolution
    hours: float


def declare(
    settings: Settings,
    name: str,
    *,
    layout: str | None = None,
    path: Path | None = None,
    gpu: str | None = None,
    config: Path = CONFIG,
) -> str:
    """Write the files of the data set `name`; returns what was found and the next commands.

    `path` is its folder, by default its standard place; `layout` by default Tiny-ImageNet's where
    its list of held-out images is, else class folders; `gpu` the kind of device to propose for, by
    default this machine's. Raises CdaError.
    """
    _require_new(name, config)
    root = data_root(settings, name)
    # A data set of one's own has its table at this scale.
    plain = {"scale": "paper", "datasets": "all", "cells": "all", "data_paths": {}}
    experiments = ExperimentSet(settings.model_copy(update=plain), config)
    kind = rates_of(config, device_kind(experiments, gpu)).name
    if layout is None:
        tiny = ((path or root) / "val" / "val_annotations.txt").is_file()
        layout = "tiny_imagenet" if tiny else LAYOUTS[0]
    data = _unmeasured(name, layout)
    with _placed(data, path, root) as placed:
        survey = intake.survey(data, root)
        chosen = _choose(experiments, data, survey, kind)
        mean, std = intake.pixel_statistics(chosen.data, root, survey.sample)
        chosen = chosen._replace(data=chosen.data.model_copy(update={"mean": mean, "std": std}))
        texts = _texts(experiments.config, survey, chosen, kind, split=placed == "split")
        for file, text in texts.items():
            write_text(config / file, text)
    place = {"": f"{root}", "link": f"{root} -> {path}", "split": f"{root}, links into {path}"}
    return "\n".join(
        [
            f"{place[placed]}: {_found(survey)}",
            *(f"{config / file}" for file in texts),
            _price(chosen, kind),
            "",
            *_next(chosen.data, kind, settings.scale),
        ]
    )


def _next(data: Dataset, kind: str, scale: str) -> Iterator[str]:
    """The next commands."""
    options = [] if scale == "paper" else ["scale=paper"]
    blocks = min(max(data.compare_ipc), BATCH // data.classes)
    packed = ["runtime.blocks=" + str(blocks)] if kind == "cpu" and blocks > 1 else []
    yield "Next:"
    names = f"{data.name} {data.name}-grid"
    for verb, values in ((f"check {data.name}", options), (f"run {names}", options + packed)):
        yield " ".join([f"  cda {verb}", *(["--config", *values] if values else [])])
    together = f"; {blocks} shards of so few classes are recovered together" if packed else ""
    yield f"Results: results/{data.name}.md, results/{data.name}-grid.png{together}."


def _require_new(name: str, config: Path) -> None:
    """Raise ConfigError for a name that cannot be used or that a file of `config/` has."""
    if not re.fullmatch(r"\w[\w-]*", name):
        raise ConfigError(
            f"NAME {name!r}: must be letters, digits, _ and -, the first a letter, digit or _"
        )
    for folder in ("datasets", "recipes", "experiments"):
        if (file := config / folder / f"{name}.yaml").exists():
            raise ConfigError(f"{file}: exists and stays as it is; choose another name, or edit it")


def _unmeasured(name: str, layout: str) -> Dataset:
    """A data set of which only name and layout are known."""
    return Dataset(
        name=name,
        layout=layout,  # type: ignore[arg-type]  # one of LAYOUTS
        classes=2,
        resolution=SMALLEST,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        get="it holds train/<class>/ and val/<class>/, or --data names class folders elsewhere"
        if layout == LAYOUTS[0]
        else "docs/configuration.md has the layouts",
    )


@contextmanager
def _placed(data: Dataset, path: Path | None, root: Path) -> Iterator[Placed]:
    """The data in its standard place; after an error what was made there is removed."""
    placed = intake.place(data, path, root) if path else ""
    try:
        yield placed
    except BaseException:
        if placed:
            intake.remove(root)
        raise


def _choose(experiments: ExperimentSet, data: Dataset, survey: Survey, kind: str) -> Proposal:
    """The largest budget that is priced within the limit, else the smallest."""
    with tempfile.TemporaryDirectory() as folder:
        # A copy of config/ with the proposal, so that the price is that of `cda plan`.
        staged = Path(folder) / "config"
        shutil.copytree(experiments.config, staged)
        for level in CPU_LEVELS if kind == "cpu" else GPU_LEVELS:
            resolution, reason = propose_resolution(survey.sizes, level.resolution)
            chosen = Proposal(complete(data, survey, resolution), level, reason, 0.0)
            for file, text in _texts(staged, survey, chosen, kind, split=False).items():
                write_text(staged / file, text)
            own = ExperimentSet(experiments.settings, staged)
            chosen = chosen._replace(hours=estimate(own, [data.name], kind, 1).gpu_hours)
            if chosen.hours <= _limit(kind):
                break
    return chosen


def _limit(kind: str) -> float:
    return CPU_HOURS if kind == "cpu" else GPU_HOURS


def _texts(
    config: Path, survey: Survey, chosen: Proposal, kind: str, *, split: bool
) -> dict[str, str]:
    """The texts of the two files, by their paths below `config/`."""
    name = f"{chosen.data.name}.yaml"
    return {
        f"datasets/{name}": dataset_text(chosen.data, survey, chosen.reason, split),
        f"recipes/{name}": recipe_text(config, chosen.data, chosen.level, kind),
    }


def _price(chosen: Proposal, kind: str) -> str:
    """The price, and what to do where it is above the limit."""
    line = f"`cda plan` prices the table at {clock(3600 * chosen.hours)} on {kind}"
    if chosen.hours <= _limit(kind):
        return line
    limit = clock(3600 * _limit(kind))
    return (
        f"{line}, more than {limit}: lower the recipe's epochs and iterations, or take classes out"
    )


def _found(survey: Survey) -> str:
    """The counts and the sizes in one line."""
    kinds = sorted(set(survey.sizes), key=lambda size: size[0] * size[1])
    sizes = " to ".join(
        f"{width}×{height}" for width, height in dict.fromkeys((kinds[0], kinds[-1]))
    )
    several = f" in {len(kinds)} sizes" if len(kinds) > 1 else ""
    everything = len(survey.sample) == survey.train_images
    sampled = "" if everything else f", by {len(survey.sample):,} training images"
    return (
        f"{survey.classes:,} classes, {survey.train_images:,} training and "
        f"{survey.val_images:,} held-out images of {sizes} pixels{several}{sampled}"
    )
