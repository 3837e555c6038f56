"""Plots: of tables (Figures 1, 5, 7, and Table 11 as one), and of the method alone (Figures 2, 4).

What was measured is solid and filled, with error bars over seeds; what the paper reported is
hollow, dashed and lighter. A method has one colour in every figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from cda.errors import ConfigError
from cda.method.curriculum import min_crop
from cda.results.style import FAINT, LETTER, STYLES, WIDTH, Style, lighten, network_name, style_of

ACCURACY = "Top-1 accuracy (%)"
MEASURED, REPORTED, NEITHER = "measured", "reported in the paper", "not measured yet"
# Area ratios of Figure 2, hard to easy: β_l = 0.08 with rising β_u, then β_u = 1 with rising β_l.
CROPS = ((0.08, 0.2), (0.08, 0.5), (0.08, 1.0), (0.4, 1.0), (0.8, 1.0))
ITERATIONS, MILESTONE, LOW, HIGH = (
    1000,
    0.7,
    0.08,
    1.0,
)  # Figure 4; β_l and β_u are the paper's defaults


def settings(text: str) -> dict[str, str]:
    """The values of a cell's setting.

    >>> settings("milestone=0.1;validate_batch_size=1024")
    {'milestone': '0.1', 'validate_batch_size': '1024'}
    """
    return dict(part.partition("=")[::2] for part in text.split(";") if "=" in part)


def bars(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Accuracy by validation model, a bar a method and its recovery iterations.

    A panel a table (Figure 1).
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
    _legend(
        figure,
        [*handles.values(), *_kinds(seen, Patch(fc=FAINT), Patch(fc="none", ec="0.6", ls="--"))],
    )
    return figure


def _bars(axis: Axes, frame: pd.DataFrame) -> dict[str, Artist]:
    """The bars of one table; returns what its legend shows, by label."""
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
    """What was reported as a hollow bar, what was measured as a narrower filled one in it, and the
    number on top.
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
        axis.annotate(
            f"{value:.1f}", (x, top), (0, 1.5), textcoords="offset points", ha="center", va="bottom",
            color="0.15" if known else FAINT, style="normal" if known else "italic",
        )  # fmt: skip


def _number(iterations: Any) -> int:
    return int(iterations or 0)


def _budgeted(method: str, iterations: Any) -> str:
    """A method with its recovery iterations, as the paper writes them: CDA (4K)."""
    count = _number(iterations)
    shown = f"{count // 1000}K" if count and count % 1000 == 0 else f"{count:,}"
    return f"{style_of(method).label} ({shown})" if count else style_of(method).label


