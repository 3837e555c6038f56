"""Figures: what is drawn from which numbers and images, that it can be read, and that it is drawn
to the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from cda.data.shards import read_shard, shard_name, write_shard
from cda.errors import ArtifactError, CdaError, ConfigError
from cda.results import figures, method_plots, plots, style
from cda.results.tables import table

OUT = Path("results/drawn.png")
PICTURES = {
    "dataset": "digits",
    "methods": ["sre2l", "cda"],
    "recovery_models": ["resnet18"],
    "ipc": [2],
}
MILESTONES = {
    "methods": ["cl-step", "cl-cosine"],
    "ipc": [1],
    "vary": {"recover.milestone": [0.5, 1.0]},
}
KINDS = {
    "bars": {"tables": ["tiny"]},
    "lines": {"tables": ["milestones"]},
    "continual": {"tables": ["five", "two"]},
    "bounds": {"tables": ["bound"]},
    "crops": {},
    "schedulers": {},
    "grid": {"groups": [PICTURES]},
    "progress": {"groups": [PICTURES]},
}


@pytest.fixture
def drawn(tree: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tree with a table and a figure for each kind of plot, whose `figure()` draws and keeps the
    Figure.
    """
    methods = {f"cl-{name}": {"recover": {"scheduler": name}} for name in ("step", "cosine")}
    sourced = yaml.safe_dump({"methods": methods}).splitlines()[1:]
    lines = [f"{line}  # test" if line[-1] != ":" else line for line in sourced]
    tree.edit("recipes/digits.yaml", "methods:\n", "\n".join(["methods:", *lines, ""]))
    tree.experiment(
        "tiny",
        {"ipc": [1], "methods": ["sre2l", "cda"], "validation_models": ["resnet18", "convnet3"]},
        reported=None,
    )
    tree.experiment(
        "milestones", MILESTONES | {"setting": "milestone={};validate_batch_size=6"}, reported=None
    )
    monkeypatch.setattr(
        tree, "declare", lambda name="drawn", **top: declare(tree, name, **top), raising=False
    )
    monkeypatch.setattr(
        tree, "figure", lambda **overrides: figure(tree, monkeypatch, **overrides), raising=False
    )
    return tree


def declare(tree: Any, name: str, **top: Any) -> None:
    declared = {"title": "What it is", "scales": ["paper"], **KINDS[top["kind"]], **top}
    tree.write(f"experiments/{name}.yaml", yaml.safe_dump(declared))


def figure(tree: Any, monkeypatch: pytest.MonkeyPatch, **overrides: Any) -> Figure:
    """What `draw` would save of the declared figure."""
    drawn: list[Figure] = []
    with monkeypatch.context() as patched:
        patched.setattr(figures, "save_figure", lambda figure, *_: drawn.append(figure))
        figures.draw(tree.experiments(**overrides), "drawn", OUT)
    return drawn[0]


def frame(*cells: dict[str, Any]) -> pd.DataFrame:
    """Cells as a tidy table has them; what a cell does not say is the usual."""
    usual = {
        "method": "cda",
        "recovery_iterations": 1000,
        "validation_model": "resnet18",
        "setting": "",
        "role": "paper",
    }
    usual |= {
        "reported": "",
        "measured": None,
        "measured_std": None,
        "seeds": 0,
        "varied": "",
        "common": "",
    }
    return pd.DataFrame([usual | cell for cell in cells], columns=list(usual))


CONTINUAL = frame(
    {"method": "sre2l", "setting": "classes=40", "reported": "45.6"},
    {
        "method": "cda",
        "setting": "classes=40",
        "reported": "51.93",
        "measured": 50.0,
        "measured_std": 0.4,
        "seeds": 3,
    },
    {
        "method": "sre2l",
        "setting": "classes=120",
        "reported": "49.27",
        "measured": 48.0,
        "seeds": 1,
    },
    {
        "method": "cda",
        "setting": "classes=120",
        "reported": "53.02",
        "measured": 54.0,
        "measured_std": 0.2,
        "seeds": 3,
    },
    {
        "method": "cda",
        "setting": "classes=120;masked",
        "measured": 90.0,
        "seeds": 1,
        "role": "control",
    },
)
BARS = frame(
    {
        "method": "sre2l",
        "recovery_iterations": 4000,
        "reported": "46.8",
        "measured": 45.0,
        "seeds": 1,
    },
    {"reported": "52.88"},
    {
        "recovery_iterations": 4000,
        "reported": "53.45",
        "measured": 55.0,
        "measured_std": 0.5,
        "seeds": 3,
    },
    {"validation_model": "resnet50", "measured": 60.0, "seeds": 1},
    {
        "validation_model": "resnet50",
        "measured": 99.0,
        "seeds": 1,
        "role": "control",
        "setting": "labels=hard",
    },
)


