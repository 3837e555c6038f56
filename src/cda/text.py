"""Numbers, sizes, times, lists and columns as people read them, one format for all of cda."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def format_number(value: float) -> str:
    """A number of at least 0 in three significant digits, or in all digits before the point.

    >>> [format_number(value) for value in (12345.6, 12.345, 0.5, 0, 0.0004)]
    ['12,346', '12.3', '0.5', '0', '<0.001']
    """
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 or not value else "<0.001"


def format_bytes(size: float) -> str:
    """A size in bytes in the largest decimal unit that it reaches, in three significant digits.

    >>> format_bytes(1.31e12), format_bytes(20_000_000), format_bytes(12_345), format_bytes(104)
    ('1.31 TB', '20 MB', '12.3 kB', '104 B')
    """
    for scale, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= scale:
            return f"{format_number(size / scale)} {unit}"
    return f"{size:g} B"


def format_clock(seconds: float) -> str:
    """A duration as on a clock: minutes and seconds, with hours where there are some.

    >>> format_clock(75), format_clock(3725.4)
    ('1:15', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_hours(hours: float) -> str:
    """A duration in minutes, hours or days, whichever suits its length.

    >>> format_hours(0.2), format_hours(30), format_hours(60)
    ('12 min', '30.0 h', '2.5 days')
    """
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min"


def list_some(names: Sequence[str]) -> str:
    """The first three names of a list, for a message.

    >>> list_some(["ant", "bee"]), list_some(list("abcd")), list_some([])
    ('ant, bee', 'a, b, c, ...', 'nothing in it')
    """
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "nothing in it"


def align_columns(rows: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """Rows as lines of aligned columns: those at the positions `left` to the left, others right.

    >>> align_columns([["run", "jobs"], ["squeeze", "12"]], left={0})
    ['run      jobs', 'squeeze    12']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = (
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(padded).rstrip())
    return lines
