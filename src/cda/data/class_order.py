"""Which label each class gets, from the names of the class folders.

Names are sorted as text, but numbers by their value: 2 comes before 10. A set from elsewhere that
numbers its classes (released images) was made in one order of several that programs use; where they
differ for the names at hand, only the user knows which, and `class_map` states it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from decimal import Decimal

_NUMBER = re.compile(r"\s*[+-]?\d+(\.\d+)?\s*", re.ASCII)
_WORDNET_ID = re.compile(r"n\d{8}")


def normal_form(name: str) -> str:
    """A class name in Unicode's composed form: macOS stores é as two characters, Linux as typed."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def is_legible(name: str) -> bool:
    r"""Whether a name has neither control characters nor bytes that are no UTF-8.

    >>> is_legible("café"), is_legible("caf\udce9"), is_legible("a\nb")
    (True, False, False)
    """
    return not any(unicodedata.category(c) in ("Cc", "Cs") for c in name)


def sort_classes(names: Iterable[str]) -> list[str]:
    """Class names in the order of their labels: as text, or by value if all are numbers.

    >>> sort_classes(["10", "9", "-1"]), sort_classes(["b10", "b9"])
    (['-1', '9', '10'], ['b10', 'b9'])
    """
    ordered = sorted(names)
    numbers = {name: number for name in ordered if (number := _number(name)) is not None}
    return sorted(ordered, key=numbers.__getitem__) if len(numbers) == len(ordered) else ordered


def order_problem(names: Sequence[str]) -> str | None:
    """Why class c of a numbered set may be another than `names[c]`; None if it cannot.

    Numbers 0, 1, 2, … name their class themselves. Others must come in one order whether they are
    sorted as text (torchvision), with numbers by value (timm, `ls -v`), or without regard to case.

    >>> order_problem(["0", "1", "2"]), order_problem(["ant", "bee"])
    (None, None)
    >>> order_problem(["b1", "b10", "b2"])
    "class 1 is 'b10' here, and 'b2' if sorted by number"
    """
    values = [name.casefold() if (number := _number(name)) is None else number for name in names]
    if len(set(values)) < len(values):
        return "several class folders are one number, or differ in case alone"
    if values == list(range(len(names))):
        return None
    if len({bool(_WORDNET_ID.fullmatch(name)) for name in names}) > 1:
        return "some class folders are WordNet ids and others are not"
    orders = {"as text": sorted(names), "without case": sorted(names, key=str.lower)}
    orders["by number"] = sorted(names, key=_natural)
    for way, other in orders.items():
        for label, (here, there) in enumerate(zip(names, other, strict=True)):
            if here != there:
                return f"class {label} is {here!r} here, and {there!r} if sorted {way}"
    return None


def _number(name: str) -> Decimal | None:
    return Decimal(name.strip()) if _NUMBER.fullmatch(name) else None


def _natural(name: str) -> list[tuple[int, Decimal, str]]:
    """A key that sorts the numbers in names by value."""
    parts = re.split(r"([0-9]+)", name.lower())
    return [
        (0, Decimal(part), "") if i % 2 else (1, Decimal(0), part) for i, part in enumerate(parts)
    ]
