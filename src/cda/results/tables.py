"""Tables from run JSONs: tidy CSV, one row a cell, and Markdown in the paper's layout."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pandas as pd

from cda.config.experiment import KEYS, Experiment
from cda.config.names import label, method_label, scale_label
from cda.errors import ConfigError
from cda.experiments.cells import Cell
from cda.experiments.experiment_set import ExperimentSet
from cda.files import write_text
from cda.results import contrasts, label_sizes
from cda.results.measured import measurements

COLUMNS = (
    "table",
    *KEYS,
    "reported",
    "reported_std",
    "measured",
    "measured_std",
    "seeds",
    "delta",
    "status",
    "scale",
    "run",
    "role",
    "note",
    "device",
)
MARKDOWN_ONLY = ("varied", "common")  # columns that the CSV does not have
SIZES = ("label_bytes", "label_ratio")  # columns of tables that set label_sizes


def row_of(experiments: ExperimentSet, cell: Cell) -> dict[str, Any]:
    """One row of the tidy table."""
    run, values, devices = measurements(experiments, cell)
    mean = round(statistics.fmean(values), 2) if values else None
    reported = float(cell.reported) if cell.reported else None
    status = "measured" if values else "quoted" if cell.quoted else "not_run"
    return {
        "table": cell.table,
        **{key: cell.key[key] for key in KEYS},
        "reported": cell.reported,
        "reported_std": cell.reported_std,
        "measured": mean,
        "measured_std": round(statistics.stdev(values), 2) if len(values) > 1 else None,
        "seeds": len(values),
        "delta": round(mean - reported, 2) if mean is not None and reported is not None else None,
        "status": status,
        "scale": scale_label(experiments.settings.scale, cell.dataset),
        "run": run.id if run else "",
        "role": "control" if cell.control else "paper" if cell.reported else "ours",
        "note": cell.note,
        "device": "; ".join(devices),
        **dict(zip(SIZES, label_sizes.of_cell(run), strict=True)),
        **{key: getattr(cell, key) for key in MARKDOWN_ONLY},
    }


def table(experiments: ExperimentSet, name: str) -> pd.DataFrame:
    """The tidy table `name`, a row a cell in declared order, with the columns MARKDOWN_ONLY."""
    cells = experiments.cells(name)  # raises ConfigError for an unknown name
    if experiments.tables[name].sizes_of:
        return label_sizes.sizes(experiments, name)
    rows = [row_of(experiments, cell) for cell in cells]
    further = SIZES if experiments.tables[name].label_sizes else ()
    return pd.DataFrame(rows, columns=[*COLUMNS, *further, *MARKDOWN_ONLY])


def _cell_text(row: pd.Series[Any]) -> str:
    """A cell for people: measured ± std, and in parentheses the paper's number."""
    spread = f" ± {row['measured_std']:.2f}" if pd.notna(row["measured_std"]) else ""
    measured = f"{row['measured']:.2f}{spread}" if pd.notna(row["measured"]) else "–"
    reported = " ± ".join(part for part in (row["reported"], row["reported_std"]) if part)
    return f"{measured} ({reported})" if reported else measured


def _pivot(frame: pd.DataFrame, rows: list[str], columns: list[str]) -> list[list[str]]:
    """Header and body of a Markdown table with the keys `rows` down and `columns` across."""
    text = frame.assign(text=frame.apply(_cell_text, axis=1))
    text = text.astype(dict.fromkeys(rows + columns, str))
    for key in ("recovery_model", "validation_model"):
        text[key] = text[key].map(_network)
    text["method"] = text["method"].map(method_label)
    row_keys = _ordered(list(dict.fromkeys(text[rows].itertuples(index=False, name=None))))
    column_keys = list(dict.fromkeys(text[columns].itertuples(index=False, name=None)))
    cells = {
        (tuple(r[k] for k in rows), tuple(r[k] for k in columns)): r["text"]
        for _, r in text.iterrows()
    }
    if len(cells) < len(text):
        keys = f"rows {', '.join(rows)} and columns {', '.join(columns)}"
        raise ConfigError(
            f"layout: {keys} do not distinguish all cells; add a key such as setting to the "
            "table's layout"
        )
    head = ["" if row == "varied" else row for row in rows] + [
        " · ".join(part for part in key if part) for key in column_keys
    ]
    return [
        head,
        *([*key, *(cells.get((key, column), "") for column in column_keys)] for key in row_keys),
    ]


def _network(name: str) -> str:
    """A network's label; a stand-in names the replaced network too."""
    ran, _, declared = name.removesuffix(")").partition(" (for ")
    return f"{label(ran)} (for {label(declared)})" if declared else label(name)


