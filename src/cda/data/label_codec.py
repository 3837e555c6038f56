"""Codecs of soft labels: rows of logits to rows of bytes and back, batched on any device.

Nothing here waits for the device. Post-training sees logits only through a softmax at its
temperature T, so a constant added to a row changes nothing. `top_k` uses that: it stores the
largest logits relative to one number that all other classes share, chosen so that the others have
their exact total share of the softmax at T. The stored logits are rounded before that number is
computed, so rounding to 8 or 4 bits does not move the share either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cda.config.label_rows import FP16, RowParts, row_parts

WIDER = 1 + 2**-10  # a step rounded to fp16 (relative error 2⁻¹¹) still spans the row


@dataclass(frozen=True)
class Codec:
    """The storage of a row of `classes` logits: `bits` each, of all or of the `top_k` largest.

    `temperature` is post-training's T, which encoding `top_k` needs.
    """

    classes: int
    bits: int = 16
    top_k: int = 0
    temperature: float = 1.0

    @property
    def parts(self) -> RowParts:
        """Bytes of the parts of a row."""
        return row_parts(self.classes, self.bits, self.top_k)

    @property
    def plain(self) -> bool:
        """Whether rows are the logits themselves, as fp16."""
        return self.bits == 16 and not self.top_k

    @property
    def dtype(self) -> type[np.generic]:
        """The type of a row's elements: fp16 logits, or bytes."""
        return np.float16 if self.plain else np.uint8

    @property
    def width(self) -> int:
        """Length of a row, in its dtype."""
        return self.classes if self.plain else self.parts.bytes

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
        largest = logits.gather(1, places)
        even, temperature = self._even(logits, places), self.temperature
        if self.bits == 16:
            return torch.cat([self._write_places(places), _bytes((largest - even).half())], dim=1)
        scale, steps = self._quantised(largest - largest.amin(1, keepdim=True))
        rounded = scale.float() * steps
        shift = _log_sum(largest / temperature) - _log_sum(rounded / temperature)
        low = (temperature * shift - even).half()
        parts = [
            self._write_places(places),
            _bytes(low),
            _bytes(scale),
            pack_bits(steps, self.bits),
        ]
        return torch.cat(parts, dim=1)

    def decode(self, rows: Tensor) -> Tensor:
        """Float32 logits [n, classes] of rows [n, width]; with `top_k` up to a constant a row."""
        if self.plain:
            return rows.float()
        start, count = self.parts.places, self.top_k or self.classes
        values = rows[:, start + self.parts.span :]
        if self.bits == 16:
            stored = _numbers(values)
        else:
            low, scale = _numbers(rows[:, start : start + 2 * FP16]).unbind(1)
            stored = low[:, None] + scale[:, None] * unpack_bits(values, self.bits, count)
        return self._spread(rows[:, :start], stored) if self.top_k else stored

    def _quantised(self, above: Tensor) -> tuple[Tensor, Tensor]:
        """Step size [n, 1], fp16, and each of the values `above` >= 0 [n, m] in steps, uint8."""
        most = 2**self.bits - 1
        scale = (above.amax(1, keepdim=True) / most * WIDER).half()
        # The step size of a row of equal values is 0.
        steps = above / scale.float().clamp_min(torch.finfo(torch.float32).tiny)
        return scale, steps.round_().clamp_(0, most).to(torch.uint8)

    def _even(self, logits: Tensor, places: Tensor) -> Tensor:
        """The logit [n, 1] that gives all other classes their total share of the softmax at T."""
        others = logits.scatter(1, places, -math.inf) / self.temperature
        return self.temperature * (_log_sum(others) - math.log(self.classes - self.top_k))

    def _write_places(self, places: Tensor) -> Tensor:
        """Ascending class indices [n, top_k] as bytes."""
        if self.parts.bitmap:
            mask = torch.zeros(len(places), self.classes, dtype=torch.uint8, device=places.device)
            return pack_bits(mask.scatter_(1, places, 1), 1)
        return places.to(torch.uint8) if self.classes <= 256 else _bytes(places.to(torch.int16))

    def _spread(self, places: Tensor, stored: Tensor) -> Tensor:
        """Logits [n, classes]: `stored` [n, top_k] at their places, 0 elsewhere."""
        if self.parts.bitmap:
            mask = unpack_bits(places, 1, self.classes)
            order = mask.cumsum(1, dtype=torch.int64) - 1  # a stored class's position in `stored`
            order.clamp_(0, self.top_k - 1)  # a foreign store's mask may have any number of bits
            return stored.gather(1, order) * mask
        index = places if self.classes <= 256 else _aligned(places).view(torch.int16).int() & 0xFFFF
        index = index.long().clamp_max_(self.classes - 1)  # a foreign store may name any class
        return stored.new_zeros(len(stored), self.classes).scatter_(1, index, stored)


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Numbers [n, m] below 2^bits as bytes, the first in the lowest bits.

    `bits` is 1, 2, 4 or 8.
    """
    if bits == 8:
        return values
    each = 8 // bits
    values = torch.nn.functional.pad(values, (0, -values.shape[1] % each)).unflatten(1, (-1, each))
    return (values << _shifts(bits, values.device)).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """The `count` numbers of each row, uint8, from `pack_bits`."""
    if bits == 8:
        return packed
    values = (packed[..., None] >> _shifts(bits, packed.device)) & (2**bits - 1)
    return values.flatten(1)[:, :count]


def _shifts(bits: int, device: torch.device) -> Tensor:
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=device)


def _bytes(numbers: Tensor) -> Tensor:
    """Numbers [n, m] of two bytes as bytes [n, 2m]."""
    return numbers.contiguous().view(torch.uint8)


def _numbers(packed: Tensor) -> Tensor:
    """The fp16 numbers in bytes [n, 2m], float32 [n, m]."""
    return _aligned(packed).view(torch.float16).float()


def _aligned(packed: Tensor) -> Tensor:
    """A copy that starts at an even address, as numbers of two bytes must."""
    return packed.clone(memory_format=torch.contiguous_format)


def _log_sum(values: Tensor) -> Tensor:
    return values.logsumexp(1, keepdim=True)
