"""Codecs: a row's bytes, the error of decoded logits, and what leaves a softmax unchanged."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from cda.config.label_rows import row_parts
from cda.data.label_codec import Codec, pack_bits, unpack_bits

torch.set_num_threads(1)

HALF = 2**-11  # largest relative error of rounding to fp16
SHAPES = [
    (10, 0),
    (10, 3),
    (10, 9),
    (100, 0),
    (100, 1),
    (100, 10),
    (100, 50),
    (300, 4),
    (300, 150),
    (1000, 20),
]
CODECS = [Codec(classes, bits, top_k, 20.0) for classes, top_k in SHAPES for bits in (16, 8, 4)]


def named(codec: Codec) -> str:
    return f"{codec.classes}-{codec.bits}-{codec.top_k}"


def logits_of(classes: int, rows: int = 40, seed: int = 0) -> Tensor:
    """Logits as a trained network's: some classes stand out, rows differ in level and in spread."""
    draws = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=draws) * torch.linspace(0.5, 4, rows)[:, None]
    logits += 6 * torch.rand(rows, classes, generator=draws) ** 12
    return logits + torch.linspace(-9, 9, rows)[:, None]


def share(logits: Tensor, chosen: Tensor, temperature: float) -> Tensor:
    """Log-odds [n] of `chosen` [n, classes] against the other classes, in float64."""
    scaled = logits.double() / temperature
    inside = scaled.masked_fill(~chosen, -torch.inf).logsumexp(1)
    return inside - scaled.masked_fill(chosen, -torch.inf).logsumexp(1)


def largest(logits: Tensor, count: int) -> Tensor:
    """Whether a class is among the `count` largest, [n, classes]."""
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(
        1, logits.topk(count, dim=1).indices, True
    )


# What a row takes
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "bits", "top_k", "parts"),
    [
        (100, 16, 0, (0, False, 0, 200)),
        (100, 8, 0, (0, False, 4, 100)),
        (101, 4, 0, (0, False, 4, 51)),  # two a byte, the last alone
        (100, 8, 5, (5, False, 4, 5)),
        (100, 8, 13, (13, False, 4, 13)),  # an index each, or a bit a class: 13 bytes
        (100, 8, 14, (13, True, 4, 14)),
        (100, 16, 50, (13, True, 0, 100)),
        (256, 8, 5, (5, False, 4, 5)),
        (257, 4, 5, (10, False, 4, 3)),
        (1000, 8, 20, (40, False, 4, 20)),
        (1000, 4, 100, (125, True, 4, 50)),
        (10450, 8, 20, (40, False, 4, 20)),
        (70000, 16, 2, (8750, True, 0, 4)),  # two bytes count to 65,535
    ],
)
def test_a_row_takes_what_its_parts_take(classes, bits, top_k, parts):
    assert tuple(row_parts(classes, bits, top_k)) == parts
    assert row_parts(classes, bits, top_k).bytes == parts[0] + sum(parts[2:])


@pytest.mark.parametrize("codec", CODECS, ids=named)
def test_rows_are_as_long_as_computed(codec):
    rows = codec.encode(logits_of(codec.classes))
    assert rows.shape == (40, codec.width)
    assert rows.element_size() * codec.width == codec.parts.bytes
    assert rows.numpy().dtype == codec.dtype
    decoded = codec.decode(rows)
    assert (decoded.shape, decoded.dtype) == ((40, codec.classes), torch.float32)


@pytest.mark.parametrize("codec", CODECS, ids=named)
def test_nothing_waits_for_the_device(codec):
    """A tensor without values cannot be looked into."""
    rows = codec.encode(torch.empty(7, codec.classes, device="meta"))
    assert rows.shape == (7, codec.width)
    assert codec.decode(rows).shape == (7, codec.classes)


