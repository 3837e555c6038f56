"""What a job costs, by arithmetic: operations of its networks, images it decodes, bytes it leaves.

A forward pass is counted on shapes, without weights or data. A training step costs three forward
passes (forward, gradient to the input, gradient to the weights), a recover step two (the gradient
goes to the images only). A multiply-add is two operations. Crops, losses and optimisers are not
counted: they lower the rate (`cda.pipeline.rates`) that these operations are divided by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

from cda.config.recipe import Architecture, Optimisation
from cda.config.settings import Dataset, Settings
from cda.errors import ConfigError
from cda.experiments.runs import Run, label_epochs, label_mode, part_experts

EVALUATED = 512  # images of a forward pass without gradient, about
TRAINING, RECOVERY, SECOND = 3, 2, 9  # forward passes' worth of a step on one image
Counting = Callable[[str, Dataset, Architecture], float]  # multiply-adds of a forward pass
PNG = 0.85  # of the raw bytes: our estimate for recovered images, which are rough
TAR = 1800  # bytes of headers and padding that an image and its label add to a shard


@cache
def _multiply_adds(name: str, classes: int, resolution: int, stem: str, width: float) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from cda.method import networks

    architecture = Architecture.model_validate({"stem": stem, "width": width})
    try:
        with torch.device("meta"):
            model = networks.build(name, classes, resolution, architecture)
    except (NotImplementedError, RuntimeError):  # its constructor computes with values
        model = networks.build(name, classes, resolution, architecture).to("meta")
    image = torch.empty(1, 3, resolution, resolution, device="meta")
    try:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            model.eval()(image)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"model {name!r} cannot take {resolution}×{resolution} images ({reason}); use "
            "another model"
        ) from None
    return int(counter.get_total_flops()) // 2


def multiply_adds(name: str, data: Dataset, architecture: Architecture) -> int:
    """Multiply-adds of a forward pass of one image; raises ConfigError if the image cannot fit."""
    return _multiply_adds(
        name, data.classes, data.resolution, architecture.stem, architecture.width
    )


def evaluations(values: Optimisation) -> int:
    """How often a training is evaluated: every `evaluate_every` epochs, and after the last."""
    return -(-values.epochs // values.evaluate_every)


def _forward(run: Run, count: Counting) -> float:
    """Multiply-adds of a forward pass of the run's own network."""
    return count(run.model, run.data, run.recipe.architecture)


def _validation(run: Run, values: Optimisation) -> int:
    """Validation images that a training classifies."""
    return evaluations(values) * (run.data.val_images or 0)


def _squeeze(run: Run, _max_gb: float, count: Counting) -> float:
    values = run.recipe.squeeze
    if values.weights:
        return 0
    trained = values.epochs * (run.data.train_images or 0)
    return (TRAINING * trained + _validation(run, values)) * _forward(run, count)


def _recover(run: Run, _max_gb: float, count: Counting) -> float:
    if not run.recipe.recover.synthetic:
        return 0
    steps = run.data.shards_per_job * run.data.classes * run.recipe.recover.iterations
    return RECOVERY * steps * _forward(run.upstream["model"], count)


def _expert(run: Run, _max_gb: float, count: Counting) -> float:
    values = run.recipe.expert
    assert values is not None
    each = TRAINING * (run.data.train_images or 0) + (run.data.val_images or 0)
    return len(part_experts(run, 0)) * values.epochs * each * _forward(run, count)


def _distill(run: Run, _max_gb: float, count: Counting) -> float:
    """A step embeds real images, or takes their gradient, and differentiates that of its own."""
    values = run.recipe.distill
    assert values is not None
    if values.match == "trajectory":
        batch = values.synthetic_batch or run.ipc * run.data.classes
        passes = SECOND + (TRAINING if values.backward == "two_pass" else 0)
        return values.iterations * values.synthetic_steps * batch * passes * _forward(run, count)
    if values.match == "embedding":
        passes = values.real_batch + TRAINING * run.ipc
    else:
        inner = (values.outer_steps - 1) * values.inner_epochs * TRAINING * run.ipc
        passes = values.outer_steps * (TRAINING * values.real_batch + SECOND * run.ipc) + inner
    return values.iterations * run.data.classes * passes * _forward(run, count)


def _relabel(run: Run, max_gb: float, count: Counting) -> float:
    if label_mode(run, max_gb) != "stored":
        return 0
    return run.ipc * run.data.classes * label_epochs(run) * _forward(run.upstream["model"], count)


def _validate(run: Run, max_gb: float, count: Counting) -> float:
    values, labels = run.recipe.validate_, run.upstream["labels"]
    trained = values.epochs * run.ipc * run.data.classes
    passes = (TRAINING * trained + _validation(run, values)) * _forward(run, count)
    online = label_mode(labels, max_gb) == "online"
    return passes + (trained * _forward(labels.upstream["model"], count) if online else 0)


def _score(run: Run, _max_gb: float, count: Counting) -> float:
    if "images" not in run.upstream:
        return (run.data.val_images or 0) * _forward(run, count)
    return run.ipc * run.data.classes * (1 + run.recipe.score.crops) * _forward(run, count)


def _continual(run: Run, _max_gb: float, count: Counting) -> float:
    """Step s of S trains on s/S of the classes: (S + 1)/2 times all of them."""
    values = run.recipe.continual
    assert values is not None
    seen = (values.steps + 1) / 2
    trained = seen * values.epochs * run.ipc * run.data.classes
    passes = (TRAINING * trained + seen * _validation(run, values)) * _forward(run, count)
    return passes + trained * _forward(run.upstream["model"], count)


