"""A data set's file and a recipe for a folder of images and a machine, with a reason for each line.

The recipe starts from that of the paper's data set whose resolution is nearest. What differs is the
post-training, which suits a set of few classes, and the budgets: a `Level` of the machine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cda.config.settings import Dataset
from cda.config.yaml_source import Layer, Sourced, read_layer
from cda.data.intake import Survey

RESOLUTIONS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 224)  # for images of several sizes
SMALLER = 0.1  # share of the images that may be smaller than the resolution
LARGEST_IPC = 10
STREAMED = 8e9  # bytes of pixels that stages hold in memory at most
BASES = {"cifar100": 40, "tiny_imagenet": 100}  # recipes, and the resolutions up to which they hold
LARGE_BASE = "imagenet1k"
SECTIONS = ("architecture", "squeeze", "recover", "relabel", "validate")
METHODS = ("cda", "sre2l", "random")  # of the table
OMITTED = {  # steps of the paper's pictures, and values of schedules that others replace
    *("recover.snapshots", "squeeze.step_epochs", "squeeze.step_factor"),
    *("validate.momentum", "validate.warmup_epochs", "validate.warmup_factor"),
}
COLUMN = 33  # of the comments


@dataclass(frozen=True)
class Level:
    """A budget: the largest resolution, the networks' width, and the share of a full training."""

    resolution: int
    width: float
    share: float


CPU_LEVELS = (
    *(Level(64, 0.25, share) for share in (1.0, 0.7, 0.5, 0.35, 0.25)),
    *(Level(64, 0.125, share) for share in (0.25, 0.1)),
)
GPU_LEVELS = (
    *(Level(224, 1.0, share) for share in (1.0, 0.5, 0.25)),
    *(Level(128, 1.0, share) for share in (0.5, 0.25)),
    *(Level(64, 1.0, share) for share in (0.5, 0.25, 0.1)),
)


def propose_resolution(sizes: Sequence[tuple[int, int]], largest: int) -> tuple[int, str]:
    """Height and width in pixels for images of these (width, height), and the reason.

    >>> propose_resolution([(28, 28)] * 9, 64)
    (28, 'the size of all images')
    >>> propose_resolution([(640, 480), (100, 75)] * 9, 96)
    (64, 'our choice: shorter sides are 75 to 480 pixels')
    """
    if len(set(sizes)) == 1 and sizes[0][0] == sizes[0][1] <= largest:
        return sizes[0][0], "the size of all images"
    shorter = sorted(min(size) for size in sizes)
    side = min(shorter[int(SMALLER * len(shorter))], largest)
    sides = " to ".join(dict.fromkeys((f"{shorter[0]}", f"{shorter[-1]}")))
    reason = f"our choice: shorter sides are {sides} pixels"
    return max((one for one in RESOLUTIONS if one <= side), default=RESOLUTIONS[0]), reason


def complete(data: Dataset, survey: Survey, resolution: int) -> Dataset:
    """`data` with what a survey found; its mean and deviation remain."""
    ipc = min(LARGEST_IPC, survey.smallest_class)
    found = {
        "classes": survey.classes,
        "resolution": resolution,
        "train_images": survey.train_images,
        "val_images": survey.val_images,
        "compare_ipc": tuple(sorted({1, ipc})),
        "stream": survey.train_images * 3 * resolution**2 > STREAMED,
    }
    return data.model_copy(update=found)


