"""Bytes of a row of stored soft labels: one image's logits in one epoch.

Plans need them without importing torch, which the codec (`cda.data.label_codec`) does.
"""

from __future__ import annotations

from typing import NamedTuple

FP16 = 2  # bytes


class RowParts(NamedTuple):
    """Bytes of the parts of a row, and whether its places are a bitmap."""

    places: int  # which classes are stored; 0 where all are
    bitmap: bool  # one bit per class, where that takes fewer bytes than an index per stored class
    span: int  # the two numbers between which values are quantised
    values: int

    @property
    def bytes(self) -> int:
        """Length of the row."""
        return self.places + self.span + self.values


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` values of `bits` each; values of fewer than 8 bits share bytes."""
    return -(-count * bits // 8)


def row_parts(classes: int, bits: int = 16, top_k: int = 0) -> RowParts:
    """The parts of a row of `classes` logits in `bits` each: the `top_k` largest, or all (0).

    >>> row_parts(100).bytes, row_parts(100, bits=8).bytes, row_parts(100, bits=8, top_k=10).bytes
    (200, 104, 24)
    """
    places, bitmap = 0, False
    if top_k:
        indices = top_k * (1 if classes <= 256 else 2)
        as_bits = packed_bytes(classes, 1)
        bitmap = as_bits < indices or classes > 2**16  # two bytes cannot count more classes
        places = as_bits if bitmap else indices
    span = 0 if bits == 16 else 2 * FP16
    return RowParts(places, bitmap, span, packed_bytes(top_k or classes, bits))
