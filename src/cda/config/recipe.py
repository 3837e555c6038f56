"""A recipe: every value of the stages that a user may set, with type, range, default and meaning.

Values are in `config/recipes/<dataset>.yaml`; the comment on a value's line is its source, which
`yaml_source.py` reads. The field descriptions become the reference page. A stage's `identity` holds
the values that change its result, and nothing else enters the run's id.
"""

from __future__ import annotations

from typing import Any, Literal

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
    """How ResNets and ConvNets are built for a data set; other networks are built as published."""

    stem: Literal["imagenet", "small"] = Field(
        "imagenet", description="small: 3×3 convolution of stride 1, no max-pool, for small images"
    )
    stem_init: Literal["kaiming", "torch"] = Field(
        "kaiming",
        description="first weights of a ResNet's small stem; kaiming: normal by fan-out, as its "
        "other convolutions; torch: uniform by fan-in, as torch.nn.Conv2d draws them",
    )
    width: Positive = Field(1.0, description="multiplies the channels; 1 is the published network")

    def identity(self) -> dict[str, Any]:
        """The values that change the network; `stem_init` where it is not neutral."""
        neutral = self.stem != "small" or self.stem_init == "kaiming"
        return self.model_dump(mode="json", exclude={"stem_init"} if neutral else None)


class Augmentation(Strict):
    """How a training image is cropped and flipped before the network sees it."""

    augment: Literal["random_resized_crop", "pad_crop", "none"] = Field(
        "random_resized_crop", description="kind of crop"
    )
    crop_scale: CropScale = Field(
        (0.08, 1.0), description="area ratio of a random resized crop, low and high"
    )
    padding: Natural = Field(4, description="zero pixels around the image before a pad crop")
    flip: Ratio = Field(0.5, description="probability of a horizontal flip")
    cutout: Ratio = Field(
        0.0, description="side of a random square of one colour over the image's side; 0: none"
    )

    def augmentation(self) -> dict[str, Any]:
        """The values that matter for this kind of crop."""
        ignored = {"padding"} if self.augment != "pad_crop" else set()
        ignored |= {"crop_scale"} if self.augment != "random_resized_crop" else set()
        ignored |= {"cutout"} if not self.cutout else set()
        return self.model_dump(mode="json", include=set(Augmentation.model_fields) - ignored)


class Optimisation(Strict):
    """How the one training loop trains a network."""

    epochs: Count = Field(description="passes over the training images")
    batch_size: Count = Field(description="images per optimiser step")
    optimizer: Literal["sgd", "adamw", "adam"] = Field("sgd", description="of torch.optim")
    lr: Positive = Field(description="base learning rate")
    momentum: Ratio = Field(0.9, description="of SGD")
    weight_decay: Weight = Field(0.0, description="decoupled for adamw")
    decay_vectors: bool = Field(True, description="decay biases and normalisation weights too")
    decay_names: Literal["all", "weight"] = Field(
        "all",
        description="weight: decay only parameters with `weight` in their name, so no class "
        "tokens, positions or layer scales",
    )
    schedule: Literal["cosine", "step", "constant"] = Field(
        "cosine", description="of the learning rate after warm-up"
    )
    schedule_per: Literal["epoch", "step"] = Field("epoch", description="when lr changes")
    step_epochs: Count = Field(30, description="epochs between drops of the step schedule")
    step_factor: Ratio = Field(0.1, description="factor of a drop")
    restart: bool = Field(
        False, description="a drop of the step schedule begins with a new optimiser: no momentum"
    )
    warmup_epochs: Natural = Field(0, description="epochs of linear warm-up before the schedule")
    warmup_factor: Ratio = Field(0.01, description="first learning rate of the warm-up over lr")
    evaluate_every: Count = Field(10, description="epochs between evaluations, besides the last")

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Optimisation:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs ({self.warmup_epochs}) must be smaller than epochs ({self.epochs})"
            )
        return self

    def optimisation(self) -> dict[str, Any]:
        """The values that matter for this optimiser and schedule; evaluations change no result."""
        ignored = {"evaluate_every"}
        ignored |= {"decay_names"} if self.decay_names == "all" else set()
        ignored |= {"momentum"} if self.optimizer != "sgd" else set()
        ignored |= {"step_epochs", "step_factor"} if self.schedule != "step" else set()
        ignored |= {"restart"} if self.schedule != "step" or not self.restart else set()
        ignored |= {"warmup_factor"} if not self.warmup_epochs else set()
        return self.model_dump(mode="json", include=set(Optimisation.model_fields) - ignored)


