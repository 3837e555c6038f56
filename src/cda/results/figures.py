"""The figures of `config/experiments/`: a PNG each and, of plots, an SVG beside it.

`plots` draws tables, `method_plots` the method, and `pictures` distilled images. The same inputs
give the same bytes: files hold no dates and no random names, and a user's own matplotlib settings
are ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

from cda.errors import ConfigError
from cda.experiments.experiment_set import ExperimentSet
from cda.files import atomic_write
from cda.results import method_plots, pictures, plots
from cda.results.tables import table

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

DPI = 200
OF_TABLES = {
    "bars": plots.bars,
    "lines": plots.lines,
    "continual": plots.continual,
    "bounds": plots.bounds,
}
OF_METHOD = {"crops": method_plots.crops, "schedulers": method_plots.schedulers}
OF_IMAGES = {"grid": pictures.grid, "progress": pictures.progress}
STYLE: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 8,
    "figure.titlesize": 10,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.edgecolor": "0.35",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.title_fontsize": 8,
    "legend.handlelength": 2.4,
    "legend.columnspacing": 1.4,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "svg.hashsalt": "cda",
}


def draw(experiments: ExperimentSet, name: str, out: Path) -> None:
    """Draw the declared figure `name` at `out` (PNG) and, if it is a plot, beside it as SVG.

    Raises ConfigError for an unknown figure, or one whose tables or classes do not fit its kind,
    and ArtifactError for missing images, in whose place `cells=present` draws empty panels.
    """
    if name not in experiments.figures:
        raise ConfigError(experiments.absent(name, "figure", experiments.figures))
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        figure = _draw_kind(experiments, name)
        save_figure(figure, out, "png")
        if experiments.figures[name].plot:
            save_figure(figure, out.with_suffix(".svg"), "svg")


def _draw_kind(experiments: ExperimentSet, name: str) -> Figure:
    declared = experiments.figures[name]
    if declared.kind in OF_METHOD:
        figure = OF_METHOD[declared.kind]()
        figure.suptitle(declared.title)
        return figure  # without the scale's note: it draws no run
    if declared.kind in OF_TABLES:
        if not declared.tables:
            raise ConfigError(
                f"figure {name}: tables is missing; name the tables whose cells it draws"
            )
        for one in declared.tables:
            if one in experiments.tables and experiments.tables[one].sizes_of:
                raise ConfigError(
                    f"figure {name}: table {one} holds sizes and no accuracies; name another "
                    "under tables"
                )
        figure = OF_TABLES[declared.kind]({one: table(experiments, one) for one in declared.tables})
    else:
        figure = OF_IMAGES[declared.kind](experiments, name)
    figure.suptitle(declared.title)
    if experiments.scaled_down:
        _note(figure, experiments.scaled_down + experiments.replaced_ipc(*declared.tables))
    return figure


def _note(figure: Figure, text: str) -> None:
    """Small print below the panels: as the legend's title, or alone where there is no legend."""
    for legend in figure.legends:
        legend.set_title(text)
        legend.get_title().set_color("0.35")
        return
    figure.supxlabel(text, fontsize=8, color="0.35")


def save_figure(figure: Figure, out: Path, kind: str) -> None:
    """Write a figure as `kind` (png or svg), with the same bytes for the same figure."""
    without = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}[kind]
    with atomic_write(out) as temporary:
        figure.savefig(temporary, format=kind, dpi=DPI, metadata=without)
