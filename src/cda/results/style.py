"""How methods and networks look in every figure: names, colours, sizes."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.artist import Artist
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from cda.config import names


class Style(NamedTuple):
    """A method's label, colour and marker."""

    label: str
    colour: str
    marker: str = "o"


# Colours of Okabe and Ito, distinct to any colour vision. CDA is the cosine curriculum, so they
# share a colour.
STYLES = {
    method: Style(names.method_label(method), colour, marker)
    for method, colour, marker in (
        ("cda", "#d55e00", "o"),
        ("sre2l", "#0072b2", "s"),
        ("random", "#7f7f7f", "x"),
        ("cl-step", "#009e73", "^"),
        ("cl-linear", "#cc79a7", "D"),
        ("cl-cosine", "#d55e00", "o"),
    )
}
OTHERS = ("#56b4e9", "#e69f00", "#000000", "#999933", "#882255")
WIDTH = 6.5  # inches of a text column; every text has at least 8 points at this width
LETTER = 0.07  # inches that a letter of 8 points takes at most, on average
FAINT = "0.45"


def style_of(method: str) -> Style:
    """A method's style in every figure; the colour of an unlisted one follows from its name.

    >>> style_of("cda").label, style_of("mine").label, style_of("mine") == style_of("mine")
    ('CDA', 'mine', True)
    """
    name = names.method_label(method)
    return STYLES.get(method) or Style(name, OTHERS[zlib.crc32(method.encode()) % len(OTHERS)], "v")


def network_name(name: str) -> str:
    r"""A network's label; a stand-in names the replaced network on a second line.

    >>> network_name("convnet3 (for resnet50)")
    'ConvNet-3\n(for ResNet-50)'
    """
    ran, _, declared = name.removesuffix(")").partition(" (for ")
    return f"{names.label(ran)}\n(for {names.label(declared)})" if declared else names.label(ran)


def lighten(colour: str, share: float = 0.45) -> tuple[float, float, float]:
    """A colour mixed with as much white as `share`."""
    red, green, blue = (1 - (1 - part) * (1 - share) for part in to_rgb(colour))
    return red, green, blue


def add_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Add a legend below all panels, in two rows if one would be wider than the figure."""
    if handles:
        wide = (
            sum(LETTER * len(str(handle.get_label())) + 0.4 for handle in handles)
            > figure.get_figwidth()
        )
        figure.legend(
            handles=handles, loc="outside lower center", ncols=math.ceil(len(handles) / (1 + wide))
        )
