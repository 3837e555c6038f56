"""How soft labels are kept: rows of logits to rows of bytes and back, batched on any device without
a wait for it.

Post-training sees logits through a softmax at its temperature T alone, so a constant added to a row
changes nothing. `top_k` uses that: the logits kept are told relative to the one that all others
share. That one gives the others their exact total share of the softmax at T, and since every kept
number is rounded before the shares are reckoned, rounding to 8 or 4 bits does not move it either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cda.config.recipe import FP16, Record, record

WIDER = 1 + 2**-10  # a step rounded to fp16 (relative error 2⁻¹¹) still spans the row


@dataclass(frozen=True)
class Codec:
    """How a row of `classes` logits is kept: `bits` a logit, all or the `top_k` largest.

    T is for encoding top_k.
    """

    classes: int
    bits: int = 16
    top_k: int = 0
    temperature: float = 1.0

    @property
    def record(self) -> Record:
        """The parts of a row."""
        return record(self.classes, self.bits, self.top_k)

    @property
    def plain(self) -> bool:
        """Whether rows are the logits themselves, as fp16."""
        return self.bits == 16 and not self.top_k

    @property
    def dtype(self) -> type[np.generic]:
        """Of a row: fp16 logits, or bytes."""
        return np.float16 if self.plain else np.uint8

    @property
    def width(self) -> int:
        """Length of a row, in its dtype."""
        return self.classes if self.plain else self.record.bytes

    def encode(self, logits: Tensor) -> Tensor:
        """Rows [n, width] of float32 logits [n, classes]."""
        logits = logits.float()
        if self.plain:
            return logits.half()
        if not self.top_k:
            low = logits.amin(1, keepdim=True).half()
            scale, steps = self._quantised(logits - low.float())
            return torch.cat([_bytes(low), _bytes(scale), pack_bits(steps, self.bits)], dim=1)
        places = logits.topk(self.top_k, dim=1).indices.sort(dim=1).values
        kept = logits.gather(1, places)
        even, temperature = self._even(logits, places), self.temperature
        if self.bits == 16:
            return torch.cat([self._write_places(places), _bytes((kept - even).half())], dim=1)
        scale, steps = self._quantised(kept - kept.amin(1, keepdim=True))
        rounded = scale.float() * steps
        low = temperature * (_log_sum(kept / temperature) - _log_sum(rounded / temperature)) - even
        return torch.cat(
            [
                self._write_places(places),
                _bytes(low.half()),
                _bytes(scale),
                pack_bits(steps, self.bits),
            ],
            dim=1,
        )

    def decode(self, rows: Tensor) -> Tensor:
        """Float32 logits [n, classes] of rows [n, width]; with `top_k` up to a constant a row."""
        if self.plain:
            return rows.float()
        start, count = self.record.places, self.top_k or self.classes
        values = rows[:, start + self.record.span :]
        if self.bits == 16:
            kept = _numbers(values)
        else:
            low, scale = _numbers(rows[:, start : start + 2 * FP16]).unbind(1)
            kept = low[:, None] + scale[:, None] * unpack_bits(values, self.bits, count)
        return self._spread(rows[:, :start], kept) if self.top_k else kept

    def _quantised(self, above: Tensor) -> tuple[Tensor, Tensor]:
        """Step [n, 1], fp16, and how many of them each of the values `above` 0 [n, m] is, uint8."""
        most = 2**self.bits - 1
        scale = (above.amax(1, keepdim=True) / most * WIDER).half()
        steps = above / scale.float().clamp_min(
            torch.finfo(torch.float32).tiny
        )  # of a row of equal values it is 0
        return scale, steps.round_().clamp_(0, most).to(torch.uint8)

    def _even(self, logits: Tensor, places: Tensor) -> Tensor:
        """The logit [n, 1] that, shared by all classes but `places`, keeps their total share of the
        softmax at T.
        """
        others = logits.scatter(1, places, -math.inf)
        return self.temperature * (
            _log_sum(others / self.temperature) - math.log(self.classes - self.top_k)
        )

    def _write_places(self, places: Tensor) -> Tensor:
        """Ascending class indices [n, top_k] as bytes."""
        if self.record.bitmap:
            mask = torch.zeros(len(places), self.classes, dtype=torch.uint8, device=places.device)
            return pack_bits(mask.scatter_(1, places, 1), 1)
        return places.to(torch.uint8) if self.classes <= 256 else _bytes(places.to(torch.int16))

    def _spread(self, places: Tensor, kept: Tensor) -> Tensor:
        """Logits [n, classes]: `kept` [n, top_k] at their places, 0 elsewhere."""
        if self.record.bitmap:
            mask = unpack_bits(places, 1, self.classes)
            order = (
                mask.cumsum(1, dtype=torch.int64) - 1
            )  # which of the kept a class is, where it is
            order.clamp_(0, self.top_k - 1)  # a foreign store's mask may keep any number
            return kept.gather(1, order) * mask
        index = places if self.classes <= 256 else _whole(places).view(torch.int16).int() & 0xFFFF
        index = index.long().clamp_max_(self.classes - 1)  # so may its indices name any class
        return kept.new_zeros(len(kept), self.classes).scatter_(1, index, kept)


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Whole numbers [n, m] below 2^bits as bytes, the first in the lowest bits.

    `bits` is 1, 2, 4 or 8.
    """
    if bits == 8:
        return values
    each = 8 // bits
    values = torch.nn.functional.pad(values, (0, -values.shape[1] % each)).unflatten(1, (-1, each))
    return (values << _shifts(bits, values.device)).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """The `count` whole numbers a row, uint8, that `pack` was given."""
    if bits == 8:
        return packed
    values = (packed[..., None] >> _shifts(bits, packed.device)) & (2**bits - 1)
    return values.flatten(1)[:, :count]


def _shifts(bits: int, device: torch.device) -> Tensor:
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=device)


def _bytes(numbers: Tensor) -> Tensor:
    """Numbers [n, m] of two bytes as bytes [n, 2m]."""
    return numbers.contiguous().view(torch.uint8)


def _numbers(some: Tensor) -> Tensor:
    """Bytes [n, 2m] as the fp16 numbers that they are, float32 [n, m]."""
    return _whole(some).view(torch.float16).float()


def _whole(some: Tensor) -> Tensor:
    """A copy that starts at an even address, as numbers of two bytes must."""
    return some.clone(memory_format=torch.contiguous_format)


def _log_sum(values: Tensor) -> Tensor:
    return values.logsumexp(1, keepdim=True)