class Squeeze(Optimisation, Augmentation):
    """Stage 1: train the recovery model on the real data, or take published weights."""

    label_smoothing: Ratio = Field(0.0, description="share of a label spread over all classes")
    weights: Published | None = Field(
        None,
        description="published weights instead of training: torchvision:<Weights.NAME>, "
        "timm:<pretrained tag>, or package:<name> of a Python package with a timm network's",
    )
    init: Published | None = Field(
        None, description="published weights to start from, as in weights, with a new classifier"
    )
    randaugment: Natural = Field(
        0, description="RandAugment operations (magnitude 9) per image; streamed data sets only"
    )
    seed: Natural = Field(0, description="of every random draw of the stage; part of the run's id")

    def identity(self) -> dict[str, Any]:
        """The values that change the squeezed model."""
        if self.weights:
            return {"weights": self.weights}
        own = {"label_smoothing", "seed"} | ({"init"} if self.init else set())
        own |= {"randaugment"} if self.randaugment else set()
        return self.model_dump(mode="json", include=own) | self.optimisation() | self.augmentation()


class Recover(Strict):
    """Stage 2: synthesise images whose BN statistics match the real data's."""

    mode: Literal["constant", "curriculum", "reverse", "random", "imported"] = Field(
        description="how crops change; random, imported: real or released images instead"
    )
    scheduler: Literal["step", "linear", "cosine"] = Field(
        "cosine", description="how a curriculum lowers min_crop"
    )
    milestone: Ratio = Field(1.0, description="share of the iterations that the curriculum takes")
    min_crop: Ratio = Field(0.08, description="β_l, lower bound of the crop's area ratio")
    max_crop: Ratio = Field(1.0, description="β_u, upper bound of the crop's area ratio")
    iterations: Count = Field(1000, description="optimiser steps of each class block")
    lr: Positive = Field(0.25, description="of Adam on the images")
    alpha_bn: Weight = Field(0.01, description="α_BN, weight of the batch-normalisation statistics")
    first_bn_multiplier: Weight = Field(10.0, description="extra weight of the first BN layer")
    block_size: Count = Field(100, description="classes that share one batch of BN statistics")
    flip: Ratio = Field(0.5, description="probability of a block's horizontal flip")
    jitter: Natural = Field(32, description="largest roll in each direction, pixels")
    per_image: bool = Field(
        False, description="draw crop, flip and roll for each image instead of each block"
    )
    image: Literal["png", "jpg"] = Field("png", description="format in shards; jpg is lossy")
    snapshots: tuple[Count, ...] = Field(
        (), description="steps after which the first shard's images are saved too"
    )
    release: Folder = Field(
        "", description="imported: folder in data/released/ with new000/class000_id000.jpg, …"
    )
    seed: Natural = Field(0, description="of every random draw of the stage; part of the run's id")

    @model_validator(mode="after")
    def _sensible(self) -> Recover:
        if not 0 < self.min_crop <= self.max_crop:
            raise ValueError("min_crop and max_crop must satisfy 0 < min_crop <= max_crop <= 1")
        if self.mode == "imported" and not self.release:
            raise ValueError("mode imported needs release: the folder's name under data/released/")
        return self

    @property
    def synthetic(self) -> bool:
        """Whether a recovery model synthesises the images."""
        return self.mode not in ("random", "imported")

    def identity(self) -> dict[str, Any]:
        """The values that change the images."""
        if not self.synthetic:
            only = {"mode", "seed"} if self.mode == "random" else {"mode", "release"}
            return self.model_dump(mode="json", include=only | self._image_key())
        ignored = {"release", "image"} - self._image_key()
        ignored |= {"scheduler"} if self.mode != "curriculum" else set()
        ignored |= {"milestone"} if self.mode == "constant" else set()
        reached = [step for step in self.snapshots if step <= self.iterations]
        return self.model_dump(mode="json", exclude=ignored) | {"snapshots": reached}

    def _image_key(self) -> set[str]:
        """The key `image` unless it is neutral (png), so that older runs keep their ids."""
        return {"image"} if self.image != "png" else set()