SWEPT = [
    {"setting": f"beta_l={low};epochs=8", "varied": f"β_l = {low}", "common": "epochs=8"}
    for low in (0.4, 1.0)
]
OTHER = {"role": "control", "common": "epochs=8;post-train-crop"}
BOUNDS = frame(
    SWEPT[0] | {"reported": "64.4", "measured": 60.0, "seeds": 1},
    SWEPT[1] | {"reported": "54.43"},
    SWEPT[0] | OTHER | {"measured": 66.0, "measured_std": 0.5, "seeds": 3},
    SWEPT[1] | OTHER | {"measured": 50.0, "seeds": 1},
    {
        "method": "random",
        "setting": "epochs=8",
        "common": "epochs=8",
        "measured": 99.0,
        "seeds": 1,
        "role": "control",
    },
)


def shards(
    tree: Any, methods: tuple[str, ...] = ("sre2l", "cda"), names: list[str] | None = None
) -> None:
    """Leave the images of the declared figure's runs.

    A flat colour for each run, step or shard, and class.
    """
    experiments = tree.experiments()
    for number, (key, run) in enumerate(experiments.pictured("drawn")):
        part = Path(experiments.layout.part(run, 0))
        for file, place in (
            ("ipc-000", 0),
            ("ipc-001", 1),
            ("snapshots/step-00003", 2),
            ("snapshots/step-00006", 3),
        ):
            if key["method"] in methods:
                images = np.stack([flat(number, place, label) for label in range(10)])
                write_shard(
                    part / f"{file}.tar",
                    images,
                    names or list("0123456789"),
                    place % 2,
                    run.id,
                    "digits",
                )


def flat(number: int, place: int, label: int) -> np.ndarray:
    return np.full((8, 8, 3), (100 * number + 10, 50 * place + 20, 20 * label + 5), np.uint8)


def texts(figure: Figure) -> list[str]:
    return [
        text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_visible()
    ]


def visible(figure: Figure) -> Iterator[tuple[Text, Any]]:
    """Every text that shows, with its extent in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for text in figure.findobj(Text):
        if text.get_text().strip() and text.get_visible():
            yield text, text.get_window_extent(canvas.get_renderer())


def refused(tree: Any, kind: type[CdaError] = ConfigError, **overrides: Any) -> str:
    with pytest.raises(kind) as caught:
        figures.draw(tree.experiments(**overrides), "drawn", OUT)
    assert len(str(caught.value).splitlines()) == 1
    assert not OUT.exists()
    return str(caught.value)


def measure(tree: Any, name: str, *values: float) -> None:
    """Leave run JSONs with the same values for every cell of a table."""
    experiments = tree.experiments()
    for cell in experiments.cells(name):
        for seed, value in enumerate(values):
            path = Path(experiments.layout.run_json(cell.run, seed))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"run": cell.run.id, "seed": seed, "top1": value}))


# Files
# ------------------------------------------------------------------------------


@pytest.fixture
def any_kind(drawn: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tree with tables that need no run behind them and images, for figures of any kind."""
    made = {"five": CONTINUAL, "two": CONTINUAL, "bound": BOUNDS, "tiny": BARS}
    monkeypatch.setattr(
        figures, "table", lambda set, name: made[name] if name in made else table(set, name)
    )
    drawn.declare(kind="grid")
    shards(drawn)
    return drawn