def _ordered(keys: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Row keys with numbers ascending and names in order of appearance."""
    orders = [list(dict.fromkeys(parts)) for parts in zip(*keys, strict=True)]

    def rank(key: tuple[str, ...]) -> list[float]:
        return [
            float(part) if part.isdigit() else seen.index(part)
            for part, seen in zip(key, orders, strict=True)
        ]

    return sorted(keys, key=rank)


def aligned(lines: list[list[str]]) -> str:
    """A Markdown table with aligned columns; the first line is the heading."""
    lines = [[" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    drawn = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    ]
    drawn.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(drawn)


def _distinguishes(frame: pd.DataFrame, controls: pd.Series[bool], key: str) -> bool:
    """Whether `key` differs between controls, or between them and the table's own cells."""
    values = frame[key][controls]
    return values.nunique() > 1 or set(values) != set(
        frame[key][~controls & (frame["status"] != "quoted")]
    )


def markdown(experiments: ExperimentSet, name: str, frame: pd.DataFrame) -> str:
    """The table for people: title, cells in the paper's layout, controls, contrasts, caption."""
    experiment = experiments.tables[name]
    if experiment.sizes_of:
        return _sizes_markdown(experiment, frame)
    every = frame
    frame, scale_note = _at_scale(experiments, name, frame)
    controls = frame["role"] == "control"
    rows: list[str] = [*experiment.layout.rows]
    if experiment.label_sizes:
        frame, rows = label_sizes.with_sizes(frame), [*rows, *label_sizes.SIZE_COLUMNS]
    columns: list[str] = [*experiment.layout.columns]
    lines = [f"# {experiment.title}", "", aligned(_pivot(frame[~controls], rows, columns))]
    if controls.any():
        lines += ["", "Controls of this project, not of the paper:", ""]
        lines += [aligned(_pivot_controls(frame, controls, rows, columns))]
    if differences := contrasts.contrast_rows(experiments, name):
        lines += ["", contrasts.HEADING, "", aligned(differences)]
    reported = (frame["reported"] != "").any()
    caption = [
        experiment.caption,
        " In parentheses: what the paper reported." if reported else "",
        " A measured number without ± is of one seed." if (frame["seeds"] == 1).any() else "",
        scale_note,
    ]
    return "\n".join([*lines, "", "".join(caption), "", *_counts(every)]) + "\n"


def _at_scale(
    experiments: ExperimentSet, name: str, frame: pd.DataFrame
) -> tuple[pd.DataFrame, str]:
    """The cells that the scale can run, and the sentences about the scale below the table."""
    if not experiments.scaled_down:
        return frame, ""
    note = f" **{experiments.scaled_down}**"
    if (frame["setting"] != "").any():
        named = "as in the paper" if experiments.tables[name].reported else "as declared"
        note += f" Settings are named {named}; `cda config show RUN` prints the values that ran."
    note += experiments.replaced_ipc(name)
    runnable = (frame["run"] != "") | (frame["status"] == "quoted")
    return (frame[runnable] if runnable.any() else frame), note


def _pivot_controls(
    frame: pd.DataFrame, controls: pd.Series[bool], rows: list[str], columns: list[str]
) -> list[list[str]]:
    """The controls in the table's layout, with the keys that distinguish them added to it."""
    if "varied" in (*rows, *columns):
        frame = frame.assign(setting=frame["common"])  # the layout has the varied part already
    further = [key for key in ("method", "setting", "metric") if key not in (*rows, *columns)]
    added = [key for key in further if _distinguishes(frame, controls, key)]
    down = [*rows, *(key for key in added if key == "setting")]
    across = [*columns, *(key for key in added if key != "setting")]
    return _pivot(frame[controls], down, across)


def _counts(frame: pd.DataFrame) -> list[str]:
    """How many cells are measured, quoted and not run, and why some cannot run."""
    counts = frame["status"].value_counts()
    known = [status for status in ("measured", "quoted", "not_run") if status in counts]
    notes = sorted({note for note in frame["note"] if note and not note.startswith("quoted")})
    cells = ", ".join(f"{counts[status]} {status}" for status in known)
    return [f"Cells: {cells}.", *(f"Not run: {note}." for note in notes)]


def _sizes_markdown(experiment: Experiment, frame: pd.DataFrame) -> str:
    """A table of label sizes for people, a section a data set."""
    lines = [f"# {experiment.title}", "", experiment.caption]
    for heading, text in label_sizes.sections(frame):
        lines += ["", f"## {heading}", "", aligned(text)]
    return "\n".join(lines) + "\n"


def write(experiments: ExperimentSet, name: str, csv: Path) -> None:
    """Write the tidy table at `csv` and the Markdown table beside it."""
    frame = table(experiments, name)
    write_text(
        csv,
        frame.drop(columns=[*MARKDOWN_ONLY], errors="ignore").to_csv(
            index=False, lineterminator="\n"
        ),
    )
    write_text(csv.with_suffix(".md"), markdown(experiments, name, frame))