class Relabel(Augmentation):
    """Stage 3: the relabel model's soft labels of every image under every epoch's augmentation."""

    labels: Literal["stored", "online", "hard"] = Field(
        "stored",
        description="stored: logits on disk; online: the relabel model runs during validate; "
        "hard: the class itself",
    )
    bits: Literal[16, 8, 4] = Field(
        16,
        description="per logit: 16 is fp16; 8 and 4 quantise between a row's smallest and "
        "largest stored logit",
    )
    top_k: Natural = Field(
        0,
        description="store this many largest logits; the other classes share the rest of the "
        "softmax evenly; 0: store all",
    )
    reuse: Count = Field(1, description="epochs of training per epoch of labels and augmentations")
    epochs: Count | None = Field(
        None, description="epochs of training that the labels cover; default: those of validate"
    )
    mixing: Literal["none", "cutmix", "mixup"] = Field(
        "none", description="how an image is mixed with a partner in every epoch"
    )
    mixing_alpha: Positive = Field(
        1.0, description="both parameters of the Beta distribution of the mixing ratio"
    )
    operation: Literal["none", "dsa"] = Field(
        "none",
        description="dsa: after the crop one of color, crop, cutout, flip, scale, rotate, drawn "
        "for each label batch, on normalised images",
    )
    batch_size: Count = Field(
        128, description="images among which mixing partners, or for which one operation, are drawn"
    )
    seed: Natural = Field(0, description="of every random draw of the stage; part of the run's id")

    def label_epochs(self, epochs: int) -> int:
        """Epochs of labels for `epochs` epochs of training."""
        return -(-epochs // self.reuse)

    def label_epoch(self, epoch: int) -> int:
        """The epoch of labels for `epoch` of training; needs `epochs` unless `reuse` is 1."""
        if self.reuse == 1:
            return epoch
        assert self.epochs is not None
        return epoch % self.label_epochs(self.epochs)

    def identity(self) -> dict[str, Any]:
        """The values that change the labels; stored and online labels agree up to rounding."""
        values = self.augmentation() | self.model_dump(mode="json", include={"mixing", "seed"})
        if self.mixing != "none":
            values |= self.model_dump(mode="json", include={"mixing_alpha", "batch_size"})
        if self.operation != "none":
            values |= self.model_dump(mode="json", include={"operation", "batch_size"})
        stored = {"bits", "top_k", "reuse"} if self.labels != "hard" else {"reuse"}
        values |= self.model_dump(mode="json", include=stored, exclude_defaults=True)
        return values | {"labels": "hard" if self.labels == "hard" else "soft"}


class Validate(Optimisation):
    """Stage 4 (post-train): train a fresh model on the distilled set, test it on real images."""

    batch_parts: Count = Field(
        1,
        description="equal parts of a batch that pass through the network one after the other, "
        "each with BN statistics of its own; a step takes the mean of their gradients",
    )
    temperature: Positive = Field(20.0, description="T of the distillation loss")
    temperature_squared: bool = Field(False, description="multiply the loss by T²")
    label_smoothing: Ratio = Field(0.0, description="share of soft labels spread over all classes")
    learned_lr: bool = Field(
        False,
        description="the step size that trajectory matching learned with the images replaces lr",
    )

    @model_validator(mode="after")
    def _equal_parts(self) -> Validate:
        if self.batch_size % self.batch_parts:
            raise ValueError(
                f"batch_parts ({self.batch_parts}) must divide batch_size ({self.batch_size})"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """The values that change the trained model."""
        own = {"temperature", "temperature_squared"}
        own |= {"label_smoothing"} if self.label_smoothing else set()
        own |= {"batch_parts"} if self.batch_parts > 1 else set()
        own |= {"learned_lr"} if self.learned_lr else set()
        values = self.optimisation() | self.model_dump(mode="json", include=own)
        return {k: v for k, v in values.items() if not (self.learned_lr and k == "lr")}


class Expert(Strict):
    """Experts: networks trained on the real data, whose weights trajectory matching follows."""

    count: Count = Field(description="networks, each with first weights and draws of its own")
    per_job: Count = Field(
        10, description="experts that a job trains; no part of the run's id: it changes none"
    )
    epochs: Count = Field(description="passes over the training images; weights of each are stored")
    lr: Positive = Field(0.01, description="of SGD, constant")
    momentum: Ratio = Field(0.0, description="of SGD")
    batch_size: Count = Field(256, description="images per optimiser step")
    augment: Literal["dsa", "none"] = Field(
        "dsa", description="dsa: one operation for each batch, with parameters for each image"
    )
    seed: Natural = Field(0, description="of every random draw of the stage; part of the run's id")

    def identity(self) -> dict[str, Any]:
        """The values that change the weights."""
        return self.model_dump(mode="json", exclude={"per_job"})

    def optimisation(self) -> Optimisation:
        """How the one training loop trains an expert; it is evaluated after every epoch."""
        own = self.model_dump(include={"epochs", "batch_size", "lr", "momentum"})
        return Optimisation(optimizer="sgd", schedule="constant", evaluate_every=1, **own)


class Distill(Strict):
    """Images by matching (DC, DSA, DM, MTT, TESLA): networks learn from them as from real ones."""

    match: Literal["gradient", "embedding", "trajectory"] = Field(
        description="what of a network is made equal: class by class the gradient of its loss "
        "(DC, DSA) or the mean of its embeddings (DM); or where training leads (MTT, TESLA)"
    )
    iterations: Count = Field(
        description="fresh networks, or trajectories of experts, one after the other"
    )
    lr: Positive = Field(description="of SGD on the images")
    momentum: Ratio = Field(0.5, description="of SGD on the images")
    start: Literal["noise", "real"] = Field(
        "real", description="images to begin with; real: those of the random control"
    )
    augment: Literal["dsa", "none"] = Field(
        "dsa",
        description="dsa: one operation for both batches of a class, with equal parameters; of a "
        "trajectory: for each batch, with parameters for each image",
    )
    real_batch: Count = Field(256, description="real images of a class in a step")
    outer_steps: Count = Field(
        1, description="gradient: steps of the images for each network, which trains between them"
    )
    inner_epochs: Natural = Field(
        0, description="gradient: epochs of training on the images between two of their steps"
    )
    model_lr: Positive = Field(0.01, description="gradient: of the network's training, by SGD")
    model_batch: Count = Field(256, description="gradient: images of a step of that training")
    synthetic_steps: Count = Field(
        20, description="trajectory: N, steps of training on the images from an expert's weights"
    )
    synthetic_batch: Count | None = Field(
        None, description="trajectory: |b|, images of such a step; default: all"
    )
    expert_epochs: Count = Field(
        2, description="trajectory: M, epochs of the expert that these steps must reach"
    )
    max_start: Count = Field(
        20, description="trajectory: T⁺, an iteration starts after fewer epochs of the expert"
    )
    step_size: Positive = Field(
        0.01, description="trajectory: β₀, first learning rate of these steps, which is learned"
    )
    step_lr: Positive = Field(1e-5, description="trajectory: of SGD on that learning rate")
    backward: Literal["unrolled", "two_pass"] = Field(
        "unrolled",
        description="trajectory: unrolled: through all steps at once (MTT), memory grows with "
        "them; two_pass: a step at a time at constant weights (TESLA)",
    )
    seed: Natural = Field(0, description="of every random draw of the stage; part of the run's id")

    def identity(self) -> dict[str, Any]:
        """The values that change the images."""
        inner = {"outer_steps", "inner_epochs", "model_lr", "model_batch"}
        trajectory = {"synthetic_steps", "synthetic_batch", "expert_epochs", "max_start"}
        trajectory |= {"step_size", "step_lr", "backward"}
        if self.match == "trajectory":
            return self.model_dump(mode="json", exclude=inner | {"real_batch"})
        ignored = inner if self.match != "gradient" else set()
        if self.match == "gradient" and self.outer_steps == 1:
            ignored = inner - {"outer_steps"}
        return self.model_dump(mode="json", exclude=ignored | trajectory)


class Score(Strict):
    """Score (Table 9): classify images with a model that took no part in making them."""

    crops: Count = Field(
        10, description="random crops per image, averaged; the uncropped image is scored too"
    )
    crop_scale: CropScale = Field((0.08, 1.0), description="area ratio of the crops, low and high")
    seed: Natural = Field(0, description="of the crops; part of the run's id")

    def identity(self) -> dict[str, Any]:
        """The values that change the measured accuracies."""
        return self.model_dump(mode="json")


class Continual(Optimisation):
    """Continual (Tables 14, 15): class-incremental learning, a fresh model at every step."""

    steps: Count = Field(5, description="equal steps into which the classes are divided")
    order: Natural = Field(0, description="seed of the class order")
    augment: Literal["dsa", "none"] = Field(
        "dsa", description="dsa: per batch one of color, crop, cutout, flip, scale, rotate"
    )
    temperature: Positive = Field(20.0, description="T of the distillation loss")
    temperature_squared: bool = Field(True, description="multiply the loss by T²")

    def identity(self) -> dict[str, Any]:
        """The values that change the trained models."""
        own = {"steps", "order", "augment", "temperature", "temperature_squared"}
        return self.optimisation() | self.model_dump(mode="json", include=own)


class Recipe(Strict):
    """One run's values for every stage, fully resolved."""

    architecture: Architecture
    squeeze: Squeeze
    recover: Recover
    expert: Expert | None = None
    distill: Distill | None = None
    relabel: Relabel
    validate_: Validate = Field(alias="validate")
    score: Score = Score()
    continual: Continual | None = None

    @property
    def iterations(self) -> int | None:
        """Iterations of what makes the images; None for real and imported ones."""
        if self.distill:
            return self.distill.iterations
        return self.recover.iterations if self.recover.synthetic else None

    @model_validator(mode="after")
    def _experts_reach(self) -> Recipe:
        own, expert = self.distill, self.expert
        if own is None or own.match != "trajectory":
            return self
        if expert is None:
            raise ValueError(
                "expert is missing: distill.match trajectory needs count and epochs of its experts"
            )
        last = own.max_start - 1 + own.expert_epochs
        if last > expert.epochs:
            raise ValueError(
                f"expert.epochs ({expert.epochs}) must reach distill.max_start - 1 + "
                f"distill.expert_epochs ({last})"
            )
        return self

    @model_validator(mode="after")
    def _labels_last(self) -> Recipe:
        if self.relabel.epochs is not None and self.relabel.epochs < self.validate_.epochs:
            raise ValueError(
                f"relabel.epochs ({self.relabel.epochs}) must reach validate.epochs "
                f"({self.validate_.epochs})"
            )
        return self
