"""Every mode of pixels is read rightly or refused in words that name it, within bounded memory."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cda.data.pixels import BadImageError, decode_image, read_bytes, resize_and_crop

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
WIDE = GREY.astype(np.uint16) << 8 | GREY  # the same greys in 16 bits


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(content: bytes) -> np.ndarray:
    image = decode_image(content)
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(content: bytes) -> np.ndarray:
    found = pixels(content)
    assert (found == found[..., :1]).all()
    return found[..., 0]


def png(width: int, height: int, bits: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG with an unusual header, or with a chunk that Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"tRNS", extra) if extra else b""]
    parts += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    source = str(Path(__file__).parents[3] / "src")
    path = os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


# Grey of more than 8 bits
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_grey_of_16_bits_is_not_clipped_to_white(kind):
    np.testing.assert_array_equal(grey(encoded(Image.fromarray(WIDE), kind)), GREY)


def test_grey_of_16_bits_in_either_byte_order():
    big = Image.frombytes("I;16B", (16, 16), WIDE.astype(">u2").tobytes())
    assert Image.open(io.BytesIO(encoded(big, "TIFF"))).mode == "I;16B"
    np.testing.assert_array_equal(grey(encoded(big, "TIFF")), GREY)


def test_grey_of_12_bits_in_a_pgm_and_a_tiff():
    pgm = b"P5\n16 16\n4095\n" + (WIDE >> 4).astype(">u2").tobytes()
    np.testing.assert_array_equal(grey(pgm), GREY)
    content = encoded(Image.fromarray(WIDE >> 4), "TIFF")
    image = Image.open(io.BytesIO(content))
    tag = struct.pack("<HHII", 258, 3, 1, 16)  # BitsPerSample of 16, which becomes 12
    assert content.count(tag) == 1
    assert image.mode == "I;16"
    packed = (WIDE >> 4).astype(np.uint32).reshape(-1, 2)
    bits = np.stack(
        [packed[:, 0] >> 4, (packed[:, 0] & 15) << 4 | packed[:, 1] >> 8, packed[:, 1] & 255], 1
    )
    start = image.tag_v2[273][0]
    changed = content.replace(tag, struct.pack("<HHII", 258, 3, 1, 12))
    changed = changed[:start] + bits.astype(np.uint8).tobytes() + changed[start + bits.size :]
    np.testing.assert_array_equal(grey(changed), GREY)


def test_grey_of_16_bits_in_which_0_is_white():
    content = encoded(Image.fromarray(65535 - WIDE), "TIFF", tiffinfo={262: 0})
    np.testing.assert_array_equal(grey(content), GREY)


def test_colour_of_16_bits_has_its_upper_8():
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in WIDE)
    np.testing.assert_array_equal(grey(png(16, 16, 16, 2, rows)), GREY)
    ppm = b"P6\n16 16\n65535\n" + np.repeat(WIDE, 3).astype(">u2").tobytes()
    np.testing.assert_array_equal(grey(ppm), GREY)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_reaches_white(bits):
    rows = b"".join(b"\0" + bytes([byte]) for byte in (0, 255))
    assert np.unique(grey(png(8 // bits, 2, bits, 0, rows))).tolist() == [0, 255]


@pytest.mark.parametrize(
    ("image", "kind", "reason"),
    [
        (Image.new("F", (4, 4)), "TIFF", "floats, whose range is unknown"),
        (Image.new("I", (4, 4)), "TIFF", "signed or 32-bit integers, whose range is unknown"),
    ],
)
def test_numbers_without_a_range_are_refused(image, kind, reason):
    with pytest.raises(BadImageError, match=reason):
        decode_image(encoded(image, kind))
    with pytest.raises(BadImageError, match="floats"):
        decode_image(b"Pf\n1 1\n-1.0\n" + struct.pack("<f", 0.5))


# Colour
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_not_inverted(kind):
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    content = encoded(red, kind)
    assert Image.open(io.BytesIO(content)).mode == "CMYK"
    assert (b"Adobe" in content) == (kind == "JPEG")
    assert np.abs(pixels(content).astype(int) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize("mode", ["YCbCr", "LAB"])
def test_other_colour_spaces_of_tiff(mode):
    image = Image.new("RGB", (4, 4), (200, 40, 90)).convert(mode)
    content = encoded(image, "TIFF")
    assert np.abs(pixels(content).astype(int) - (200, 40, 90)).max() <= 6


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_usual_modes_are_as_pillow_converts_them(mode, kind):
    draws = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(draws).convert(mode), kind)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    np.testing.assert_array_equal(pixels(content), expected)


# Transparency
# --------------------------------------------------------------------------------------------------

HIDDEN, CLEAR = (10, 200, 30), (0, 0, 255)


def two_pixels(mode: str) -> Image.Image:
    """A pixel that is visible, and a transparent one with a colour below."""
    image = Image.new("RGBA", (2, 1), (*CLEAR, 255))
    image.putpixel((1, 0), (*HIDDEN, 0))
    return image.convert(mode)


def palette(transparency: int | bytes) -> bytes:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([*CLEAR, *HIDDEN])
    image.putpixel((1, 0), 1)
    return encoded(image, "PNG", transparency=transparency)


@pytest.mark.parametrize(
    "content",
    [
        encoded(two_pixels("RGBA"), "PNG"),
        encoded(two_pixels("RGBA"), "TIFF"),
        encoded(two_pixels("RGBA"), "WEBP", lossless=True, exact=True),
        palette(1),
        palette(b"\xff\x00"),
        png(2, 1, 8, 2, b"\0" + bytes([*CLEAR, *HIDDEN]), struct.pack(">3H", *HIDDEN)),
    ],
    ids=["png", "tiff", "webp", "palette index", "palette bytes", "transparent colour"],
)
def test_what_is_transparent_is_white(content):
    np.testing.assert_array_equal(pixels(content), [[CLEAR, (255, 255, 255)]])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_transparent_grey_is_white(kind):
    image = Image.merge("LA", [Image.new("L", (2, 1), 40), Image.new("L", (2, 1), 0)])
    assert (grey(encoded(image, kind)) == 255).all()
    gif = encoded(Image.new("L", (2, 1), 40), "GIF", transparency=40)
    assert (grey(gif) == 255).all()
    assert grey(png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 257, 300), struct.pack(">H", 257)))[
        0
    ].tolist() == [255, 1]


def test_half_transparent_is_mixed_with_white():
    image = Image.new("RGBA", (1, 1), (0, 100, 200, 128))
    assert np.abs(pixels(encoded(image, "PNG"))[0, 0].astype(int) - (127, 177, 227)).max() <= 1


def test_opaque_alpha_changes_nothing():
    draws = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    draws[..., 3] = 255
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(draws), "PNG")), draws[..., :3])


def test_transparent_colour_of_16_bits_is_refused():
    rows = b"\0" + struct.pack(">3H", 65535, 1, 2)
    with pytest.raises(BadImageError, match="16-bit colour with a transparent colour"):
        decode_image(png(1, 1, 16, 2, rows, struct.pack(">3H", 65535, 1, 2)))


# Files
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_of_several_frames_the_first_is_read(kind):
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    content = encoded(first, kind, save_all=True, append_images=[second])
    assert np.abs(pixels(content).astype(int) - (255, 0, 0)).max() <= 3


def test_rotation_in_exif_is_not_applied():
    exif = Image.Exif()
    exif[274] = 6
    content = encoded(Image.new("RGB", (4, 2)), "JPEG", exif=exif)
    assert decode_image(content).size == (4, 2)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000"])
def test_truncated_files_are_refused(kind):
    draws = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(draws), kind)
    assert decode_image(content).size == (64, 64)
    with pytest.raises(BadImageError, match="that do not decode"):
        decode_image(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (b"<html>404</html>", "16 bytes that do not decode"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n", "that do not decode"),
        (png(30_000, 30_000, 8, 2, b""), "900000000 pixels, more than 89,478,485"),
        (png(12_000, 12_000, 8, 2, b""), "12000×12000 pixels, more than 89,478,485"),
        (png(1, 1, 8, 2, b""), "that do not decode"),
    ],
    ids=["empty", "page", "postscript", "bomb", "large", "no pixels"],
)
def test_what_is_no_image_of_a_sensible_size_is_refused(content, reason):
    with pytest.raises(BadImageError, match=reason):
        decode_image(content)


def test_a_large_image_prints_no_warning_of_pillow(tmp_path):
    (tmp_path / "large.png").write_bytes(png(10_000, 10_000, 8, 2, b""))
    code = (
        "from cda.data.pixels import *\n"
        f"try: decode_image(read_bytes({str(tmp_path / 'large.png')!r}))\n"
        "except BadImageError as error: print(error)"
    )
    done = run_python(code)
    assert (done.stdout[:18], done.stderr) == ("10000×10000 pixels", "")


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "sparse.png"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 2**40)
    with pytest.raises(BadImageError, match="a file of 1099511627776 bytes"):
        read_bytes(str(path))


# Sizes
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1), (30_000, 2), (3, 25_000)])
def test_thin_images_are_cropped_before_they_are_resized(shape):
    """In a process of its own, whose peak of memory is measured: resized first, 3 GB."""
    code = (
        "import resource, sys; import numpy as np; from PIL import Image;"
        "from cda.data.pixels import resize_and_crop;"
        f"image = Image.fromarray(np.zeros(({shape[0]}, {shape[1]}, 3), np.uint8));"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "assert resize_and_crop(image, 256, 224).size == (224, 224);"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = run_python(code)
    assert int(done.stdout) < 100  # MB


def test_cropping_first_gives_what_resizing_first_gives(monkeypatch):
    from cda.data import pixels as module

    draws = np.random.default_rng(0).integers(0, 256, (12, 900, 3), dtype=np.uint8)
    first = np.asarray(resize_and_crop(Image.fromarray(draws), 32, 24)).astype(int)
    monkeypatch.setattr(module, "LARGEST_RESIZED", 0)
    then = np.asarray(resize_and_crop(Image.fromarray(draws), 32, 24))
    assert np.abs(first - then).max() <= 1