@pytest.mark.parametrize(("bits", "top_k"), [(8, 0), (4, 0), (8, 10), (4, 50), (16, 10)])
def test_decoding_compiles_as_one(bits, top_k):
    """A compiled training step decodes its labels itself."""
    codec = Codec(100, bits, top_k, 20.0)
    rows = codec.encode(logits_of(100))
    torch.compiler.reset()
    compiled = torch.compile(codec.decode, fullgraph=True, backend="eager")
    assert torch.equal(compiled(rows), codec.decode(rows))


@pytest.mark.parametrize("codec", CODECS, ids=named)
def test_a_row_is_its_own(codec):
    """Whatever stands beside it, so that rows can be read in any order and in any number."""
    logits = logits_of(codec.classes)
    rows = codec.encode(logits)
    decoded = codec.decode(rows)
    chosen = [7, 0, 39, 7]
    assert torch.equal(codec.decode(rows[chosen]), decoded[chosen])
    for index in chosen:
        assert torch.equal(codec.decode(rows[index : index + 1])[0], decoded[index])
        assert torch.equal(codec.decode(codec.encode(logits[index : index + 1]))[0], decoded[index])


# How far decoded logits may be off
# --------------------------------------------------------------------------------------------------


def test_plain_rows_are_the_logits_in_fp16():
    logits = logits_of(100)
    assert torch.equal(Codec(100).encode(logits), logits.half())
    assert torch.equal(Codec(100).decode(logits.half()), logits.half().float())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("classes", [10, 101, 1000])
def test_quantised_logits_are_off_by_half_a_step_at_most(bits, classes):
    logits = logits_of(classes)
    decoded = Codec(classes, bits).decode(Codec(classes, bits).encode(logits))
    low, high = logits.amin(1), logits.amax(1)
    rounded = low.abs() * HALF  # the smallest is kept as fp16
    step = (high - low + rounded) / (2**bits - 1) * (1 + 2**-10) * (1 + HALF)
    bound = torch.maximum(step / 2, rounded) + 1e-5
    assert bool(((decoded - logits).abs().amax(1) <= bound).all())
    assert len(decoded[0].unique()) <= 2**bits
    assert len(decoded[0].unique()) > min(classes, 2**bits) / 4


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("level", [2049.3, -2050.7])
def test_logits_whose_smallest_fp16_cannot_hold_are_off_by_its_rounding(bits, level):
    logits = level + torch.linspace(0, 0.4, 10)[None]
    decoded = Codec(10, bits).decode(Codec(10, bits).encode(logits))
    assert (decoded - logits).abs().max() <= abs(level) * HALF + 0.4 / (2**bits - 1)


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize(("classes", "top_k"), [shape for shape in SHAPES if shape[1]])
def test_the_largest_logits_keep_their_distances(bits, classes, top_k):
    codec, logits = Codec(classes, bits, top_k, 20.0), logits_of(classes)
    decoded, stored = codec.decode(codec.encode(logits)), largest(logits, top_k)
    exact_top, found = logits[stored].view(-1, top_k), decoded[stored].view(-1, top_k)
    exact_top, found = (values - values.amin(1, keepdim=True) for values in (exact_top, found))
    error = (found - exact_top).abs().amax(1)
    if bits == 16:  # each excess over the others' logit was rounded to fp16
        assert bool((error <= 2 * HALF * decoded.amax(1) + 1e-6).all())
    else:  # of the smallest kept nothing is rounded here
        step = exact_top.amax(1) / (2**bits - 1) * (1 + 2**-10) * (1 + HALF)
        assert bool((error <= step / 2 + 1e-5).all())


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize(("classes", "top_k"), [shape for shape in SHAPES if shape[1]])
@pytest.mark.parametrize("temperature", [1.0, 4.0, 30.0])
def test_the_other_classes_share_exactly_their_total(bits, classes, top_k, temperature):
    codec, logits = Codec(classes, bits, top_k, temperature), logits_of(classes)
    decoded, stored = codec.decode(codec.encode(logits)), largest(logits, top_k)
    others = decoded[~stored].view(-1, classes - top_k)
    assert bool((others == others[:, :1]).all())
    exact, found = share(logits, stored, temperature), share(decoded, stored, temperature)
    most = (
        decoded[stored].view(-1, top_k).abs().amax(1)
    )  # over the others, who are 0; rounded to fp16
    assert bool(((found - exact).abs() <= most * HALF / temperature + 2e-6).all())