@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_drawn_again_has_the_same_bytes_whatever_the_user_s_style(kind, any_kind):
    any_kind.declare(kind=kind)
    files = [OUT, OUT.with_suffix(".svg")]
    figures.draw(any_kind.experiments(), "drawn", OUT)
    first = [path.read_bytes() if path.exists() else b"" for path in files]
    with mpl.rc_context(
        {"lines.linewidth": 9, "font.size": 20, "svg.hashsalt": "another", "axes.facecolor": "red"}
    ):
        figures.draw(any_kind.experiments(), "drawn", OUT)
        assert mpl.rcParams["font.size"] == 20
    assert [path.read_bytes() if path.exists() else b"" for path in files] == first
    assert Image.open(OUT).width >= 900
    assert bool(first[1]) == (kind not in ("grid", "progress"))
    assert not any(
        word in first[0] + first[1] for word in (b"Software", b"<dc:date", b"Matplotlib v")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_can_be_read_in_print_and_none_is_cut_or_covered(kind, any_kind):
    any_kind.declare(kind=kind)
    figure = any_kind.figure()
    boxes = []
    for text, box in visible(figure):
        assert text.get_fontsize() >= 8, text.get_text()
        assert box.x0 >= 0, text.get_text()
        assert box.y0 >= 0, text.get_text()
        assert box.x1 <= figure.bbox.x1, text.get_text()
        assert box.y1 <= figure.bbox.y1, text.get_text()
        boxes.append((text.get_text(), box))
    for index, (text, box) in enumerate(boxes):
        for other, second in boxes[:index]:
            assert not box.overlaps(second), f"{text!r} lies on {other!r}"
    renderer = FigureCanvasAgg(figure).get_renderer()
    for legend in figure.legends:
        for axis in figure.axes:
            assert not legend.get_window_extent(renderer).overlaps(axis.bbox)


def test_a_figure_of_another_scale_has_a_note(any_kind):
    any_kind.scale("small", recipe={"recover": {"iterations": 3}})
    for kind, noted in (("bars", True), ("grid", True), ("schedulers", False)):
        any_kind.declare(kind=kind, scales=["paper", "small"])
        note = "Scaled down: scale small, not comparable with the paper."
        assert (note in texts(any_kind.figure(scale="small", cells="present"))) == noted
        assert note not in texts(any_kind.figure())


# Plots
# ------------------------------------------------------------------------------


def test_a_bar_has_the_height_and_the_place_of_its_number():
    (axis,) = plots.bars({"t": BARS}).axes
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["ResNet-18", "ResNet-50"]
    found = {
        (bars.get_label(), round(bar.get_x() + bar.get_width() / 2)): bar.get_height()
        for bars in axis.containers
        for bar in getattr(bars, "patches", ())
    }
    assert found == {
        ("SRe²L (4K) measured", 0): 45.0,
        ("SRe²L (4K) reported in the paper", 0): 46.8,
        ("CDA (1K) reported in the paper", 0): 52.88,
        ("CDA (1K) measured", 1): 60.0,
        ("CDA (4K) measured", 0): 55.0,
        ("CDA (4K) reported in the paper", 0): 53.45,
    }
    assert {text.get_text() for text in axis.texts} == {"45.0", "52.9", "55.0", "60.0"}


def bodies(axis: Any) -> dict[str, Any]:
    return {
        bars.get_label(): bars.patches[0] for bars in axis.containers if hasattr(bars, "patches")
    }


def test_measured_bars_are_filled_and_reported_ones_hollow_and_dashed():
    found = bodies(plots.bars({"t": BARS}).axes[0])
    for label, bar in found.items():
        reported = label.endswith("reported in the paper")
        assert (bar.get_facecolor()[3] == 0) == reported
        assert (bar.get_linestyle() == "--") == reported
    assert (
        len(
            {
                tuple(bar.get_facecolor())
                for label, bar in found.items()
                if label.endswith("measured")
            }
        )
        == 3
    )


def test_measured_points_are_solid_and_reported_ones_hollow_dashed_and_lighter():
    (axis,) = plots.continual({"t": CONTINUAL}).axes
    found = {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}
    assert set(found) == {
        f"{method} {kind}"
        for method in ("SRe²L", "CDA")
        for kind in ("measured", "reported in the paper")
    }
    for method in ("SRe²L", "CDA"):
        measured, reported = found[f"{method} measured"], found[f"{method} reported in the paper"]
        assert (measured.get_linestyle(), reported.get_linestyle()) == ("-", "--")
        assert (measured.get_markerfacecolor(), reported.get_markerfacecolor()) == (
            measured.get_color(),
            "white",
        )
        assert sum(reported.get_color()) > sum(mpl.colors.to_rgb(measured.get_color()))
    np.testing.assert_array_equal(found["CDA measured"].get_xydata(), [[40, 50.0], [120, 54.0]])
    np.testing.assert_array_equal(found["SRe²L measured"].get_xydata(), [[120, 48.0]])
    np.testing.assert_array_equal(
        found["SRe²L reported in the paper"].get_xydata(), [[40, 45.6], [120, 49.27]]
    )


def test_error_bars_stand_where_several_seeds_were_measured_and_nowhere_else():
    (axis,) = plots.continual({"t": CONTINUAL}).axes
    spans = [segment for bars in axis.collections for segment in bars.get_segments()]
    np.testing.assert_allclose(spans, [[[40, 49.6], [40, 50.4]], [[120, 53.8], [120, 54.2]]])
    once = CONTINUAL.assign(seeds=1, measured_std=None)
    assert not plots.continual({"t": once}).axes[0].collections
    assert not plots.bars({"t": BARS.assign(seeds=1, measured_std=None)}).axes[0].collections
    assert len(plots.bars({"t": BARS}).axes[0].collections) == 1


def test_a_panel_without_a_measured_value_has_a_note():
    nothing = {"measured": np.nan, "measured_std": np.nan}
    assert "not measured yet" not in texts(plots.continual({"t": CONTINUAL}))
    two = plots.continual({"t": CONTINUAL, "u": CONTINUAL.assign(**nothing)})
    assert [axis.get_title(loc="right") for axis in two.axes] == ["", "not measured yet"]
    assert "not measured yet" in texts(plots.bars({"t": BARS.assign(**nothing)}))


def test_with_neither_number_nothing_is_drawn():
    for draw, cells in ((plots.bars, BARS), (plots.continual, CONTINUAL)):
        (axis,) = draw({"t": cells.assign(measured=None, measured_std=None, reported="")}).axes
        assert not [*axis.lines, *axis.patches, *axis.collections, *axis.texts]
        assert not axis.figure.legends
        assert "not measured yet" in texts(draw({"t": cells.iloc[:0]}))


def test_controls_are_left_out():
    assert plots.continual({"t": CONTINUAL}).axes[0].get_ylim()[1] < 60
    assert plots.bars({"t": BARS}).axes[0].get_ylim()[1] < 70


def test_controls_that_vary_the_lower_bound_too_have_a_panel_of_their_own():
    figure = plots.bounds({"t": BOUNDS})
    found = [
        {
            line.get_label(): line.get_xydata().tolist()
            for line in axis.lines
            if line.get_label()[0] != "_"
        }
        for axis in figure.axes
    ]
    assert found == [
        {"CDA measured": [[0.4, 60.0]], "CDA reported in the paper": [[0.4, 64.4], [1.0, 54.43]]},
        {"CDA measured": [[0.4, 66.0], [1.0, 50.0]]},
    ]
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["t", "crop"]


def test_the_legend_names_each_method_and_what_is_measured():
    def named(figure: Figure) -> list[str]:
        return [text.get_text() for text in figure.legends[0].get_texts()]

    kinds = ["measured ± s.d.", "reported in the paper"]
    assert named(plots.bars({"t": BARS})) == ["SRe²L (4K)", "CDA (1K)", "CDA (4K)", *kinds]
    assert named(plots.continual({"t": CONTINUAL})) == ["SRe²L", "CDA", *kinds]
    assert named(plots.continual({"t": CONTINUAL.assign(measured=None, measured_std=None)})) == [
        "SRe²L",
        "CDA",
        kinds[1],
    ]


def test_a_method_has_one_colour_in_every_figure():
    lines = [
        plots.lines(
            {"t": CONTINUAL.assign(setting="milestone=1", role="paper").drop_duplicates("method")}
        )
    ]
    lines += [plots.continual({"t": CONTINUAL})]
    curves = {
        line.get_label(): to_hex(line.get_color()) for one in lines for line in one.axes[0].lines
    }
    bars = bodies(plots.bars({"t": BARS}).axes[0])
    for method in ("cda", "sre2l"):
        look = style.style_of(method)
        assert curves[f"{look.label} reported in the paper"] == to_hex(style.lighten(look.colour))
        assert to_hex(bars[f"{look.label} (4K) measured"].get_facecolor()) == look.colour
    assert curves["CDA measured"] == style.style_of("cda").colour
    cosine = frame({"method": "cl-cosine", "setting": "milestone=1", "measured": 5.0, "seeds": 1})
    (line,) = plots.lines({"t": cosine}).axes[0].lines
    schedules = {
        line.get_label(): line.get_color() for line in method_plots.schedulers().axes[0].lines
    }
    assert schedules["Cosine"] == line.get_color() == style.style_of("cl-cosine").colour
    assert (
        len({look.colour for look in style.STYLES.values()}) == len(style.STYLES) - 1
    )  # CDA is the cosine curriculum


def test_the_plots_of_a_declared_table_show_its_measurements(drawn):
    measure(drawn, "milestones", 40.0, 42.0)
    drawn.declare(kind="lines")
    (axis,) = drawn.figure().axes
    found = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert found["Step measured"] == found["Cosine measured"] == [[0.5, 41.0], [1.0, 41.0]]
    assert axis.get_ylabel() == "Top-1 accuracy (%)"
    measure(drawn, "tiny", 30.0)
    drawn.declare(kind="bars")
    assert {bar.get_height() for bar in bodies(drawn.figure().axes[0]).values()} == {30.0}


def test_a_figure_of_sizes_is_refused(drawn):
    about = {"title": "Sizes", "scales": ["paper"], "sizes_of": "tiny"}
    drawn.write("experiments/sizes.yaml", yaml.safe_dump(about))
    drawn.declare(kind="bars", tables=["sizes"])
    with pytest.raises(
        ConfigError, match="figure drawn: table sizes holds sizes and no accuracies"
    ):
        drawn.figure()


def test_panels_reach_as_far_with_a_measured_value_as_without():
    two = plots.continual(
        {"t": CONTINUAL, "u": CONTINUAL.assign(measured=np.nan, reported="", measured_std=np.nan)}
    )
    first, second = (axis.get_xlim() for axis in two.axes)
    assert first == second == pytest.approx((40 - 80 / 22, 120 + 80 / 22))


def test_a_setting_without_its_number_and_cells_that_are_one_are_refused():
    for setting in ("", "milestone=soon", "classes=4"):
        with pytest.raises(ConfigError, match=r"table t: .*milestone"):
            plots.lines({"t": frame({"setting": setting})})
    with pytest.raises(ConfigError, match="table t: two cells are cda, 1000, resnet18"):
        plots.bars({"t": frame({}, {})})


def test_the_schedulers_are_those_of_algorithm_1():
    (axis,) = method_plots.schedulers().axes
    found = {line.get_label(): line.get_xydata() for line in axis.lines[:3]}
    for step in (0, 100, 350, 699, 700, 999):
        share = step / 700
        early = {
            "Step": 1.0,
            "Linear": 1 - 0.92 * share,
            "Cosine": 0.08 + 0.92 * (1 + math.cos(math.pi * share)) / 2,
        }
        for name, value in early.items():
            assert found[name][step] == pytest.approx((step, value if step < 700 else 0.08))
    ticks = [text.get_text() for text in axis.get_yticklabels()]
    assert (ticks[0], ticks[-1]) == (r"$\beta_l$ = 0.08", r"$\beta_u$ = 1")
    assert list(axis.lines[3].get_xdata()) == [700, 700]


def test_crops_keep_their_bounds_and_grow_from_left_to_right():
    axes = np.array(method_plots.crops().axes).reshape(3, -1)
    mean = []
    for column, (low, high) in zip(axes.T, method_plots.CROPS, strict=True):
        assert len(column[0].collections[0].get_offsets()) == 2000
        assert [len(axis.patches) for axis in column[1:]] == [30, 10]
        sides = np.array([[box.get_width(), box.get_height()] for box in column[1].patches])
        areas = sides.prod(axis=1) / 224**2
        uncropped = (sides == 224).all(axis=1)  # RandomResizedCrop's way out after ten tries
        assert (((areas > low - 0.01) & (areas < high + 0.01)) | uncropped).all()
        corners = np.array([box.get_xy() for box in column[1].patches])
        assert (corners >= 0).all()
        assert (corners + sides <= 224).all()
        mean.append(areas.mean())
    assert mean == sorted(mean)


# Pictures
# ------------------------------------------------------------------------------


def mosaic(axis: Any) -> np.ndarray:
    (image,) = axis.images
    return np.asarray(image.get_array())


def colours(axis: Any, across: int) -> list[tuple[int, ...]]:
    """The colours of a mosaic's flat 8-pixel images, row by row."""
    pixels = mosaic(axis)
    corners = [
        (top, left) for top in range(0, pixels.shape[0], 9) for left in range(0, pixels.shape[1], 9)
    ]
    assert len(corners) % across == 0
    for top, left in corners:
        assert (pixels[top : top + 8, left : left + 8] == pixels[top, left]).all()
    assert (pixels[8::9] == 255).all()
    assert (pixels[:, 8::9] == 255).all()
    return [tuple(pixels[corner]) for corner in corners]


def expected(number: int, *places: tuple[int, int]) -> list[tuple[int, ...]]:
    return [tuple(flat(number, place, label)[0, 0]) for place, label in places]


def test_a_grid_has_a_panel_a_method_a_column_a_class_and_a_row_a_shard(drawn):
    drawn.declare(kind="grid")
    shards(drawn)
    axes = drawn.figure().axes
    assert [axis.get_title() for axis in axes] == ["SRe²L", "CDA"]
    for number, axis in enumerate(axes):
        assert colours(axis, 10) == expected(
            number, *((place, label) for place in (0, 1) for label in range(10))
        )
        assert [tick.get_text() for tick in axis.get_xticklabels()] == list("0123456789")
        np.testing.assert_allclose(axis.get_xticks(), [9 * label + 3.5 for label in range(10)])


def test_a_grid_shows_named_classes_in_bands_that_their_names_fit_in(drawn):
    drawn.declare(
        kind="grid",
        classes=["7=Lucky", "0", "3=great white shark", "5=leatherbackturtles", "1=one"],
    )
    shards(drawn)
    axes = drawn.figure().axes  # by bands, a panel a method in each
    assert len(axes) == 2 * 3
    names = [[tick.get_text() for tick in axis.get_xticklabels()] for axis in axes]
    assert (
        names[0::2]
        == names[1::2]
        == [["Lucky", "0"], ["great white shark", "leatherbackturtles"], ["one"]]
    )
    assert colours(axes[3], 2) == expected(
        1, (0, 3), (0, 5)
    )  # a second shard would not fit on a page
    assert colours(axes[5], 2) == [*expected(1, (0, 1)), (255, 255, 255)]


def test_progress_has_a_row_a_method_and_a_column_a_step(drawn):
    drawn.declare(
        kind="progress",
        groups=[PICTURES | {"methods": ["sre2l", "random", "cda"]}],
        steps=[3, 6, 1000],
    )
    shards(drawn)
    axes = drawn.figure().axes
    assert [axis.get_title() for axis in axes] == ["step 3", "step 6", "", ""]
    assert [axis.get_ylabel() for axis in axes] == ["SRe²L", "", "CDA", ""]
    for number, row in ((0, axes[:2]), (2, axes[2:])):  # random images do not emerge
        for place, axis in zip((2, 3), row, strict=True):
            assert colours(axis, 5) == expected(number, *((place, label) for label in range(10)))


def test_progress_has_a_block_a_named_class(drawn):
    drawn.declare(kind="progress", classes=["7=Plant", "2"], steps=[3, 6])
    shards(drawn)
    figure = drawn.figure()
    assert [own.get_suptitle() for own in figure.subfigs] == ["Plant", "2"]
    for own, label in zip(figure.subfigs, (7, 2), strict=True):
        found = [colours(axis, 1) for axis in own.axes]
        assert found == [expected(number, (place, label)) for number in (0, 1) for place in (2, 3)]


def test_the_last_step_is_the_finished_shard_if_it_has_no_snapshot(drawn):
    drawn.edit("recipes/digits.yaml", "snapshots: [3, 6]", "snapshots: [3]")
    drawn.declare(kind="progress", steps=[3, 6])
    shards(drawn)
    axes = drawn.figure().axes
    assert [axis.get_title() for axis in axes[:2]] == ["step 3", "step 6"]
    assert colours(axes[1], 5) == expected(0, *((0, label) for label in range(10)))


def test_steps_that_no_run_stored_give_way_to_stored_ones(drawn):
    drawn.declare(kind="progress", steps=[100, 500])
    shards(drawn)
    assert [axis.get_title() for axis in drawn.figure().axes[:2]] == ["step 3", "step 6"]


def test_a_stand_in_shows_its_own_classes(drawn):
    drawn.write(
        "datasets/large.yaml",
        (drawn.folder / "datasets/digits.yaml").read_text().replace("digits", "large"),
    )
    drawn.write("recipes/large.yaml", (drawn.folder / "recipes/digits.yaml").read_text())
    drawn.write(
        "scales/small.yaml", yaml.safe_dump({"datasets": {"large": {"stand_in": "digits"}}})
    )
    drawn.declare(
        kind="progress",
        classes=["n00017222=Plant"],
        scales=["small"],
        groups=[PICTURES | {"dataset": "large"}],
    )
    experiments = drawn.experiments(scale="small")
    for _, run in experiments.pictured("drawn"):
        for step in (3, 6):
            path = Path(experiments.layout.part(run, 0), f"snapshots/step-{step:05d}.tar")
            write_shard(
                path, np.zeros((10, 8, 8, 3), np.uint8), list("abcdefghij"), 0, run.id, "digits"
            )
    assert [own.get_suptitle() for own in drawn.figure(scale="small").subfigs] == ["a"]


@pytest.mark.parametrize("kind", ["grid", "progress"])
def test_missing_images_are_framed_with_cells_present_and_refused_without(kind, drawn):
    drawn.declare(kind=kind)
    shards(drawn, methods=("cda",))
    figure = drawn.figure(cells="present")
    assert texts(figure).count("not run") == (1 if kind == "grid" else 2)
    for axis in figure.axes:
        missing = "not run" in [text.get_text() for text in axis.texts]
        assert (mosaic(axis) == 255).all() == missing
        assert axis.spines["top"].get_visible() == missing
    assert ".tar: no such shard; recover it or pull it" in refused(drawn, ArtifactError)


@pytest.mark.parametrize("kind", ["grid", "progress"])
def test_a_figure_of_which_nothing_is_present_is_drawn(kind, drawn):
    drawn.declare(kind=kind, classes=["7=Plant", "n1"])
    assert "not run" in texts(drawn.figure(cells="present"))


def test_damaged_images_are_refused_even_then(drawn):
    drawn.declare(kind="grid")
    shards(drawn)
    experiments = drawn.experiments()
    path = Path(experiments.layout.part(experiments.pictured("drawn")[0][1], 0), shard_name(1))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ArtifactError):
        read_shard(path)
    assert refused(drawn, ArtifactError, cells="present").startswith(f"{path}: ")


