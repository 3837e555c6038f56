"""Sizes of label stores on disk, beside a table's cells and for every store of a scale.

Nothing is run: a size is images × epochs of labels × bytes a row. It counts the stored logits and
neither numpy's 128 bytes nor the header file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from cda.config.experiment import Experiment
from cda.config.label_rows import row_parts
from cda.config.recipe import Relabel
from cda.config.types import parse
from cda.config.yaml_source import places, read_layer, read_plain
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.grid import points
from cda.experiments.runs import Run, fp16_bytes, label_bytes, served_epochs
from cda.text import human_bytes

SIZE_COLUMNS = ("label store", "times smaller")  # columns of the Markdown


def of_cell(run: Run | None) -> tuple[int | None, float | None]:
    """Bytes of a validate run's label store, and how many times larger fp16 would be.

    None and None where no soft labels are stored.
    """
    labels = run.upstream.get("labels") if run else None
    if labels is None or labels.recipe.relabel.labels == "hard":
        return None, None
    return label_bytes(labels), round(fp16_bytes(labels) / label_bytes(labels), 2)


def with_sizes(frame: pd.DataFrame) -> pd.DataFrame:
    """A table with SIZE_COLUMNS for its Markdown."""
    store = [human_bytes(size) if pd.notna(size) else "–" for size in frame["label_bytes"]]
    smaller = [f"{ratio:.1f}×" if pd.notna(ratio) else "–" for ratio in frame["label_ratio"]]
    return frame.assign(**dict(zip(SIZE_COLUMNS, (store, smaller), strict=True)))


def sizes(experiments: ExperimentSet, name: str) -> pd.DataFrame:
    """A row for every label store of the scale's tables under every codec.

    The codecs are those that the table in `sizes_of` of table `name` compares.
    """
    codecs = list(_codecs(experiments, str(experiments.tables[name].sizes_of)))
    rows = [
        _row(name, run, setting, codec) for run in _stores(experiments) for setting, codec in codecs
    ]
    return pd.DataFrame(rows)


def _row(name: str, run: Run, setting: str, codec: Relabel) -> dict[str, Any]:
    size = label_bytes(run, codec)
    return {
        "table": name,
        "dataset": run.dataset,
        "ipc": run.ipc,
        "epochs": served_epochs(run),
        "setting": setting,
        "bits": codec.bits,
        "top_k": codec.top_k,
        "reuse": codec.reuse,
        "row_bytes": row_parts(run.data.classes, codec.bits, codec.top_k).bytes,
        "label_bytes": size,
        "label_ratio": round(fp16_bytes(run) / size, 2),
        "status": "computed",
    }


def _codecs(experiments: ExperimentSet, table: str) -> Iterator[tuple[str, Relabel]]:
    """The codecs that a table compares, with the setting that names each.

    The table is read from its file, since it may belong to another scale.
    """
    path = experiments.config / "experiments" / f"{table}.yaml"
    declared = parse(Experiment, read_plain(path), str(path), places(read_layer(path)))
    for group in declared.groups:
        for point in points(group):
            values = {**group.set, **dict.fromkeys(group.vary, point.value)}
            own = {
                key.removeprefix("relabel."): value
                for key, value in values.items()
                if key.startswith("relabel.")
            }
            setting = group.setting.replace("{}", str(point.value))
            yield setting, parse(Relabel, own, f"{path}: {setting}")


def _stores(experiments: ExperimentSet) -> list[Run]:
    """A relabel run with soft labels for each data set, IPC and number of epochs of the scale.

    The settings' `datasets` do not narrow them.
    """
    found: dict[tuple[str, int, int], Run] = {}
    for run in (
        run
        for table in experiments.tables
        for cell in experiments.cells(table)
        for run in cell.runs
    ):
        labels = run.upstream.get("labels")
        if labels is not None and labels.recipe.relabel.labels != "hard":
            found.setdefault((labels.dataset, labels.ipc, served_epochs(labels)), labels)
    order = {name: index for index, name in enumerate(dict.fromkeys(key[0] for key in found))}
    return [found[key] for key in sorted(found, key=lambda key: (order[key[0]], *key[1:]))]


def sections(frame: pd.DataFrame) -> Iterator[tuple[str, list[list[str]]]]:
    """Each data set's name, and its table: codecs down, label stores across."""
    for dataset, part in frame.groupby("dataset", sort=False):
        stores = list(dict.fromkeys(zip(part["ipc"], part["epochs"], strict=True)))
        head = ["codec", "bytes a row", *(f"IPC {ipc}, {epochs} epochs" for ipc, epochs in stores)]
        lines = []
        for (setting, row_bytes), own in part.groupby(["setting", "row_bytes"], sort=False):
            pairs = zip(own["label_bytes"], own["label_ratio"], strict=True)
            texts = [f"{human_bytes(size)} ({ratio:.1f}×)" for size, ratio in pairs]
            lines.append([str(setting), str(row_bytes), *texts])
        yield str(dataset), [head, *lines]
