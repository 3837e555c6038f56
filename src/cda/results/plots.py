"""Plots of tables: Figures 1, 5 and 7, and Table 11 over β_l.

Measured numbers are solid and filled, with error bars over seeds; the paper's are hollow, dashed
and lighter. A method has one colour in every figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cda.errors import ConfigError
from cda.results.style import FAINT, WIDTH, Style, add_legend, lighten, network_name, style_of

ACCURACY = "Top-1 accuracy (%)"
MEASURED, REPORTED, NEITHER = "measured", "reported in the paper", "not measured yet"


def settings(text: str) -> dict[str, str]:
    """The values of a cell's setting.

    >>> settings("milestone=0.1;validate_batch_size=1024")
    {'milestone': '0.1', 'validate_batch_size': '1024'}
    """
    return dict(part.partition("=")[::2] for part in text.split(";") if "=" in part)


def bars(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Accuracy by validation model, a bar for each method and number of iterations (Figure 1).

    Each table has a panel of its own.
    """
    tidy = {
        name: _tidy(name, frame, ["method", "recovery_iterations", "validation_model"])
        for name, frame in frames.items()
    }
    most = max(len(frame) for frame in tidy.values())
    figure, axes = _panels(len(tidy), max(WIDTH, 0.38 * most), 3.1, stacked=True)
    handles: dict[str, Artist] = {}
    for (name, frame), axis in zip(tidy.items(), axes, strict=True):
        handles |= _bars(axis, frame)
        axis.set_ylabel(ACCURACY)
        axis.grid(axis="y")
        _title(axis, frame, name if len(tidy) > 1 else "")
    seen = pd.concat(tidy.values())
    add_legend(
        figure,
        [*handles.values(), *_kinds(seen, Patch(fc=FAINT), Patch(fc="none", ec="0.6", ls="--"))],
    )
    return figure


def _bars(axis: Axes, frame: pd.DataFrame) -> dict[str, Artist]:
    """Draw the bars of one table; returns the legend's entries by label."""
    models = list(dict.fromkeys(frame["validation_model"]))
    pairs = list(dict.fromkeys(zip(frame["method"], frame["recovery_iterations"], strict=True)))
    slot = 0.84 / max(1, len(pairs))
    handles: dict[str, Artist] = {}
    for index, (method, iterations) in enumerate(pairs):
        own = frame[(frame["method"] == method) & (frame["recovery_iterations"] == iterations)]
        fewer = any(
            other == method and _number(more) > _number(iterations) for other, more in pairs
        )
        colour, label = style_of(method).colour, _budgeted(method, iterations)
        body: Any = lighten(colour, 0.5) if fewer else colour
        hollow: dict[str, Any] = {
            "fc": "none",
            "ec": lighten(colour, 0.35),
            "ls": "--",
            "lw": 1.0,
            "hatch": "//" if fewer else None,
        }
        for cell in own.itertuples():
            x = models.index(cell.validation_model) + (index - (len(pairs) - 1) / 2) * slot
            _bar(axis, x, slot, cell, label, body, hollow)
        if own["measured"].notna().any():
            handles[label] = Patch(fc=body, label=label)
        elif own["reported"].notna().any():
            handles[label] = Patch(**hollow, label=label)
    axis.set_xticks(range(len(models)), [network_name(model) for model in models])
    axis.tick_params(axis="x", length=0)
    axis.set_xlim(-0.5, max(0, len(models) - 1) + 0.5)
    axis.margins(y=0.1)
    if not frame[["measured", "reported"]].notna().any(axis=None):
        axis.set_ylim(0, 100)
    return handles