def lines(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Accuracy over the milestone, a line a scheduler; a panel a table (Figure 5)."""
    return _curves(
        frames, "milestone", "Milestone (share of the recovery iterations)", 3.0, list(frames)
    )


def continual(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Accuracy over the classes seen so far, a line a method.

    A panel a table, by its number of steps (Figure 7).
    """
    steps = [
        frame.loc[frame["role"] != "control", "setting"].nunique() for frame in frames.values()
    ]
    titles = [
        f"{count} steps" if count else name for count, name in zip(steps, frames, strict=True)
    ]
    return _curves(frames, "classes", "Number of classes", 2.8, titles)


def bounds(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Accuracy over β_l, a line a method.

    A panel a table, and one a setting of its controls that vary β_l too.
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
            room = (
                ticks[-1] - ticks[0]
            ) / 22  # matplotlib's own margins, for panels without a value too
            axis.set_xlim(ticks[0] - room, ticks[-1] + room)
        axis.set_xlabel(label)
        axis.grid()
        _title(axis, frame, title if len(tidy) > 1 else "")
    axes[0].set_ylabel(ACCURACY)
    kinds = (
        Line2D([], [], color=FAINT, marker="o"),
        Line2D([], [], color="0.6", marker="o", mfc="white", ls="--"),
    )
    _legend(figure, [*handles.values(), *_kinds(pd.concat(tidy.values()), *kinds)])
    return figure


def _over(name: str, frame: pd.DataFrame, key: str) -> pd.DataFrame:
    """The cells with the number that `key` has in their setting as column x.

    Raises ConfigError if one has none.
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
    """One method's line of what was reported and line of what was measured.

    Returns what the legend shows.
    """
    theirs, ours = frame[frame["reported"].notna()], frame[frame["measured"].notna()]
    handles: dict[str, Artist] = {}
    if len(theirs):
        style: dict[str, Any] = {
            "color": lighten(drawn.colour),
            "marker": drawn.marker,
            "ls": "--",
            "mfc": "white",
            "lw": 1.1,
        }
        axis.plot(theirs["x"], theirs["reported"], label=f"{drawn.label} {REPORTED}", **style)
        handles[drawn.label] = Line2D([], [], label=drawn.label, **style)
    if len(ours):
        style = {"color": drawn.colour, "marker": drawn.marker, "ls": "-"}
        axis.plot(ours["x"], ours["measured"], label=f"{drawn.label} {MEASURED}", zorder=3, **style)
        handles[drawn.label] = Line2D([], [], label=drawn.label, **style)
        several = ours[ours["measured_std"].notna()]
        spread: dict[str, Any] = {
            "fmt": "none",
            "ecolor": drawn.colour,
            "elinewidth": 1,
            "capsize": 2,
            "zorder": 3,
        }
        if len(several):
            axis.errorbar(several["x"], several["measured"], several["measured_std"], **spread)
    return handles


def crops() -> Figure:
    """Where RandomResizedCrop's boxes lie under bounds from hard to easy.

    Centres, 30 and 10 boxes (Figure 2).
    """
    from cda.method.augment import crop_boxes
    from cda.rng import generator

    size, many = 224, 2000
    uniform = generator("figure", "crops").random((many, 22))  # the same draws for all bounds
    figure = Figure(figsize=(WIDTH, 4.3), layout="constrained")
    axes = figure.subplots(3, len(CROPS), squeeze=False)
    for column, (low, high) in zip(axes.T, CROPS, strict=True):
        boxes = crop_boxes(uniform, size, low, high)
        centres = boxes[:, 1] + boxes[:, 3] / 2, boxes[:, 0] + boxes[:, 2] / 2
        column[0].scatter(
            *centres, s=2, lw=0, alpha=0.35, color=STYLES["cda"].colour, rasterized=True
        )
        for axis, count in zip(column[1:], (30, 10), strict=True):
            for top, left, height, width in boxes[:count]:
                axis.add_patch(
                    Rectangle(
                        (left, top),
                        width,
                        height,
                        fill=False,
                        lw=0.7,
                        ec=STYLES["sre2l"].colour,
                        alpha=0.7,
                    )
                )
        for axis in column:
            axis.set(xlim=(0, size), ylim=(size, 0), xticks=[], yticks=[], aspect="equal")
            axis.spines[:].set_visible(True)
            axis.spines[:].set_color("0.6")
        column[0].set_title(f"{low:g} to {high:g}", fontsize=8)
    for axis, label in zip(axes[:, 0], (f"{many:,} centres", "30 boxes", "10 boxes"), strict=True):
        axis.set_ylabel(label, fontsize=8)
    figure.supxlabel(
        "Area ratio of the crop, lower to upper bound: from hard (left) to easy (right)", fontsize=9
    )
    return figure


def schedulers() -> Figure:
    """The minimum crop ratio over the recovery iterations under each scheduler, with its milestone
    (Figure 4).
    """
    figure = Figure(figsize=(WIDTH * 0.75, 2.9), layout="constrained")
    axis = figure.subplots()
    for scheduler in ("step", "linear", "cosine"):
        told = [
            min_crop(s, ITERATIONS, scheduler=scheduler, milestone=MILESTONE, low=LOW, high=HIGH)
            for s in range(ITERATIONS)
        ]
        drawn = style_of(f"cl-{scheduler}")
        axis.plot(range(ITERATIONS), told, color=drawn.colour, label=drawn.label)
    axis.axvline(MILESTONE * ITERATIONS, color=FAINT, ls=":", lw=1)
    place = (MILESTONE * ITERATIONS, 0.53)
    axis.annotate(
        f"milestone = {MILESTONE:g}", place, (4, 0), textcoords="offset points", color="0.3"
    )
    axis.set(
        xlim=(0, ITERATIONS),
        ylim=(0, 1.05),
        xlabel="Recovery iteration",
        ylabel="Minimum crop ratio",
    )
    axis.set_yticks(
        [LOW, 0.25, 0.5, 0.75, HIGH],
        [rf"$\beta_l$ = {LOW:g}", "0.25", "0.5", "0.75", rf"$\beta_u$ = {HIGH:g}"],
    )
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.grid()
    _legend(figure, axis.lines[:3])
    return figure


def _tidy(name: str, frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The cells of a table without controls, with their numbers as numbers.

    Raises ConfigError if `keys` name two.
    """
    kept = frame[frame["role"] != "control"]
    numbers = {
        column: pd.to_numeric(kept[column], errors="coerce")
        for column in ("reported", "measured", "measured_std")
    }
    for twice in kept.loc[kept.duplicated(keys), keys].itertuples(index=False, name=None):
        raise ConfigError(
            f"table {name}: two cells are {', '.join(map(str, twice))}; a figure cannot tell "
            "them apart"
        )
    return kept.assign(**numbers)


def _panels(
    count: int, width: float, height: float, stacked: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels of `height` inches below or beside each other, with the same
    accuracies.
    """
    shape = (count, 1) if stacked else (1, count)
    figure = Figure(figsize=(width, height * shape[0]), layout="constrained")
    return figure, list(figure.subplots(*shape, squeeze=False, sharey=True).flat)


def _title(axis: Axes, frame: pd.DataFrame, title: str) -> None:
    axis.set_title(title, loc="left")
    if not frame["measured"].notna().any():
        axis.set_title(NEITHER, loc="right", fontsize=8, color=FAINT, style="italic")


def _kinds(frame: pd.DataFrame, solid: Artist, hollow: Artist) -> list[Artist]:
    """The legend's entries that tell measured from reported, of those that are there."""
    spread = " ± s.d." if frame["measured_std"].notna().any() else ""
    solid.set_label(MEASURED + spread)
    hollow.set_label(REPORTED)
    return [
        kind
        for kind, column in ((solid, "measured"), (hollow, "reported"))
        if frame[column].notna().any()
    ]


def _legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Below all panels, in two rows if one would be wider than the figure."""
    if handles:
        wide = (
            sum(LETTER * len(str(handle.get_label())) + 0.4 for handle in handles)
            > figure.get_figwidth()
        )
        figure.legend(
            handles=handles, loc="outside lower center", ncols=math.ceil(len(handles) / (1 + wide))
        )