def test_the_share_is_exact_at_its_temperature_and_no_other():
    logits, stored = logits_of(100), largest(logits_of(100), 10)
    decoded = Codec(100, 8, 10, 4.0).decode(Codec(100, 8, 10, 4.0).encode(logits))
    off = [
        (share(decoded, stored, t) - share(logits, stored, t)).abs().max().item()
        for t in (4.0, 1.0)
    ]
    assert off[0] < 0.01 < off[1]


@pytest.mark.parametrize(
    ("classes", "top_k"), [(100, 5), (100, 14), (256, 3), (257, 3), (40000, 3), (70000, 2)]
)
def test_the_places_are_those_of_the_largest(classes, top_k):
    """Indices of one byte, of two bytes on either side of 32,768, and bitmaps.

    First and last class among them.
    """
    logits = torch.zeros(3, classes)
    for row, places in enumerate(
        [range(top_k), range(classes - top_k, classes), range(1, classes, classes // top_k)]
    ):
        logits[row, list(places)[:top_k]] = torch.arange(top_k) + 1.0
    for bits in (16, 8):
        codec = Codec(classes, bits, top_k, 1.0)
        decoded = codec.decode(codec.encode(logits))
        assert torch.equal(largest(decoded, top_k), logits > 0)
        assert torch.equal(decoded.argsort(1)[:, -top_k:], logits.argsort(1)[:, -top_k:])


@pytest.mark.parametrize(
    "codec", [Codec(10, bits, k, 20.0) for bits, k in itertools.product((16, 8, 4), (0, 1, 3))]
)
def test_rows_without_a_span_are_no_division_by_zero(codec):
    for level in (0.0, 5.0, -3.0):
        decoded = codec.decode(codec.encode(torch.full((2, 10), level)))
        assert torch.allclose(
            decoded, torch.full((2, 10), 0.0 if codec.top_k else level), atol=1e-4
        )


def test_fewer_bits_and_fewer_classes_lose_more():
    logits = logits_of(100, rows=200)

    def lost(bits: int, top_k: int) -> float:
        codec = Codec(100, bits, top_k, 20.0)
        decoded = codec.decode(codec.encode(logits))
        exact, found = (
            torch.log_softmax(values.double() / 20, dim=1) for values in (logits, decoded)
        )
        return float((exact.exp() * (exact - found)).sum(1).mean())

    assert 0 <= abs(lost(16, 0)) < lost(8, 0) < lost(4, 0)
    assert lost(8, 90) < lost(8, 50) < lost(8, 10)


def test_half_precision_logits_are_taken_as_they_are():
    logits = logits_of(100).bfloat16()
    for codec in (Codec(100), Codec(100, 8), Codec(100, 8, 10, 20.0)):
        assert torch.equal(codec.encode(logits), codec.encode(logits.float()))


# Bits
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "count"), [*itertools.product((1, 2, 4, 8), (1, 7, 8, 9))])
def test_packed_numbers_come_back(bits, count):
    values = torch.randint(0, 2**bits, (5, count), dtype=torch.uint8)
    packed = pack_bits(values, bits)
    assert packed.shape == (5, -(-count * bits // 8))
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack_bits(packed, bits, count), values)


def test_the_first_of_a_byte_is_in_its_lowest_bits():
    assert pack_bits(torch.tensor([[1, 2, 3]], dtype=torch.uint8), 4).tolist() == [[0x21, 0x03]]
    assert pack_bits(
        torch.tensor([[1, 0, 0, 0, 0, 0, 0, 0, 1]], dtype=torch.uint8), 1
    ).tolist() == [[1, 1]]
