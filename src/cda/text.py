"""Numbers, sizes, times, lists and columns as people read them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence, Set


def number(value: float) -> str:
    """A number of at least 0 in three significant digits, or in all digits before the point.

    >>> number(1234.5), number(0.12345), number(0.0001), number(0)
    ('1,234', '0.123', '<0.001', '0')
    """
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 or not value else "<0.001"


def clock(seconds: float) -> str:
    """A duration in seconds, minutes or hours, whichever suits it.

    >>> clock(12), clock(510), clock(5000), clock(90_000)
    ('12 s', '8.5 min', '1.4 h', '25 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.2g} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36_000 else f"{seconds / 3600:.0f} h"


def stopwatch(seconds: float) -> str:
    """A duration as minutes and seconds, with hours where there are some.

    >>> stopwatch(75), stopwatch(3725.4)
    ('1:15', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def human_bytes(count: float) -> str:
    """Bytes in the largest decimal unit that they reach, in three significant digits.

    >>> human_bytes(1.31e12), human_bytes(20_000_000), human_bytes(104)
    ('1.31 TB', '20 MB', '104 B')
    """
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{number(count / unit)} {name}"
    return f"{count:g} B"


def list_some(names: Sequence[str]) -> str:
    """The first three names of a list, for a message.

    >>> list_some(["ant", "bee"]), list_some(list("abcd")), list_some([])
    ('ant, bee', 'a, b, c, ...', 'nothing in it')
    """
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "nothing in it"


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that a misspelt one is nearest to, for a message; empty if none is near.

    >>> nearest("tabel4", ["table4", "figure8"]), nearest("x", ["table4"])
    (' (nearest: table4)', '')
    """
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (nearest: {near[0]})" if near else ""


def align_columns(rows: Sequence[Sequence[str]], left: Set[int]) -> list[str]:
    """Rows as lines of aligned columns: those at the positions `left` to the left, others right.

    >>> align_columns([["stage", "jobs"], ["relabel", "12"]], left={0})
    ['stage    jobs', 'relabel    12']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