def dataset_text(data: Dataset, survey: Survey, reason: str, split: bool) -> str:
    """The data set's file; `reason` is that of the resolution, `split` whether we held images out.

    A line that says what a default says is left out.
    """
    sample = len(survey.sample)
    images = f"{'all ' if sample == data.train_images else ''}{sample:,} training images"
    rows: list[tuple[str, Any, str]] = [
        ("name", data.name, "also its folder below data/, its recipe and its table"),
        ("layout", data.layout, "how its files are arranged"),
        ("classes", data.classes, "counted"),
        ("resolution", data.resolution, reason),
        ("mean", list(data.mean), f"of {images} at this resolution"),
        ("std", list(data.std), "likewise"),
        ("train_images", data.train_images, f"counted; {survey.smallest_class:,} or more a class"),
        ("val_images", data.val_images, "counted; every model is tested on them"),
        ("compare_ipc", list(data.compare_ipc), f"images per class in results/{data.name}.csv"),
    ]
    if data.stream:
        rows.append(("stream", True, "its pixels may not fit in memory"))
    how = "as train/<class>/ and val/<class>/ " if data.layout == "image_folder" else ""
    how += "(every fifth image of a class by name) " if split else ""
    return "".join(
        [
            "# Proposed by `cda init`. The table compares CDA, SRe²L and random real images, and\n"
            "# has the controls: the real images under the same labels, and hard labels of both.\n",
            *(_line(key, value, text) for key, value, text in rows),
            "# Printed where the images are missing: write where others find them.\n",
            f"get: lay out its images {how}in data/{data.name}\n",
        ]
    )


def recipe_text(config: Path, data: Dataset, level: Level, kind: str) -> str:
    """The recipe for a data set, a budget and a kind of device of `config/devices.yaml`."""
    base = next((name for name, top in BASES.items() if data.resolution <= top), LARGE_BASE)
    layer = dict(_base_layer(config, base))
    layer |= {
        key: Sourced(value, "", why) for key, value, why in _changes(data, level, kind, layer)
    }
    if layer["architecture.stem"].value != "small":
        layer.pop("architecture.stem_init", None)  # of the small stem alone
    head = (
        f"# Proposed by `cda init` for {data.name} on {kind}; it starts from recipes/{base}.yaml.\n"
        "# The comment on a line is its value's source. Edit what you like: `cda plan` prices it.\n"
        "# Where a mirrored image is another class (digits, letters), every flip must be 0.\n"
    )
    return head + _render(layer)


def _base_layer(config: Path, base: str) -> Iterator[tuple[str, Sourced]]:
    """A recipe's values, of the table's methods alone."""
    for key, value in read_layer(config / "recipes" / f"{base}.yaml").items():
        section, _, rest = key.partition(".")
        method, _, part = rest.partition(".")
        of_method = section == "methods" and method in METHODS
        if (section in SECTIONS or (of_method and part.partition(".")[0] in ("", "recover"))) and (
            key not in OMITTED
        ):
            known = re.sub(r"; variant [^)]*", "", value.source)  # its variants stay there
            source = f"{base}: {known}" if known else ""
            yield key, Sourced(value.value, value.where, source)


def _changes(data: Dataset, level: Level, kind: str, base: Layer) -> Iterator[tuple[str, Any, str]]:
    """What differs from the base: key, value, reason."""
    yield from _network(data, level, kind)
    yield from _squeeze(data, level, kind, base)
    yield from _recover(data, level, kind, base)
    yield from _post_training(data, level, kind, base)


def _network(data: Dataset, level: Level, kind: str) -> Iterator[tuple[str, Any, str]]:
    if kind == "cpu":
        if data.resolution > BASES["cifar100"]:
            yield "architecture.stem", "imagenet", "our choice: speed; smaller feature maps"
        yield "architecture.width", level.width, "our choice: speed; 1 is the published network"