def _bar(
    axis: Axes, x: float, slot: float, cell: Any, label: str, body: Any, hollow: Mapping[str, Any]
) -> None:
    """Draw a hollow bar of the reported number and, in it, a filled one of the measured number.

    The number on top is the measured one, if there is one.
    """
    if pd.notna(cell.reported):
        alone = {"hatch": None} if pd.notna(cell.measured) else {}
        axis.bar(x, cell.reported, slot * 0.9, label=f"{label} {REPORTED}", **{**hollow, **alone})
    if pd.notna(cell.measured):
        axis.bar(x, cell.measured, slot * 0.66, fc=body, label=f"{label} {MEASURED}")
    if pd.notna(cell.measured_std):
        axis.errorbar(
            x, cell.measured, cell.measured_std, fmt="none", ecolor="0.2", elinewidth=1, capsize=2
        )
    known = pd.notna(cell.measured)
    value = cell.measured if known else cell.reported
    if pd.notna(value):
        spread = cell.measured_std if known and pd.notna(cell.measured_std) else 0.0
        top = float(np.nanmax([value + spread, cell.reported]))
        text: dict[str, Any] = {"ha": "center", "va": "bottom"}
        text |= {"color": "0.15"} if known else {"color": FAINT, "style": "italic"}
        place: dict[str, Any] = {"xy": (x, top), "xytext": (0, 1.5), "textcoords": "offset points"}
        axis.annotate(f"{value:.1f}", **place, **text)


def _number(iterations: Any) -> int:
    return int(iterations or 0)


def _budgeted(method: str, iterations: Any) -> str:
    """A method with its recovery iterations, as the paper writes them: CDA (4K)."""
    count = _number(iterations)
    budget = f"{count // 1000}K" if count and count % 1000 == 0 else f"{count:,}"
    return f"{style_of(method).label} ({budget})" if count else style_of(method).label


