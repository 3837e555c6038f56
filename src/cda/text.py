"""Numbers and tables as people read them."""

from __future__ import annotations

from collections.abc import Sequence, Set


def number(value: float) -> str:
    """Three digits, or all before the point.

    >>> number(1234.5), number(0.12345), number(0.0001)
    ('1,234', '0.123', '<0.001')
    """
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 or not value else "<0.001"


def clock(seconds: float) -> str:
    """A time in the unit that suits it.

    >>> clock(12), clock(510), clock(5000), clock(90_000)
    ('12 s', '8.5 min', '1.4 h', '25 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.2g} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36_000 else f"{seconds / 3600:.0f} h"


def human_bytes(count: float) -> str:
    """Bytes in three digits.

    >>> human_bytes(1.31e12), human_bytes(20_000_000), human_bytes(104)
    ('1.31 TB', '20 MB', '104 B')
    """
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:g} B"


def align_columns(rows: Sequence[Sequence[str]], left: Set[int]) -> list[str]:
    """Rows as lines: the columns `left` are words, the others are numbers and align right.

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
