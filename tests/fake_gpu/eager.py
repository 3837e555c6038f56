"""Every stage's eager step on a CUDA device without data, in a process of its own.

Usage: python -m tests.fake_gpu.eager [STAGE …]; prints a JSON object with, for each stage, the
waits, copies and launches of its last step, batch … (a phase ends at a `yield`), or its error.
"""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tests.fake_gpu.fake_cuda import fake_cuda
from torch import nn

from cda.config.recipe import (
    Architecture,
    Continual,
    Optimisation,
    Recover,
    Relabel,
    Score,
    Squeeze,
    Validate,
)
from cda.config.settings import Dataset, Runtime
from cda.data.label_codec import Codec
from cda.data.label_store import FORMAT, LabelStore, LabelWriter
from cda.engine.batches import DistilledBatches, SqueezeBatches
from cda.engine.blocks import Block, blocks_of
from cda.engine.checkpoint import join_tensors, split_tensors
from cda.engine.device import Device, open_device
from cda.engine.graphs import Graphed
from cda.engine.images import Images
from cda.engine.objective import Objective
from cda.engine.recovery import RecoverJob, Recovery, recover_blocks
from cda.engine.signals import Stop
from cda.engine.soft_labels import LabelledBatches
from cda.engine.trainer import Trainer
from cda.files import write_json
from cda.method import dsa, networks
from cda.method.losses import kd_loss
from cda.rng import generator
from cda.stages.continual import SeenBatches, accuracy
from cda.stages.models import accelerate
from cda.stages.score import crop_accuracies
from cda.stages.squeeze import smoothed_ce
from cda.stages.validate import loss_of

Phases = Iterator[str]
Network = Callable[[Device], nn.Module]
CLASSES, COUNT, BATCH = 10, 16, 8
COMPILE = "never"
DATA = Dataset(
    name="toy", layout="digits", classes=CLASSES, resolution=32, mean=(0.5,) * 3, std=(0.25,) * 3,
    get="made up",
)  # fmt: skip
POST = Validate(epochs=2, batch_size=BATCH, optimizer="adamw", lr=1e-3)


def device(replays: bool = False) -> Device:
    """The device without compilation; `replays`: it records steps as CUDA graphs all the same."""
    on = open_device(
        Runtime.model_validate({"device": "cuda", "compile": COMPILE, "cpu_threads": 1})
    )
    return Replaying(**vars(on)) if replays else on


class Replaying(Device):
    """A device that does not compile, and replays a step from its fifth call on."""

    def graphed(self, step: Any, steps: int, length: int) -> Any:
        return Graphed(step, length)


def images(on: Device, folder: Path | None = None) -> Images:
    """Random images on the device, or in a memory map in `folder`."""
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)
    if folder is not None:
        np.save(folder / "pixels.npy", pixels)
        pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    return Images(pixels, draws.integers(0, CLASSES, COUNT), DATA, on)


def new_folder() -> Path:
    return Path(tempfile.mkdtemp(dir=tempfile.tempdir))