def lines(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Accuracy over the milestone, a line a scheduler; a panel a table (Figure 5)."""
    return _curves(
        frames, "milestone", "Milestone (share of the recovery iterations)", 3.0, list(frames)
    )


def continual(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Accuracy over the classes seen so far, a line a method (Figure 7).

    Each table has a panel, whose title is its number of steps.
    """
    steps = [
        frame.loc[frame["role"] != "control", "setting"].nunique() for frame in frames.values()
    ]
    titles = [
        f"{count} steps" if count else name for count, name in zip(steps, frames, strict=True)
    ]
    return _curves(frames, "classes", "Number of classes", 2.8, titles)


def bounds(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Accuracy over β_l, a line a method (Table 11).

    Each table has a panel, and so has each setting of its controls that vary β_l too.
    """
    panels: dict[str, pd.DataFrame] = {}
    titles = []
    for name, frame in frames.items():
        control = frame["role"] == "control"
        panels[name] = frame[~control]
        titles.append(name)
        for setting, own in frame[control & frame["varied"].ne("")].groupby("common", sort=False):
            apart = set(str(setting).split(";")) - set(";".join(panels[name]["common"]).split(";"))
            panels[f"{name}, {setting}"] = own.assign(role="ours")
            titles.append(";".join(sorted(apart)).removeprefix("post-train-"))
    return _curves(panels, "beta_l", r"Lower bound $\beta_l$ of the crops' area ratio", 2.8, titles)


def _curves(
    frames: Mapping[str, pd.DataFrame], key: str, label: str, height: float, titles: Sequence[str]
) -> Figure:
    """Accuracy over the value of `key` in the cells' settings, panels side by side."""
    tidy = {
        name: _over(name, _tidy(name, frame, ["method", "setting"]), key)
        for name, frame in frames.items()
    }
    figure, axes = _panels(len(tidy), WIDTH, height)
    handles: dict[str, Artist] = {}
    for frame, axis, title in zip(tidy.values(), axes, titles, strict=True):
        for method in dict.fromkeys(frame["method"]):
            handles |= _curve(
                axis, frame[frame["method"] == method].sort_values("x"), style_of(method)
            )
        ticks = sorted(set(frame["x"]))
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        if len(ticks) > 1:
            # matplotlib's own margins, for panels without a value too
            room = (ticks[-1] - ticks[0]) / 22
            axis.set_xlim(ticks[0] - room, ticks[-1] + room)
        axis.set_xlabel(label)
        axis.grid()
        _title(axis, frame, title if len(tidy) > 1 else "")
    axes[0].set_ylabel(ACCURACY)
    kinds = (
        Line2D([], [], color=FAINT, marker="o"),
        Line2D([], [], color="0.6", marker="o", mfc="white", ls="--"),
    )
    add_legend(figure, [*handles.values(), *_kinds(pd.concat(tidy.values()), *kinds)])
    return figure


def _over(name: str, frame: pd.DataFrame, key: str) -> pd.DataFrame:
    """The cells with the number of `key` in their setting as column x.

    Raises ConfigError for a cell whose setting holds no such number.
    """
    found = []
    for setting in frame["setting"]:
        try:
            found.append(float(settings(setting)[key]))
        except (KeyError, ValueError):
            raise ConfigError(
                f"table {name}: a cell's setting {setting!r} gives no number as {key}=…; set it"
            ) from None
    return frame.assign(x=np.array(found, dtype=float))


def _curve(axis: Axes, frame: pd.DataFrame, drawn: Style) -> dict[str, Artist]:
    """Draw one method's lines of reported and of measured numbers.

    Returns the legend's entries by label.
    """
    reported, measured = frame[frame["reported"].notna()], frame[frame["measured"].notna()]
    handles: dict[str, Artist] = {}
    if len(reported):
        style: dict[str, Any] = {"color": lighten(drawn.colour), "marker": drawn.marker}
        style |= {"ls": "--", "mfc": "white", "lw": 1.1}
        axis.plot(reported["x"], reported["reported"], label=f"{drawn.label} {REPORTED}", **style)
        handles[drawn.label] = Line2D([], [], label=drawn.label, **style)
    if len(measured):
        style = {"color": drawn.colour, "marker": drawn.marker, "ls": "-"}
        axis.plot(
            measured["x"],
            measured["measured"],
            label=f"{drawn.label} {MEASURED}",
            zorder=3,
            **style,
        )
        handles[drawn.label] = Line2D([], [], label=drawn.label, **style)
        several = measured[measured["measured_std"].notna()]
        spread: dict[str, Any] = {"fmt": "none", "ecolor": drawn.colour, "elinewidth": 1}
        spread |= {"capsize": 2, "zorder": 3}
        if len(several):
            axis.errorbar(several["x"], several["measured"], several["measured_std"], **spread)
    return handles


def _tidy(name: str, frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The cells of a table without controls, with numeric columns.

    Raises ConfigError if two cells have equal `keys`.
    """
    cells = frame[frame["role"] != "control"]
    numbers = {
        column: pd.to_numeric(cells[column], errors="coerce")
        for column in ("reported", "measured", "measured_std")
    }
    for twice in cells.loc[cells.duplicated(keys), keys].itertuples(index=False, name=None):
        raise ConfigError(
            f"table {name}: two cells are {', '.join(map(str, twice))}; a figure cannot "
            "distinguish them"
        )
    return cells.assign(**numbers)


def _panels(
    count: int, width: float, height: float, stacked: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, each `height` inches high, that share the axis of accuracies."""
    shape = (count, 1) if stacked else (1, count)
    figure = Figure(figsize=(width, height * shape[0]), layout="constrained")
    return figure, list(figure.subplots(*shape, squeeze=False, sharey=True).flat)


def _title(axis: Axes, frame: pd.DataFrame, title: str) -> None:
    axis.set_title(title, loc="left")
    if not frame["measured"].notna().any():
        axis.set_title(NEITHER, loc="right", fontsize=8, color=FAINT, style="italic")


def _kinds(frame: pd.DataFrame, solid: Artist, hollow: Artist) -> list[Artist]:
    """The legend's entries for measured and for reported numbers, if there are any."""
    spread = " ± s.d." if frame["measured_std"].notna().any() else ""
    solid.set_label(MEASURED + spread)
    hollow.set_label(REPORTED)
    return [
        kind
        for kind, column in ((solid, "measured"), (hollow, "reported"))
        if frame[column].notna().any()
    ]
