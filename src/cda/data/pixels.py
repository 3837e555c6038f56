"""An image file as 8-bit RGB pixels: which formats are read, and what each mode of Pillow becomes.

- Colour and grey of 8 bits or fewer, palettes, CMYK, YCbCr and LAB: as Pillow converts them.
- Grey of 9 to 16 bits: the upper 8 bits of its range, as Pillow reads 16-bit colour. (Pillow's own
  conversion clips such grey to white.)
- Transparency of any sort: over white, as a viewer displays it.
- 32-bit integers and floats have no known range: refused.

Of an animation or a file of several pages the first is read. Rotation in EXIF is not applied: the
authors' torchvision loader does not either, so a model sees the same pixels here and there.
"""

from __future__ import annotations

import os
import re
import warnings
from io import BytesIO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

# Pillow decodes more. EPS and WMF run programs, and TGA and ICO take bytes that are no image.
FORMATS = (
    *("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"),
    *("AVIF", "JPEG2000", "QOI", "PCX", "SGI"),
)
ENDINGS = {
    *("png", "apng", "jpg", "jpeg", "jpe", "jfif", "mpo", "webp", "bmp", "gif", "tif", "tiff"),
    *("ppm", "pgm", "pbm", "pnm", "pfm", "avif", "avifs", "qoi", "pcx", "sgi"),
    *("jp2", "j2k", "j2c", "jpc", "jpf", "jpx"),
}
LARGEST_PIXELS = 2**28 // 3  # 256 MB as RGB; where Pillow warns
LARGEST_RESIZED = 2**24  # pixels, of which the crop is a part
LARGEST_FILE = 2**30  # bytes

# A size is checked here, with one line; Pillow would print a warning of its own.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class BadImageError(ValueError):
    """A file that is no image, is damaged or has pixels of unknown meaning."""


def is_image(name: str) -> bool:
    """Whether a file's name ends as those of images do.

    >>> is_image("a.JPEG"), is_image("a.tif"), is_image("a.jpg.part"), is_image("jpg")
    (True, True, False, False)
    """
    stem, dot, ending = name.rpartition(".")
    return bool(stem and dot) and ending.lower() in ENDINGS


def read_bytes(path: str) -> bytes:
    """The bytes of an image file; raises OSError, or BadImageError for more than `LARGEST_FILE`."""
    with open(path, "rb") as file:
        if (size := os.fstat(file.fileno()).st_size) > LARGEST_FILE:
            raise BadImageError(f"a file of {size} bytes, more than {LARGEST_FILE}")
        return file.read()


def image_size(path: str) -> tuple[int, int]:
    """Width and height of an image file, from its first bytes; raises BadImageError."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.size
    except Exception as error:  # a damaged image can raise nearly anything
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise BadImageError(f"a file that is no image{reason}") from None


def decode_image(content: bytes) -> Image.Image:
    """The image in a file's bytes, in mode RGB and of the file's size; raises BadImageError."""
    if not content:
        raise BadImageError("an empty file")
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            require_size(image)
            return to_rgb(image)
    except BadImageError:
        raise
    except Image.DecompressionBombError as error:
        count = "".join(re.findall(r"\d+", str(error))[:1])
        raise BadImageError(f"{count} pixels, more than {LARGEST_PIXELS:,}") from None
    except Exception as error:  # a damaged image can raise nearly anything
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise BadImageError(f"{len(content)} bytes that do not decode{reason}") from None


def require_size(image: Image.Image) -> None:
    """Raise BadImageError for an image, not decoded yet, of more than `LARGEST_PIXELS`."""
    if image.width * image.height > LARGEST_PIXELS:
        raise BadImageError(
            f"{image.width}×{image.height} pixels, more than {LARGEST_PIXELS:,}: make it smaller"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened image in mode RGB; raises BadImageError where its pixels have no known meaning."""
    if image.mode.startswith(("I", "F")):
        return _from_wide_grey(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else ()
    if "transparency" in image.info and any("16" in str(tile.args) for tile in tiles):
        raise BadImageError("16-bit colour with a transparent colour: save it with 8 bits")
    rgba = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
    if rgba.getchannel("A").getextrema()[0] == 255:
        return rgba.convert("RGB")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _from_wide_grey(image: Image.Image) -> Image.Image:
    """Grey of 9 to 16 bits in mode RGB; raises BadImageError for wider numbers."""
    tags = getattr(image, "tag_v2", {})
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = "floats" if image.mode == "F" else "signed or 32-bit integers"
        raise BadImageError(f"{kind}, whose range is unknown: save it with 8 bits")
    grey = np.asarray(image)  # uint16 of any byte order, or int32
    bits = int(tags.get(258, (16,))[0])  # TIFF's BitsPerSample: 12 of cameras, stored in 16
    upper = (grey >> (bits - 8)).clip(0, 255).astype(np.uint8)
    if tags.get(262) == 0:  # TIFF's WhiteIsZero, which Pillow inverts for 8 bits alone
        upper = 255 - upper
    if "transparency" in image.info:
        upper[grey == image.info["transparency"]] = 255
    return Image.fromarray(upper).convert("RGB")


def resize_and_crop(image: Image.Image, side: int, size: int) -> Image.Image:
    """An RGB image with its shorter side resized to `side`, then its centre of `size` × `size`.

    As torchvision's Resize and CenterCrop do. Where the resized image would be huge, because the
    image is thin, only the part within the crop is resized: memory follows what is returned.
    """
    short = min(image.size)
    width, height = (side if edge == short else int(side * edge / short) for edge in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    if width * height > LARGEST_RESIZED:
        x, y = image.width / width, image.height / height
        box = (left * x, top * y, (left + size) * x, (top + size) * y)
        return image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return image.crop((left, top, left + size, top + size))
