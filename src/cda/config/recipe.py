"""A recipe: every value of the stages that a user may set, with its type, range, default and
meaning.

Values live in `config/recipes/<dataset>.yaml`; where each came from is the comment on its line,
which `sourced.py` reads. The field descriptions here are the reference page. What changes a result
is a stage's `identity`.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from cda.config.types import (
    Count,
    CropScale,
    Folder,
    Natural,
    Positive,
    Published,
    Ratio,
    Strict,
    Weight,
)


class Architecture(Strict):
    """How ResNets and ConvNets are built for this data set.

    Other networks are built as published.
    """

    stem: Literal["imagenet", "small"] = Field(
        "imagenet",
        description="small: 3×3 first convolution of stride 1 and no max-pool, for 32 and 64 "
        "pixel images",
    )
    width: Positive = Field(1.0, description="multiplies the channels; 1 is the published network")


class Augmentation(Strict):
    """What happens to a training image before the network sees it."""

    augment: Literal["random_resized_crop", "pad_crop", "none"] = Field(
        "random_resized_crop", description="kind of crop"
    )
    crop_scale: CropScale = Field(
        (0.08, 1.0), description="area ratio of a random resized crop, low and high"
    )
    padding: Natural = Field(4, description="zero pixels around the image before a pad crop")
    flip: Ratio = Field(0.5, description="probability of a horizontal flip")
    cutout: Ratio = Field(
        0.0,
        description="side of a square of one random colour, as a share of the image's, at a "
        "random place; 0: none",
    )

    def augmentation(self) -> dict[str, Any]:
        """Its values without those that its kind of crop ignores."""
        kinds = {
            "random_resized_crop": {"padding"},
            "pad_crop": {"crop_scale"},
            "none": {"padding", "crop_scale"},
        }
        ignored = kinds[self.augment] | (set() if self.cutout else {"cutout"})
        return self.model_dump(mode="json", include=set(Augmentation.model_fields) - ignored)


class Optimisation(Strict):
    """How the one training loop trains a network."""

    epochs: Count = Field(description="passes over the training images")
    batch_size: Count = Field(description="images an optimiser step")
    optimizer: Literal["sgd", "adamw", "adam"] = Field("sgd", description="as torch.optim's")
    lr: Positive = Field(description="base learning rate")
    momentum: Ratio = Field(0.9, description="of SGD")
    weight_decay: Weight = Field(0.0, description="of the optimiser; of AdamW decoupled")
    decay_vectors: bool = Field(True, description="decay biases and normalisation weights too")
    schedule: Literal["cosine", "step", "constant"] = Field(
        "cosine", description="of the learning rate, after warm-up"
    )
    schedule_per: Literal["epoch", "step"] = Field(
        "epoch", description="how often the learning rate moves"
    )
    step_epochs: Count = Field(30, description="epochs between drops of the step schedule")
    step_factor: Ratio = Field(0.1, description="what a drop multiplies by")
    warmup_epochs: Natural = Field(
        0, description="epochs of linear warm-up before the schedule starts"
    )
    warmup_factor: Ratio = Field(
        0.01, description="where the warm-up starts, as a share of the base learning rate"
    )
    evaluate_every: Count = Field(
        10, description="epochs between evaluations; the last epoch always is one"
    )

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Optimisation:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs ({self.warmup_epochs}) must be smaller than epochs ({self.epochs})"
            )
        return self

    def optimisation(self) -> dict[str, Any]:
        """Its values without those that its optimiser and schedule ignore, nor how often it is
        looked at.
        """
        ignored = {"evaluate_every"}
        ignored |= {"momentum"} if self.optimizer != "sgd" else set()
        ignored |= {"step_epochs", "step_factor"} if self.schedule != "step" else set()
        ignored |= {"warmup_factor"} if not self.warmup_epochs else set()
        return self.model_dump(mode="json", include=set(Optimisation.model_fields) - ignored)


class Squeeze(Optimisation, Augmentation):
    """Stage 1: train the recovery model on the real data, or take published weights."""

    label_smoothing: Ratio = Field(
        0.0, description="share of a label that is spread over all classes"
    )
    weights: Published | None = Field(
        None,
        description="published weights instead of training: torchvision:<Weights.NAME>, "
        "timm:<pretrained tag>, or "
        "package:<name> of a Python package that ships a timm network's",
    )
    init: Published | None = Field(
        None,
        description="published weights to start from, named as in weights; the classifier "
        "starts anew",
    )
    randaugment: Natural = Field(
        0,
        description="operations of RandAugment (magnitude 9) on each image; of streamed data "
        "sets only",
    )
    seed: Natural = Field(0, description="of every draw of the stage; part of the run's id")

    def identity(self) -> dict[str, Any]:
        """What changes the squeezed model."""
        if self.weights:
            return {"weights": self.weights}
        own = {"label_smoothing", "seed"} | ({"init"} if self.init else set())
        own |= {"randaugment"} if self.randaugment else set()
        return self.model_dump(mode="json", include=own) | self.optimisation() | self.augmentation()


class Recover(Strict):
    """Stage 2: synthesise images that the recovery model recognises and whose statistics match the
    real data's.
    """

    mode: Literal["constant", "curriculum", "reverse", "random", "imported"] = Field(
        description="crop difficulty over the iterations; random: real images instead; "
        "imported: a released folder"
    )
    scheduler: Literal["step", "linear", "cosine"] = Field(
        "cosine", description="how a curriculum's min_crop falls"
    )
    milestone: Ratio = Field(
        1.0, description="share of the iterations after which the curriculum is over"
    )
    min_crop: Ratio = Field(0.08, description="β_l, lower bound of the crop's area ratio")
    max_crop: Ratio = Field(1.0, description="β_u, upper bound of the crop's area ratio")
    iterations: Count = Field(1000, description="optimiser steps of every class block")
    lr: Positive = Field(0.25, description="of Adam on the images")
    alpha_bn: Weight = Field(0.01, description="α_BN, weight of the batch-normalisation statistics")
    first_bn_multiplier: Weight = Field(10.0, description="extra weight of the first BN layer")
    block_size: Count = Field(
        100, description="classes optimised together, whose BN statistics are matched together"
    )
    flip: Ratio = Field(0.5, description="probability of a horizontal flip of the block")
    jitter: Natural = Field(32, description="largest roll in each direction, pixels")
    per_image: bool = Field(
        False, description="draw crop, flip and roll for each image instead of for the block"
    )
    image: Literal["png", "jpg"] = Field(
        "png", description="how a shard keeps its images; jpg is smaller and loses a little"
    )
    snapshots: tuple[Count, ...] = Field(
        (), description="steps after which the first shard's images are kept too"
    )
    release: Folder = Field(
        "",
        description="imported: folder name under data/released/ of new000/class000_id000.jpg "
        "images",
    )
    seed: Natural = Field(0, description="of every draw of the stage; part of the run's id")

    @model_validator(mode="after")
    def _sensible(self) -> Recover:
        if not 0 < self.min_crop <= self.max_crop:
            raise ValueError("min_crop and max_crop must satisfy 0 < min_crop <= max_crop <= 1")
        if self.mode == "imported" and not self.release:
            raise ValueError("mode imported needs release: the folder's name under data/released/")
        return self

    @property
    def synthetic(self) -> bool:
        """Whether a recovery model makes the images."""
        return self.mode not in ("random", "imported")

    def identity(self) -> dict[str, Any]:
        """What changes the images."""
        keep = {"random": {"mode", "seed", "image"}, "imported": {"mode", "release", "image"}}.get(
            self.mode
        )
        values = self.model_dump(mode="json", include=keep, exclude=None if keep else {"release"})
        ignored = {"constant": {"scheduler", "milestone"}, "reverse": {"scheduler"}}.get(
            self.mode, set()
        )
        ignored = ignored | ({"image"} if self.image == "png" else set())
        if self.synthetic:
            values["snapshots"] = [step for step in self.snapshots if step <= self.iterations]
        return {key: value for key, value in values.items() if key not in ignored}


class Relabel(Augmentation):
    """Stage 3: the relabel model's soft labels for every image under every epoch's augmentation."""

    labels: Literal["stored", "online", "hard"] = Field(
        "stored",
        description="stored: logits on disk; online: the relabel model runs while validating; "
        "hard: the class itself",
    )
    bits: Literal[16, 8, 4] = Field(
        16,
        description="of a logit: 16 is fp16; 8 and 4 are steps between the smallest and the "
        "largest kept of its row",
    )
    top_k: Natural = Field(
        0,
        description="keeps the largest logits alone; the others share the rest of the softmax "
        "evenly; 0: keeps all",
    )
    reuse: Count = Field(
        1, description="epochs of training that share an epoch of labels and its augmentations"
    )
    epochs: Count | None = Field(
        None, description="epochs of training that the labels serve; default: those of validate"
    )
    mixing: Literal["none", "cutmix", "mixup"] = Field(
        "none", description="of an image with a partner, in every epoch"
    )
    mixing_alpha: Positive = Field(
        1.0, description="both parameters of the Beta distribution of the mixing ratio"
    )
    batch_size: Count = Field(
        128, description="label batch: images whose mixing partners come from among each other"
    )
    seed: Natural = Field(0, description="of every draw of the stage; part of the run's id")

    def label_epochs(self, served: int) -> int:
        """Epochs of labels for `served` epochs of training."""
        return -(-served // self.reuse)

    def label_epoch(self, epoch: int) -> int:
        """The epoch of labels that `epoch` of training uses.

        Where several share one, `epochs` must be set.
        """
        if self.reuse == 1:
            return epoch
        assert self.epochs is not None
        return epoch % self.label_epochs(self.epochs)

    def identity(self) -> dict[str, Any]:
        """What changes the labels; whether they are stored or made online does not, up to rounding."""
        values = self.augmentation() | self.model_dump(mode="json", include={"mixing", "seed"})
        if self.mixing != "none":
            values |= self.model_dump(mode="json", include={"mixing_alpha", "batch_size"})
        coded = {"bits", "top_k", "reuse"} if self.labels != "hard" else {"reuse"}
        values |= self.model_dump(mode="json", include=coded, exclude_defaults=True)
        return values | {"labels": "hard" if self.labels == "hard" else "soft"}


class Validate(Optimisation):
    """Stage 4 (post-train): train a fresh model on the distilled images and their labels, test it
    on real ones.
    """

    temperature: Positive = Field(20.0, description="T of the distillation loss")
    temperature_squared: bool = Field(False, description="multiply the loss by T²")
    label_smoothing: Ratio = Field(
        0.0, description="share of the teacher's softmax that is spread over all classes"
    )

    def identity(self) -> dict[str, Any]:
        """What changes the trained model."""
        own = {"temperature", "temperature_squared"} | (
            {"label_smoothing"} if self.label_smoothing else set()
        )
        return self.optimisation() | self.model_dump(mode="json", include=own)


class Score(Strict):
    """Score (Table 9): classify images with a model that took no part in making them."""

    crops: Count = Field(
        10,
        description="random crops an image, whose accuracies are averaged, beside the whole image",
    )
    crop_scale: CropScale = Field((0.08, 1.0), description="area ratio of the crops, low and high")
    seed: Natural = Field(0, description="of the crops; part of the run's id")

    def identity(self) -> dict[str, Any]:
        """What changes the measured accuracies."""
        return self.model_dump(mode="json")


class Continual(Optimisation):
    """Continual (Tables 14 and 15).

    Class-incremental learning on distilled images, a fresh model each step.
    """

    steps: Count = Field(5, description="into how many equal steps the classes are divided")
    order: Natural = Field(0, description="seed of the class order")
    augment: Literal["dsa", "none"] = Field(
        "dsa", description="dsa: one of color, crop, cutout, flip, scale, rotate a batch"
    )
    temperature: Positive = Field(20.0, description="T of the distillation loss")
    temperature_squared: bool = Field(True, description="multiply the loss by T²")

    def identity(self) -> dict[str, Any]:
        """What changes the trained models."""
        own = {"steps", "order", "augment", "temperature", "temperature_squared"}
        return self.optimisation() | self.model_dump(mode="json", include=own)


class Recipe(Strict):
    """One run's values for every stage, fully resolved."""

    architecture: Architecture
    squeeze: Squeeze
    recover: Recover
    relabel: Relabel
    validate_: Validate = Field(alias="validate")
    score: Score = Score()
    continual: Continual | None = None

    @model_validator(mode="after")
    def _labels_last(self) -> Recipe:
        if self.relabel.epochs is not None and self.relabel.epochs < self.validate_.epochs:
            raise ValueError(
                f"relabel.epochs ({self.relabel.epochs}) must reach validate.epochs "
                f"({self.validate_.epochs})"
            )
        return self


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


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` values of `bits` each.

    1, 4 and 8 bits share bytes, the last of which may be part empty.
    """
    return -(-count * bits // 8)


def record(classes: int, bits: int = 16, top_k: int = 0) -> Record:
    """The parts of a row of `classes` logits kept in `bits` each; of the `top_k` largest alone, or
    of all (0).

    >>> record(100).bytes, record(100, bits=8).bytes, record(100, bits=8, top_k=10).bytes
    (200, 104, 24)
    """
    kept = top_k or classes
    if not top_k:
        places, bitmap = 0, False
    else:
        indices = kept * (1 if classes <= 256 else 2)
        bitmap = (
            packed_bytes(classes, 1) < indices or classes > 2**16
        )  # which two bytes cannot count
        places = packed_bytes(classes, 1) if bitmap else indices
    return Record(places, bitmap, 0 if bits == 16 else 2 * FP16, packed_bytes(kept, bits))
