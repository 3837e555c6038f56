"""Declared tables and figures, and from a declared group to its points and its controls.

A control is what the field compares a distilled set with: random real images of the same IPC under
the same relabelling and post-training, and either set with hard labels.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cda.config.experiment import Experiment, Figure, Group, Layout2D
from cda.config.load import scale_names
from cda.config.settings import Dataset
from cda.config.types import parse
from cda.config.yaml_source import places, read_layer, read_plain
from cda.errors import ConfigError
from cda.experiments.resolver import Point
from cda.text import nearest


def read_experiments(
    config: Path, *, scale: str, datasets: Iterable[Dataset]
) -> dict[str, Experiment | Figure]:
    """The tables and figures of `config/experiments/` that exist at `scale`, by name.

    After them stand the comparison table, and its picture, of those `datasets` that set
    `compare_ipc`.
    Raises ConfigError for a file that does not parse, whose name a shell could misread or a
    comparison table has, or of an unknown scale.
    """
    found: dict[str, Experiment | Figure] = {}
    for path in sorted((config / "experiments").glob("*.yaml"), key=_natural):
        if not re.fullmatch(r"\w[\w-]*", path.stem):  # the workflow's rules pass it to a shell
            raise ConfigError(
                f"{path}: a table or figure is named by letters, digits, _ and -; rename the file"
            )
        values, written = read_plain(path), places(read_layer(path))
        kind: Any = Figure if isinstance(values, dict) and "kind" in values else Experiment
        experiment = parse(kind, values, str(path), written)
        _require_scales(config, experiment.scales, written.get("scales", str(path)))
        if scale in experiment.scales:
            groups = [one for one in experiment.groups if scale in (one.scales or (scale,))]
            found[path.stem] = experiment.model_copy(update={"groups": tuple(groups)})
    for data in datasets:
        if not data.compare_ipc:
            continue
        path = config / "experiments" / f"{data.name}.yaml"
        if path.is_file():
            raise ConfigError(
                f"{path}: compare_ipc of {config / 'datasets' / path.name} makes a table of this "
                "name; rename this file, or drop compare_ipc there"
            )
        found[data.name] = table = comparison_table(data)
        found.setdefault(f"{data.name}-grid", comparison_grid(table, data))
    return found


def _require_scales(config: Path, scales: Iterable[str], where: str) -> None:
    """Raise ConfigError, which names the place `where`, for a scale that does not exist."""
    known = scale_names(config)
    for scale in scales:
        if scale not in known:
            raise ConfigError(
                f"{where}: scales: there is no scale {scale!r}{nearest(scale, known)}; use some of "
                f"{', '.join(known)}"
            )


def declared_scales(config: Path, name: str) -> list[str]:
    """The scales of the table or figure `name`, whichever they are; none without such a file."""
    path = config / "experiments" / f"{name}.yaml"
    if not re.fullmatch(r"\w[\w-]*", name) or not path.is_file():
        return []
    return list(read_plain(path)["scales"])


def _natural(path: Path) -> tuple[str, int]:
    """Sort key that puts table2 before table10."""
    stem = path.stem.rstrip("0123456789")
    return stem, int(path.stem[len(stem) :] or 0)


def points(group: Group) -> Iterator[Point]:
    """Every combination of a group's lists, in the order in which its cells stand."""
    values = next(iter(group.vary.values()), (None,))
    networks = (group.recovery_models or ("",), group.validation_models or ("",))
    axes = (values, group.ipc or (None,), *networks, group.methods)
    for value, ipc, recovery_model, validation_model, method in itertools.product(*axes):
        yield Point(method, recovery_model, ipc, validation_model, value)


def controls_of(group: Group) -> Iterator[Group]:
    """A group with random real images in place of its own, and both sets with hard labels."""
    if group.control or group.quoted or group.stage == "score":
        return
    recovered = any(key.startswith("recover.") for key in group.vary)
    setting = _without(group.setting, "min_crop", "max_crop", "milestone", "beta_l")
    vary = {} if recovered else group.vary
    update = {"methods": ("random",), "control": True, "setting": setting, "vary": vary}
    yield (real := group.model_copy(update=update))
    distilled = tuple(method for method in group.methods if method not in ("random", "real"))
    if group.stage == "validate" and distilled:
        for images in (group.model_copy(update={"methods": distilled}), real):
            parts = (_without(images.setting, "relabel"), "labels=hard")
            hard = {
                "set": group.set | {"relabel.labels": "hard"},
                "setting": ";".join(filter(None, parts)),
                "control": True,
            }
            yield images.model_copy(update=hard)


def _without(setting: str, *names: str) -> str:
    """A setting without its parts of these names."""
    return ";".join(part for part in setting.split(";") if part.partition("=")[0] not in names)


def comparison_table(data: Dataset) -> Experiment:
    """The table of a user's own data set, whose methods stand side by side."""
    group = Group(
        dataset=data.name,
        methods=data.compare_methods,
        recovery_models=("resnet18",),
        ipc=data.compare_ipc,
        validation_models=("resnet18",),
    )
    layout = Layout2D(rows=("ipc",), columns=("method",))
    caption = "Top-1 accuracy (%) of models trained on each method's images alone."
    title = f"Comparison on {data.name}"
    return Experiment(
        title=title,
        caption=caption,
        scales=("paper",),
        layout=layout,
        groups=(group,),
        controls=True,
    )


def comparison_grid(table: Experiment, data: Dataset) -> Figure:
    """The picture beside such a table: each method's images of the first classes."""
    return Figure(
        title=f"Images of {data.name}",
        caption="A row a shard; real images are of the same classes.",
        kind="grid",
        scales=table.scales,
        groups=table.groups,
    )