def small(on: Device, frozen: bool = False) -> nn.Module:
    """A network with a layer of every kind that draws, counts or normalises."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES),
    )  # fmt: skip
    return on.freeze(model) if frozen else on.place(model)


def frozen(on: Device) -> nn.Module:
    return small(on, frozen=True)


def resnet(on: Device, frozen: bool = True, width: float = 0.125) -> nn.Module:
    model = networks.build("resnet18", CLASSES, 32, Architecture(stem="small", width=width))
    return on.freeze(model) if frozen else on.place(model)


def trainer_of(model: nn.Module, values: Optimisation, on: Device) -> Trainer:
    trainer = Trainer(model, values, on, ("toy", 0))
    trainer.model.train()
    return trainer


def squeeze(
    optimizer: str, on_disk: bool = False, replays: bool = False, epochs: int = 1
) -> Phases:
    on = device(replays)
    recipe = Squeeze.model_validate(
        {"epochs": 4, "batch_size": BATCH, "lr": 0.01, "augment": "random_resized_crop",
         "cutout": 0.3, "optimizer": optimizer}
    )  # fmt: skip
    trainer, loss = trainer_of(small(on), recipe, on), smoothed_ce(0.1)
    batches = SqueezeBatches(images(on, new_folder() if on_disk else None), recipe)
    yield "start"
    for epoch in range(epochs):
        for index, (seen, labels) in enumerate(batches.epoch(epoch)):
            trainer.step(seen, labels, loss, 0.01)
            yield "step" if index else "first step"


def relabelled(recipe: Relabel, folder: Path, on: Device) -> Phases:
    """Label images with `recipe` into `folder`, or write the header alone."""
    labels = images(on)
    header: dict[str, Any] = {"format": FORMAT, "run": "toy", "labels": recipe.labels, "epochs": 2}
    if recipe.labels == "stored":
        batches, codec = (
            DistilledBatches(labels, recipe, BATCH, 2),
            Codec(CLASSES, recipe.bits, recipe.top_k, POST.temperature),
        )
        writer = LabelWriter(folder, codec, 2, COUNT)
        logits_of = accelerate(frozen(on), on, 2 * batches.steps, BATCH)
        yield "start"
        plan = batches.plan(0)
        for start in range(0, COUNT, BATCH):
            chosen = plan.order[start : start + BATCH]
            with torch.inference_mode(), on.autocast():
                logits = logits_of(batches.inputs(plan, chosen))
            writer.write(0, chosen, logits)
            yield "batch" if start else "first batch"
        header |= writer.close()
    header |= {"classes": [str(label) for label in range(CLASSES)], "images_digest": ""}
    header |= {"temperature": POST.temperature, "recipe": recipe.model_dump(mode="json")}
    write_json(folder / "header.json", header)


def validate(network: Network = small, epochs: int = 1, **values: Any) -> Phases:
    """Relabel with a recipe, then train `network` on what it wrote."""
    on, folder = device(), new_folder() / "labels"
    folder.mkdir()
    recipe = Relabel.model_validate({"epochs": 2, "batch_size": 16, "cutout": 0.4} | values)
    for phase in relabelled(recipe, folder, on):
        yield f"relabel {phase}"
    store = LabelStore(folder)
    teacher = frozen(on) if store.mode == "online" else None
    distilled = DistilledBatches(images(on), store.recipe, BATCH, POST.epochs)
    batches = LabelledBatches(distilled, store, teacher, on, POST.epochs)
    trainer, loss = trainer_of(network(on), POST, on), loss_of(POST, store)
    yield "start"
    for epoch in range(epochs):
        for index, (seen, target) in enumerate(batches.epoch(epoch % POST.epochs)):
            trainer.step(seen, target, loss, 1e-3)
            yield "step" if index else "first step"


def evaluate() -> Phases:
    on = device()
    model, real = small(on), images(on)
    yield "start"
    real.evaluate(model, BATCH)
    yield "set"


def score() -> Phases:
    on = device()
    model, distilled, values = frozen(on), images(on), Score(crops=2)
    yield "start"
    crop_accuracies(model, distilled, values, "toy")
    yield "set"


def recover(
    blocks: int, replays: bool = False, network: Network = resnet, steps: int = 2, **values: Any
) -> Phases:
    on, size = device(replays), 5
    recipe = Recover.model_validate(
        {"mode": "curriculum", "block_size": size, "jitter": 4, "iterations": 1000} | values
    )
    objective = Objective(network(on), blocks, recipe, on, 10)
    recovery = Recovery(objective, [Block(i, 0, size) for i in range(blocks)], recipe, DATA)
    yield "start"
    for step in range(steps):
        recovery.step()
        yield "step" if step else "first step"
    if steps > 3:  # a recorded step must not be restored
        return
    tensors: dict[str, torch.Tensor] = {}
    state = join_tensors(split_tensors(recovery.state(), tensors), tensors)
    yield "save"
    recovery.restore(state)
    recovery.step()
    yield "restore and step"
    list(recovery.by_block())
    yield "pixels"


class Dropped:
    """Recovered images that nobody stores."""

    def has(self, block: Block) -> bool:
        return False

    def finish(self, block: Block, pixels: Any, trace: Any) -> None:
        assert pixels.shape == (block.size, 32, 32, 3)

    def snapshot(self, block: Block, step: int, pixels: Any) -> None:
        assert step == 1


def recover_part() -> Phases:
    """A recover job of three blocks, the last a smaller one: measures memory, packs, reads."""
    on = device()
    recipe = Recover(mode="curriculum", block_size=4, iterations=2, snapshots=(1,))
    run: Any = SimpleNamespace(id="toy", recipe=SimpleNamespace(recover=recipe), data=DATA)
    job = RecoverJob(run, frozen(on), range(CLASSES), on, new_folder(), 1e9, Stop(), Dropped())
    yield "start"
    recover_blocks(job, blocks_of(0, CLASSES, recipe.block_size))
    yield "part"


def augment(operation: str) -> Phases:
    on = device()
    real = images(on)
    seen = real.normalised(real.at(torch.arange(BATCH, device=on.torch_device)))
    yield "start"
    values = dsa.OPERATIONS[operation][0](generator("toy"), len(seen), seen.shape[-1])
    dsa.apply(seen, dsa.Operation(operation, values))
    yield "batch"


def continual() -> Phases:
    on = device()
    recipe = Continual(steps=5, epochs=2, batch_size=BATCH, optimizer="sgd", lr=0.1, augment="dsa")
    memory, seen = images(on), np.arange(CLASSES)
    trainer = trainer_of(small(on), recipe, on)
    batches = SeenBatches(memory, seen, recipe, frozen(on), ("toy", 0))
    yield "start"
    for index, (inputs, logits) in enumerate(batches.epoch(0)):
        trainer.step(inputs, logits, lambda own, target: kd_loss(own, target, 20.0, True), 0.1)
        yield "step" if index else "first step"
    accuracy(trainer.model, memory, seen, BATCH)
    yield "accuracy"


def checkpoint(optimizer: str) -> Phases:
    on = device()
    values = POST.model_copy(update={"optimizer": optimizer})
    trainer, other = (trainer_of(small(on), values, on) for _ in range(2))
    seen, labels = torch.empty(BATCH, 3, 32, 32, device="cuda"), torch.arange(BATCH, device="cuda")
    trainer.step(seen, labels, smoothed_ce(0.0), 0.01)
    yield "start"
    tensors: dict[str, torch.Tensor] = {}
    state = join_tensors(split_tensors(trainer.state(), tensors), tensors)
    yield "save"
    other.restore(state)
    yield "restore"
    other.step(seen, labels, smoothed_ce(0.0), 0.01)
    yield "step"


def mix_devices() -> Phases:
    """What must fail: an operation on tensors of two devices."""
    torch.zeros(3, device="cuda") + torch.zeros(3)
    yield "step"


def wait() -> Phases:
    """What must be counted: a read, an index of the host, a copy from pageable memory, a fence."""
    values = torch.zeros(3, device="cuda")
    yield "start"
    values[torch.tensor([0, 2])]
    values.copy_(torch.zeros(3))
    float(values.sum())
    values.nonzero()
    torch.cuda.synchronize()
    torch.zeros(3).pin_memory().to("cuda", non_blocking=True)
    yield "step"


STAGES: dict[str, Callable[[], Phases]] = {
    **{f"squeeze {name}": partial(squeeze, name) for name in ("sgd", "adam", "adamw")},
    "squeeze replayed": partial(squeeze, "sgd", replays=True, epochs=3),
    "squeeze from the disk": partial(squeeze, "sgd", on_disk=True),
    **{
        f"validate q{bits} top{top_k} {mixing}": partial(
            validate, bits=bits, top_k=top_k, mixing=mixing
        )
        for bits, top_k, mixing in (
            (16, 0, "none"), (16, 0, "cutmix"), (16, 0, "mixup"), (8, 0, "cutmix"),
            (4, 0, "cutmix"), (16, 3, "cutmix"), (8, 3, "cutmix"), (4, 3, "cutmix"),
        )
    },
    **{
        f"validate {labels} {mixing}": partial(validate, labels=labels, mixing=mixing)
        for labels in ("online", "hard")
        for mixing in ("none", "cutmix", "mixup")
    },
    "evaluate": evaluate,
    "score": score,
    "recover 1 block": partial(recover, 1),
    "recover 2 blocks": partial(recover, 2, network=frozen),
    "recover replayed": partial(recover, 1, replays=True, network=frozen, steps=6),
    "recover part": recover_part,
    "recover per image": partial(recover, 2, network=frozen, per_image=True),
    **{f"dsa {name}": partial(augment, name) for name in dsa.OPERATIONS},
    "continual": continual,
    **{f"checkpoint {name}": partial(checkpoint, name) for name in ("sgd", "adam", "adamw")},
    "mixed devices": mix_devices,
    "waits": wait,
}  # fmt: skip


def run(name: str) -> dict[str, Any]:
    """The waits, copies and launches of each phase of a stage but its start, or its error."""
    phases: dict[str, Any] = {}
    try:
        with fake_cuda() as census:
            for phase in STAGES[name]():
                phases[phase] = [counter.total() for counter in vars(census.take()).values()]
    except Exception:
        phases["error"] = traceback.format_exc(limit=-6)
    return {phase: counts for phase, counts in phases.items() if not phase.endswith("start")}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as tempfile.tempdir:
        print(json.dumps({name: run(name) for name in sys.argv[1:] or STAGES}))