_PASSES = {"squeeze": _squeeze, "recover": _recover, "expert": _expert, "distill": _distill,
           "relabel": _relabel, "validate": _validate, "score": _score,
           "continual": _continual}  # fmt: skip


def operations(run: Run, max_gb: float, count: Counting = multiply_adds) -> float:
    """Operations of one job of a run: of a part, of a seed, or of the run.

    Labels above `max_gb` are made online (settings' `labels.max_gb`). Published weights, real and
    released images, hard labels and decoding cost 0. Passes over a split whose size is not declared
    are not counted. `count` counts a forward pass: `multiply_adds` exactly, with torch.
    """
    return 2.0 * _PASSES[run.stage](run, max_gb, count) if run.stage in _PASSES else 0.0


def steps(run: Run, settings: Settings) -> int:
    """Batches that one job's networks process: each takes time beside its operations."""
    recipe, data, images = run.recipe, run.data, run.ipc * run.data.classes
    if run.stage == "squeeze" and not recipe.squeeze.weights:
        return _training_steps(recipe.squeeze, data.train_images or 0, data)
    if run.stage == "recover" and recipe.recover.synthetic:
        blocks = data.shards_per_job * -(-data.classes // recipe.recover.block_size)
        together = 1 if settings.runtime.blocks == "auto" else settings.runtime.blocks
        return recipe.recover.iterations * -(-blocks // together)
    if run.stage == "expert" and (expert := recipe.expert):
        each = _training_steps(expert.optimisation(), data.train_images or 0, data)
        return len(part_experts(run, 0)) * each
    if run.stage == "distill" and (matching := recipe.distill):
        if matching.match == "trajectory":
            passes = 3 if matching.backward == "two_pass" else 2
            return matching.iterations * matching.synthetic_steps * passes
        batches = 2 * matching.outer_steps if matching.match == "gradient" else 2
        return matching.iterations * batches * data.classes
    if run.stage == "relabel" and label_mode(run, settings.labels.max_gb) == "stored":
        return label_epochs(run) * -(-images // EVALUATED)
    if run.stage == "validate":
        return _training_steps(recipe.validate_, images, data)
    if run.stage == "score":
        crops = 1 + recipe.score.crops if "images" in run.upstream else 1
        return crops * -(-(images or data.val_images or 0) // EVALUATED)
    if run.stage == "continual" and (values := recipe.continual):
        return (values.steps + 1) // 2 * _training_steps(values, images, data)
    return 0


def _training_steps(values: Optimisation, images: int, data: Dataset) -> int:
    tested = evaluations(values) * -(-(data.val_images or 0) // EVALUATED)
    return values.epochs * -(-images // values.batch_size) + tested


def read_images(run: Run) -> int:
    """Real images of files of their own that one job decodes before its work."""
    data, recipe = run.data, run.recipe
    if not data.in_folder or data.layout == "cifar100" or data.stream:
        return 0
    tested = run.stage in ("validate", "continual") or (run.stage == "score" and not run.ipc)
    if run.stage == "recover" and not recipe.recover.synthetic:
        return data.shards_per_job * data.classes
    if run.stage == "distill":
        return run.ipc * data.classes if run.upstream else data.train_images or 0
    trained = (run.stage == "squeeze" and not recipe.squeeze.weights) or run.stage == "expert"
    return (tested or trained) * (data.val_images or 0) + trained * (data.train_images or 0)


def decoded_images(run: Run) -> int:
    """Images that one job of a run decodes during its work."""
    if run.stage == "decode":
        return run.data.val_images or 0
    if run.stage == "squeeze" and run.data.stream and not run.recipe.squeeze.weights:
        return run.recipe.squeeze.epochs * (run.data.train_images or 0)
    return 0


def shard_gigabytes(run: Run, shards: Iterable[int]) -> float:
    """Estimated size of a recover or distill job's shards and snapshots, in GB (1e9 bytes)."""
    if run.stage == "distill":
        return run.ipc * run.data.classes * ((PNG + 4) * 3 * run.data.resolution**2 + TAR) / 1e9
    made = set(shards)
    recover = run.recipe.recover
    snapshots = 0
    if recover.synthetic and 0 in made:
        snapshots = sum(step <= recover.iterations for step in recover.snapshots)
    images = (len(made) + snapshots) * run.data.classes
    return images * (PNG * 3 * run.data.resolution**2 + TAR) / 1e9


def expert_gigabytes(run: Run, part: int) -> float:
    """Size of an expert job's weights, of a ConvNet's parameters, in GB (1e9 bytes)."""
    values, data = run.recipe.expert, run.data
    assert values is not None
    depth = int(run.model.removeprefix("convnet"))
    width = max(8, round(128 * run.recipe.architecture.width))
    side = data.resolution // 2**depth
    convolutions = width * (27 + 3) + (depth - 1) * width * (9 * width + 3)  # biases, norms
    weights = convolutions + data.classes * (width * side**2 + 1)
    return len(part_experts(run, part)) * (values.epochs + 1) * 4 * weights / 1e9


def pixel_gigabytes(run: Run, images: int) -> float:
    """Size of `images` of a run's data set as uint8 pixels, in GB (1e9 bytes)."""
    return images * 3 * run.data.resolution**2 / 1e9