# Refused
# ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["grid", "progress"])
def test_an_unknown_class_is_named(kind, drawn):
    drawn.declare(kind=kind, classes=["n00017222=Plant"])
    shards(drawn)
    line = refused(drawn)
    assert (
        line == "figure drawn: classes: 'n00017222' is no class of digits; it has such as 0, 1, 2"
    )


def test_an_unknown_figure_and_a_plot_of_nothing_are_named(drawn):
    drawn.declare("other", kind="crops")
    assert refused(drawn) == "there is no figure 'drawn' at scale paper; there is other"
    drawn.declare(kind="bars", tables=[])
    assert refused(drawn) == "figure drawn: tables is missing; name the tables whose cells it draws"
    drawn.declare(kind="bars", tables=["absent"])
    assert "there is no table 'absent'" in refused(drawn)


def test_pictures_of_no_run_are_refused(drawn):
    drawn.declare(kind="progress", groups=[PICTURES | {"methods": ["random"]}])
    assert refused(drawn).startswith("figure drawn: groups give no run")


def test_methods_that_share_no_step_are_refused(drawn):
    drawn.edit(
        "recipes/digits.yaml",
        "      mode: constant     #",
        "      iterations: 5 # test\n      mode: constant #",
    )
    drawn.edit("recipes/digits.yaml", "snapshots: [3, 6]", "snapshots: [6]")
    drawn.declare(kind="progress")
    assert (
        refused(drawn)
        == "figure drawn: its methods share no recover.snapshots; set the same steps in the recipe"
    )
