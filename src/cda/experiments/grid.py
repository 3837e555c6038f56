"""From a declared group to its points, its controls, and the table that one's own data set gets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from cda.config.experiment import Experiment, Group, Layout2D
from cda.config.settings import Dataset
from cda.experiments.resolver import Point


def points(group: Group) -> Iterator[Point]:
    """Every combination of a group's lists, in the order in which its cells stand."""
    values = next(iter(group.vary.values()), (None,))
    networks = (group.recovery_models or ("",), group.validation_models or ("",))
    axes = (values, group.ipc or (None,), *networks, group.methods)
    for value, ipc, recovery_model, validation_model, method in itertools.product(*axes):
        yield Point(method, recovery_model, ipc, validation_model, value)


def controls_of(group: Group) -> Iterator[Group]:
    """Random real images under a group's relabelling and post-training, and its own images with
    hard labels.
    """
    if group.control or group.quoted or group.stage == "score":
        return
    recovered = any(key.startswith("recover.") for key in group.vary)
    kept = _without(group.setting, "min_crop", "max_crop", "milestone", "beta_l")
    yield group.model_copy(
        update={
            "methods": ("random",),
            "control": True,
            "setting": kept,
            "vary": {} if recovered else group.vary,
        }
    )
    distilled = tuple(method for method in group.methods if method not in ("random", "real"))
    if group.stage == "validate" and distilled:
        setting = ";".join(
            part for part in (_without(group.setting, "relabel"), "labels=hard") if part
        )
        hard = group.set | {"relabel.labels": "hard"}
        yield group.model_copy(
            update={"methods": distilled, "set": hard, "setting": setting, "control": True}
        )


def _without(setting: str, *names: str) -> str:
    """A setting without what plays no part."""
    return ";".join(part for part in setting.split(";") if part.partition("=")[0] not in names)


def comparison_table(data: Dataset) -> Experiment:
    """The table of one's own data set: CDA, SRe²L and random real images."""
    group = Group(
        dataset=data.name,
        methods=("cda", "sre2l", "random"),
        recovery_models=("resnet18",),
        ipc=data.compare_ipc,
        validation_models=("resnet18",),
    )
    layout = Layout2D(rows=("ipc",), columns=("method",))
    caption = (
        "Top-1 accuracy (%) of models trained on distilled images, and on as many random real ones."
    )
    title = f"Comparison on {data.name}"
    return Experiment(
        title=title,
        caption=caption,
        scales=("paper",),
        layout=layout,
        groups=(group,),
        controls=True,
    )
