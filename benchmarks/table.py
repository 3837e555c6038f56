"""`results/benchmarks.csv`, of any number of devices, and the Markdown page made from it."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from cda.files import write_text

COLUMNS = (
    "benchmark", "what", "side", "parameters", "device", "threads", "versions", "code", "rate",
    "unit", "ratio", "spread", "repeats", "work", "start_seconds", "peak_memory_mb", "peak_share",
    "seconds_an_image",
)  # fmt: skip
HEADINGS = {
    "what": "what",
    "side": "side",
    "parameters": "with",
    "rate": "rate",
    "unit": "unit",
    "ratio": "× plain",
    "spread": "spread",
    "work": "a call",
    "peak_memory_mb": "peak memory, MB",
    "start_seconds": "start-up, s",
    "peak_share": "of the bf16 peak",
    "seconds_an_image": "seconds an image",
}
ITERATIONS = 1000  # of a recovery in these benchmarks
BENCHMARKS = ("recover", "squeeze", "validate", "label_store", "dag")
EXPLAINED = f"""\
Made by `make bench` from [benchmarks.csv](benchmarks.csv). `plain` is the same work written \
the obvious way, eager
and in fp32 (on a GPU with TF32 convolutions, as torch ships it), and is measured in the same \
process, in turn with
ours. `ours` is the engine as it runs by default, `reference` the same in fp32 without \
compilation; in the label store
`plain` is fp16. Rates are medians, × plain is their ratio, spread is (max − min) / median of \
the repeats; a call is
how many units a repeat has at least. Start-up is what building and compiling take before the \
first repeat. Peak
memory is, on a GPU, what tensors held at the most; on a CPU, by how much a fresh process grew, \
without the workers of
a DataLoader. The share of a card's peak counts the operations of the networks' passes alone, over \
the peak in
[devices.yaml](../config/devices.yaml) (bf16, dense; a V100's fp32), in whatever precision a side \
computes. Seconds
an image are those of a recovery of {ITERATIONS:,} iterations at this rate."""
PUBLISHED = """\
## Published, not measured here

Seconds of one card for an image, from hours that are printed: hours × cards × 3,600 / images.

"""


class Published(NamedTuple):
    """Hours of recovery that a paper or its authors print."""

    what: str
    cards: int
    card: str
    hours: float
    images: int
    iterations: str
    source: str

    @property
    def seconds_an_image(self) -> float:
        """Seconds of one card for an image."""
        return self.hours * self.cards * 3600 / self.images


PEERS = (
    Published(
        "CDA, ImageNet-1K, IPC 50, 224 px", 1, "A100 (40 GB)", 29, 50_000,
        "4,000 or 1,000",
        "CDA paper, Appendix C (docs/fidelity.md: RTX 4090); Table 16d, or the ablations",
    ),
    Published(
        "CDA, ImageNet-21K-P, IPC 20, 224 px", 4, "RTX 4090", 55, 209_000, "2,000",
        "CDA paper, Appendix C and Table 21c; SRe²L takes as long (Section 3.7)",
    ),
    Published(
        "CDA, Tiny-ImageNet, IPC 50, 64 px", 1, "RTX 4090", 4.5, 10_000, "not stated",
        "docs/fidelity.md, what the authors report",
    ),
)  # fmt: skip


def _text(value: Any) -> str:
    """A value for the CSV in four significant digits; repeats differ by more."""
    if value is None or not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def read(path: Path) -> list[dict[str, str]]:
    """The rows at `path`, none if there is no file; unknown columns are dropped."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: row.get(key) or "" for key in COLUMNS} for row in csv.DictReader(file)]


def merged(
    old: list[dict[str, str]], new: Iterable[dict[str, Any]], device: str, measured: Collection[str]
) -> list[dict[str, str]]:
    """The rows `old` with those of the `measured` benchmarks on this device replaced by `new`."""
    stay = [row for row in old if row["device"] != device or row["benchmark"] not in measured]
    fresh = [{key: _text(row.get(key)) for key in COLUMNS} for row in new]
    devices = list(dict.fromkeys(row["device"] for row in [*old, *fresh]))
    names = list(dict.fromkeys([*BENCHMARKS, *(row["benchmark"] for row in [*stay, *fresh])]))
    return sorted(
        [*stay, *fresh],
        key=lambda row: (devices.index(row["device"]), names.index(row["benchmark"])),
    )


def with_seconds(row: dict[str, str]) -> dict[str, str]:
    """A row with the seconds an image that follow from its rate; none but in recovery."""
    follows = row["unit"] == "image-iterations/s" and row["rate"]
    return row | {"seconds_an_image": _text(ITERATIONS / float(row["rate"])) if follows else ""}


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """Write the CSV at `path` and the Markdown beside it."""
    rows = [with_seconds(row) for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
    write_text(path.with_suffix(".md"), markdown(rows))


def markdown(rows: list[dict[str, str]]) -> str:
    """The page for people: a part for each device, a table for each benchmark."""
    lines = ["# Benchmarks", "", EXPLAINED]
    for device in dict.fromkeys(row["device"] for row in rows):
        own = [row for row in rows if row["device"] == device]
        versions = dict.fromkeys(f"{row['versions']}; {row['threads']} threads" for row in own)
        lines += ["", f"## {device}", "", "; ".join(versions) + "."]
        for name in dict.fromkeys(row["benchmark"] for row in own):
            lines += ["", f"### {name.replace('_', ' ').capitalize()}", ""]
            lines += _table([row for row in own if row["benchmark"] == name])
    return "\n".join([*lines, "", PUBLISHED + _published()])


def _published() -> str:
    """The Markdown table of what others print."""
    heads = ["what", "cards", "hours", "iterations", "seconds an image", "source"]
    body = [
        [
            peer.what, f"{peer.cards} × {peer.card}", f"{peer.hours:g}", peer.iterations,
            f"{peer.seconds_an_image:.3g}", peer.source,
        ]
        for peer in PEERS
    ]  # fmt: skip
    return "\n".join(_drawn([heads, *body])) + "\n"


def _table(rows: list[dict[str, str]]) -> list[str]:
    """Lines of a Markdown table without empty columns."""
    keys = [key for key in HEADINGS if any(row[key] for row in rows)]
    body = [[_cell_text(key, row[key]) for key in keys] for row in rows]
    return _drawn([[HEADINGS[key] for key in keys], *body])


def _drawn(table: list[list[str]]) -> list[str]:
    """Lines of a Markdown table of cells, the first line its heads."""
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    filled = [
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in table
    ]
    drawn = [f"| {' | '.join(line)} |" for line in filled]
    return [drawn[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *drawn[1:]]


def _cell_text(key: str, text: str) -> str:
    """A cell for people: three digits, shares in percent."""
    try:
        value = float(text)
    except ValueError:
        return text
    if key in ("spread", "peak_share"):
        return f"{100 * value:.1f} %" if key == "peak_share" else f"{100 * value:.0f} %"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