def _squeeze(data: Dataset, level: Level, kind: str, base: Layer) -> Iterator[tuple[str, Any, str]]:
    images, usual = data.train_images or 1, base["squeeze.batch_size"].value
    # A full training: on a CPU 300,000 images, elsewhere the base's epochs or 3 million images.
    full = 3e5 / images if kind == "cpu" else max(base["squeeze.epochs"].value, 3e6 / images)
    epochs = round(min(max(level.share * full, 2), 60 if kind == "cpu" else 200))
    batch = min(usual, _power_of_two(images / 16))
    yield "squeeze.epochs", epochs, f"our choice: {epochs * images:,} images pass"
    if batch != usual:
        lr = float(f"{base['squeeze.lr'].value * batch / usual:.2g}")
        yield "squeeze.batch_size", batch, "our choice: 16 or more steps an epoch"
        yield "squeeze.lr", lr, f"our choice: {base['squeeze.lr'].value} at {usual}, in proportion"
    yield "squeeze.schedule", "cosine", "our choice: it suits any number of epochs"
    if epochs < 40:
        yield "squeeze.schedule_per", "step", "our choice: few epochs"
    if "squeeze.warmup_epochs" in base:
        yield "squeeze.warmup_epochs", min(5, epochs // 5), "our choice: a fifth, at most 5"
    if "squeeze.padding" in base:
        yield "squeeze.padding", max(1, data.resolution // 8), "our choice: an eighth of a side"
    yield "squeeze.evaluate_every", -(-epochs // 2), "our choice: it changes no result"


def _recover(data: Dataset, level: Level, kind: str, base: Layer) -> Iterator[tuple[str, Any, str]]:
    full = 400 if kind == "cpu" else base["recover.iterations"].value
    steps = max(50, round(level.share * full / 10) * 10)
    if steps != base["recover.iterations"].value:
        yield "recover.iterations", steps, "our choice: speed"
    if (jitter := data.resolution // 7) < base["recover.jitter"].value:
        yield "recover.jitter", jitter, "our choice: a seventh of a side"


def _post_training(
    data: Dataset, level: Level, kind: str, base: Layer
) -> Iterator[tuple[str, Any, str]]:
    images = data.classes * max(data.compare_ipc)
    batch = min(64, _power_of_two(images / 6))
    full = 20_000 / images
    least = 40 if kind == "cpu" else base["validate.epochs"].value
    epochs = round(max(min(level.share * full, 300), level.share * least, 20))
    if "relabel.mixing_alpha" in base:
        yield "relabel.batch_size", batch, "our choice: the batch of post-training"
    yield (
        "validate.epochs",
        epochs,
        f"our choice: {epochs * images:,} images pass at the largest IPC",
    )
    yield "validate.batch_size", batch, f"our choice: 6 or more steps on {images:,} images"
    if base["validate.optimizer"].value != "adamw":
        yield "validate.optimizer", "adamw", "imagenet1k: paper Table 16b; it needs no warm-up"
        yield "validate.lr", 0.001, "imagenet1k: paper Table 16b"
        yield "validate.weight_decay", 0.01, "imagenet1k: paper Table 16b"
    yield "validate.evaluate_every", -(-epochs // 2), "our choice: it changes no result"


def _power_of_two(value: float) -> int:
    """The largest power of two up to `value`, at least 8."""
    return 2 ** max(3, math.floor(math.log2(max(value, 1))))


def _render(layer: Layer) -> str:
    """A layer of dotted keys as block-style YAML with its sources as comments."""
    ordered = sorted(layer, key=lambda key: (*SECTIONS, "methods").index(key.partition(".")[0]))
    lines, open_keys = list[str](), list[str]()
    for key in ordered:
        *parents, last = key.split(".")
        shared = 0
        while shared < min(len(parents), len(open_keys)) and parents[shared] == open_keys[shared]:
            shared += 1
        lines += ["  " * depth + f"{parents[depth]}:\n" for depth in range(shared, len(parents))]
        open_keys = parents
        lines.append(
            "  " * len(parents) + _line(last, layer[key].value, layer[key].source, len(parents))
        )
    return "".join(lines)


def _line(key: str, value: Any, source: str, depth: int = 0) -> str:
    """`key: value` with its source as a comment in a column of its own."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000)
    line = f"{key}: {text.splitlines()[0]}"
    return f"{line.ljust(COLUMN - 2 - 2 * depth)}  # {source}\n" if source else f"{line}\n"
