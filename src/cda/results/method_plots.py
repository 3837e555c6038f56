"""Plots of the method alone: which crops the bounds allow, and how schedulers lower the bound.

They draw no run: Figure 2 samples RandomResizedCrop, and Figure 4 evaluates the curriculum.
"""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cda.method.curriculum import min_crop
from cda.results.style import FAINT, STYLES, WIDTH, add_legend, style_of

# Area ratios of Figure 2, hard to easy: β_l = 0.08 with rising β_u, then β_u = 1 with rising β_l.
CROPS = ((0.08, 0.2), (0.08, 0.5), (0.08, 1.0), (0.4, 1.0), (0.8, 1.0))
# Figure 4; the bounds are the paper's defaults of β_l and β_u.
ITERATIONS, MILESTONE, LOW, HIGH = 1000, 0.7, 0.08, 1.0


def crops() -> Figure:
    """Where RandomResizedCrop's boxes lie under bounds from hard to easy (Figure 2).

    Rows show the boxes' centres, 30 boxes and 10 boxes.
    """
    from cda.method.augment import crop_boxes  # imports torch, which other figures do not need
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
    """The minimum crop ratio over the recovery iterations under each scheduler (Figure 4)."""
    figure = Figure(figsize=(WIDTH * 0.75, 2.9), layout="constrained")
    axis = figure.subplots()
    for scheduler in ("step", "linear", "cosine"):
        bounds = [
            min_crop(s, ITERATIONS, scheduler=scheduler, milestone=MILESTONE, low=LOW, high=HIGH)
            for s in range(ITERATIONS)
        ]
        drawn = style_of(f"cl-{scheduler}")
        axis.plot(range(ITERATIONS), bounds, color=drawn.colour, label=drawn.label)
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
    add_legend(figure, axis.lines[:3])
    return figure
