"""What one row of a label store holds, the logits of one image in one epoch: arithmetic alone, without torch.

Three parts follow each other: which classes are kept (none where all are), two fp16 numbers that place the quantised
values (none at 16 bits), and the values themselves.
"""

from __future__ import annotations

from typing import NamedTuple

FP16 = 2  # bytes


class Record(NamedTuple):
    """Bytes of a row's parts."""

    places: int  # of the kept classes
    bitmap: bool  # one bit a class, where that takes fewer bytes than an index each
    span: int  # of the two numbers between which values are quantised
    values: int

    @property
    def bytes(self) -> int:
        """Length of the row."""
        return self.places + self.span + self.values


def packed(count: int, bits: int) -> int:
    """Bytes of `count` values of `bits` each; 1, 4 and 8 bits share bytes, the last of which may be part empty."""
    return -(-count * bits // 8)


def record(classes: int, bits: int = 16, top_k: int = 0) -> Record:
    """The parts of a row of `classes` logits kept in `bits` each; of the `top_k` largest alone, or of all (0).

    >>> record(100).bytes, record(100, bits=8).bytes, record(100, bits=8, top_k=10).bytes
    (200, 104, 24)
    """
    kept = top_k or classes
    if not top_k:
        places, bitmap = 0, False
    else:
        indices = kept * (1 if classes <= 256 else 2)
        bitmap = packed(classes, 1) < indices or classes > 2**16  # which two bytes cannot count
        places = packed(classes, 1) if bitmap else indices
    return Record(places, bitmap, 0 if bits == 16 else 2 * FP16, packed(kept, bits))
