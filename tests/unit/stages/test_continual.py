"""Class-incremental learning: who trains, on what, how it is tested.

Killed at any moment it ends the same.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cda import files
from cda.config.settings import Runtime
from cda.data import sources
from cda.data.shards import load_distilled, write_shard
from cda.engine.checkpoint import Checkpoint
from cda.engine.device import Device
from cda.engine.images import Images
from cda.engine.trainer import Trainer
from cda.errors import ArtifactError, CdaError, ConfigError, DataError, Interrupted
from cda.experiments.runs import Run, continual_run
from cda.method import dsa
from cda.rng import generator
from cda.stages import continual, squeeze
from cda.stages.continual import SeenBatches, accuracy, class_order, seen_classes
from cda.stages.models import fresh_model, load_squeezed

torch.set_num_threads(1)

SECTION = """\
continual:
  steps: 5               # paper Table 14
  epochs: 2              # our choice: speed
  batch_size: 6          # our choice: some steps, the last one short
  lr: 0.1                # our choice
  weight_decay: 5.0e-4   # authors' code
  temperature: 4.0       # our choice
  evaluate_every: 1      # our choice
methods:
"""
IPC = 2
OUT = Path("seed-0.json")
CLASSES = list("0123456789")


@dataclass
class Job:
    """One continual run with its inputs on disk.

    A part folder holds two shards more than the run reads.
    """

    tree: Any
    run: Run
    images: Path = Path("images")
    model: Path = Path("model/model.safetensors")

    def go(self, seed: int = 0, run: Run | None = None, **overrides: Any) -> dict[str, Any]:
        """What the stage writes."""
        context = self.tree.context(run or self.run, **overrides)
        continual.run(context, self.images, self.model, seed, OUT)
        record: dict[str, Any] = json.loads(OUT.read_text(encoding="utf-8"))
        OUT.unlink()
        assert not context.work(f"seed-{seed}").exists()
        assert record.pop("provenance")["precision"] == "fp32"
        return record

    def changed(self, **values: Any) -> Run:
        """The run with other values of its stage."""
        recipe = self.run.recipe
        recipe = recipe.model_copy(update={"continual": recipe.continual.model_copy(update=values)})
        return again(self.run, recipe)

    def write_shards(self, count: int = IPC + 2, **changes: Any) -> None:
        shutil.rmtree(self.images, ignore_errors=True)
        record = {
            "classes": CLASSES,
            "run": self.run.upstream["images"].id,
            "dataset": "digits",
        } | changes
        train = sources.load(self.run.data, "train", Path("data/digits"))
        for ipc in range(count):
            chosen = train.images[
                [np.flatnonzero(train.labels == label)[ipc] for label in range(10)]
            ]
            path = self.images / "part-0" / f"ipc-{ipc:03d}.tar"
            write_shard(path, chosen, record["classes"], ipc, record["run"], record["dataset"])

    def write_model(self, seed: int = 0, classes: list[str] = CLASSES) -> None:
        context = self.tree.context(self.run.upstream["model"])
        model = fresh_model(context.run, context.open_device(), ("a teacher", seed))
        with torch.no_grad():
            for module in model.modules():
                if isinstance(
                    module, nn.BatchNorm2d
                ):  # as of a trained network: batch statistics would show
                    module.running_mean.normal_(0, 0.1)
                    module.running_var.uniform_(0.5, 1.5)
        squeeze.write_model(context, model, classes, self.model, {})


def again(run: Run, recipe: Any) -> Run:
    images, teacher = run.upstream["images"], run.upstream["model"]
    return continual_run(run.data, recipe, images, teacher, "resnet18", IPC, {})


@pytest.fixture
def job(tree: Any) -> Job:
    tree.few_images()
    tree.edit("recipes/digits.yaml", "methods:\n", SECTION)
    below = tree.runs()
    recover, teacher = below["recover"], below["squeeze"]
    run = continual_run(recover.data, recover.recipe, recover, teacher, "resnet18", IPC, {})
    made = Job(tree, run)
    made.write_shards()
    made.write_model()
    return made


# The order of the classes


def test_the_class_order_is_the_authors():
    np.random.seed(0)
    legacy = np.random.permutation(200)
    assert class_order(0, 200).tolist() == legacy.tolist()
    assert legacy[:10].tolist() == [18, 170, 107, 98, 177, 182, 5, 146, 12, 152]
    assert class_order(1, 200).tolist() != legacy.tolist()


def test_steps_are_equal_and_what_was_seen_stays(job):
    seen = seen_classes(job.run)
    assert [len(classes) for classes in seen] == [2, 4, 6, 8, 10]
    assert all(classes.tolist() == class_order(0, 10)[: len(classes)].tolist() for classes in seen)
    assert seen_classes(job.changed(order=3))[0].tolist() == class_order(3, 10)[:2].tolist()


@pytest.mark.parametrize("steps", [3, 4, 20])
def test_steps_must_divide_the_classes(job, steps):
    with pytest.raises(
        ConfigError,
        match=rf"continual\.steps \({steps}\) must divide its 10 classes; use 1, 2, 5, 10",
    ):
        job.go(run=job.changed(steps=steps))


# What a step trains on


def batches(job: Job, seen: list[int], augment: str) -> SeenBatches:
    device = job.tree.context(job.run).open_device()
    pixels, labels, _, _ = load_distilled(job.images, IPC)
    recipe = job.run.recipe.continual.model_copy(update={"augment": augment})
    teacher = load_squeezed(job.model, job.run.upstream["model"], device)
    memory = Images(pixels, labels, job.run.data, device)
    return SeenBatches(memory, np.array(seen), recipe, teacher, ("continual", 0, "seen", len(seen)))


def test_all_epochs_decide_whether_the_teacher_is_compiled(job, compiled_steps):
    made = batches(Job(job.tree, job.changed(batch_size=2)), [3, 1], "none")
    assert made.steps > 1
    assert compiled_steps == [made.recipe.epochs * made.steps]


def normalised(images: np.ndarray, run: Run) -> np.ndarray:
    mean, std = np.float32(run.data.mean), np.float32(run.data.std)
    return ((images.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)


def rows(images: Any) -> list[bytes]:
    """Images as a sorted list: equal ones whatever their order."""
    return sorted(np.round(np.asarray(image, dtype=np.float64), 4).tobytes() for image in images)


def test_an_epoch_visits_every_image_of_the_seen_classes_once(job):
    pixels, labels, _, _ = load_distilled(job.images, IPC)
    own = batches(job, [7, 2, 4, 0], "none")
    assert (own.images, own.steps) == (8, 2)
    first, second = ([inputs for inputs, _ in own.epoch(epoch)] for epoch in (0, 1))
    wanted = rows(normalised(pixels[np.isin(labels, [7, 2, 4, 0])], job.run))
    assert rows(torch.cat(first)) == rows(torch.cat(second)) == wanted
    assert not torch.equal(torch.cat(first), torch.cat(second))
    (again, _), *rest = own.epoch(0, first_step=1)
    assert torch.equal(again, first[1])
    assert rest == []


def test_the_teacher_judges_the_augmented_inputs_and_stays_as_it_is(job):
    plain, augmented = batches(job, [0, 1, 5, 8], "none"), batches(job, [0, 1, 5, 8], "dsa")
    before = copy.deepcopy(augmented.teacher.state_dict())
    changed = 0
    for epoch in range(3):
        pairs = zip(plain.epoch(epoch), augmented.epoch(epoch), strict=True)
        for step, ((untouched, _), (inputs, logits)) in enumerate(pairs):
            draws = generator("continual", 0, "seen", 4, epoch, "dsa", step)
            assert torch.equal(inputs, dsa.augment(untouched, draws))
            with torch.no_grad():
                torch.testing.assert_close(logits, augmented.teacher(inputs))
            assert not logits.requires_grad
            changed += not torch.equal(inputs, untouched)
    assert changed >= 4
    assert all(
        torch.equal(before[name], tensor) for name, tensor in augmented.teacher.state_dict().items()
    )


class Recorder(Trainer):
    """The real trainer; records its inputs."""

    made: list[Recorder]

    def __init__(self, model: nn.Module, *rest: Any, **named: Any) -> None:
        super().__init__(model, *rest, **named)
        self.first = copy.deepcopy(model.state_dict())
        self.seen: list[torch.Tensor] = []
        self.made.append(self)

    def step(self, images: torch.Tensor, *rest: Any) -> None:
        self.seen.append(images.clone())
        super().step(images, *rest)


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    Recorder.made = []
    monkeypatch.setattr(continual, "Trainer", Recorder)
    return Recorder.made


def test_a_step_trains_a_fresh_model_on_the_first_images_of_the_seen_classes(job, trainers):
    run = job.changed(augment="none")
    job.go(run=run)
    train = sources.load(run.data, "train", Path("data/digits"))
    assert len(trainers) == 5
    for trainer, seen in zip(trainers, seen_classes(run), strict=True):
        first = [np.flatnonzero(train.labels == label)[:IPC] for label in seen]
        wanted = normalised(train.images[np.concatenate(first)], run)
        assert rows(torch.cat(trainer.seen)) == rows(np.concatenate([wanted, wanted])), "two epochs"
        fresh = fresh_model(run, trainer.device, ("continual", 0, "seen", len(seen))).state_dict()
        assert all(torch.equal(trainer.first[name], tensor) for name, tensor in fresh.items())
        assert fresh["fc.weight"].shape[0] == 10


def test_a_step_is_plain_distillation(job, trainers):
    """A step's weights by torch's own optimiser, schedule and loss, on the same inputs."""
    run = job.changed(
        steps=2, epochs=3, batch_size=5, lr=1e-3
    )  # so slow that rounding does not grow
    job.go(run=run)
    recipe, trainer = run.recipe.continual, trainers[0]
    model = fresh_model(run, trainer.device, ("continual", 0, "seen", 5))
    teacher = load_squeezed(job.model, run.upstream["model"], trainer.device)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=3)
    steps = len(trainer.seen) // 3
    assert steps == 2  # five classes of two images, five at a time
    model.train()
    for step, images in enumerate(trainer.seen):
        seen, taught = model(images) / recipe.temperature, teacher(images) / recipe.temperature
        entropy = (
            F.softmax(taught, 1) * (F.log_softmax(taught, 1) - F.log_softmax(seen, 1))
        ).sum() / len(images)
        optimiser.zero_grad()
        (entropy * recipe.temperature**2).backward()
        optimiser.step()
        if (step + 1) % steps == 0:
            schedule.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


# How a step is tested


class Table(nn.Module):
    """A row of logits for each grey level that an image may have throughout."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits[(images[:, 0, 0, 0] * 255).round().long()]


def test_accuracy_is_of_the_seen_classes_masked_or_not(job):
    device = Device(Runtime(device="cpu"), torch.device("cpu"), None)
    data = job.run.data.model_copy(update={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    draws = np.random.default_rng(0)
    labels, logits = draws.integers(0, 10, 200), draws.normal(size=(200, 10))
    logits[np.arange(200), labels] += 1.5
    pixels = np.tile(np.arange(200, dtype=np.uint8)[:, None, None, None], (1, 8, 8, 3))
    test, seen = Images(pixels, labels, data, device), [6, 1, 3]
    count, right, masked = 0, 0, 0
    for label, row in zip(labels, logits, strict=True):
        if label in seen:
            count += 1
            right += max(range(10), key=lambda c: row[c]) == label
            masked += max(seen, key=lambda c: row[c]) == label
    found = accuracy(Table(torch.from_numpy(logits).float()), test, np.array(seen), batch=7)
    assert found == pytest.approx(
        {"top1": 100 * right / count, "top1_masked": 100 * masked / count}
    )
    assert 0 < right < masked < count


def test_unseen_classes_catch_guesses_unless_they_are_masked(job):
    """A model that always prefers class 9, then the right one."""
    device = Device(Runtime(device="cpu"), torch.device("cpu"), None)
    data = job.run.data.model_copy(update={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    pixels = np.tile(np.arange(10, dtype=np.uint8)[:, None, None, None], (1, 8, 8, 3))
    model = Table(torch.eye(10) + 2 * torch.eye(10)[9])
    test = Images(pixels, np.arange(10), data, device)
    assert accuracy(model, test, np.array([4, 0, 2])) == {"top1": 0.0, "top1_masked": 100.0}
    assert accuracy(model, test, np.arange(10)) == {"top1": 10.0, "top1_masked": 10.0}


# What it writes


def test_the_json_has_the_last_epoch_of_every_step(job):
    record = job.go()
    assert (record["run"], record["stage"], record["ipc"], record["seed"]) == (
        job.run.id,
        "continual",
        IPC,
        0,
    )
    assert record["class_order"] == [str(label) for label in class_order(0, 10)]
    assert (
        list(record["top1"])
        == list(record["top1_masked"])
        == list(record["curve"])
        == ["2", "4", "6", "8", "10"]
    )
    for seen, curve in record["curve"].items():
        assert [row["epoch"] for row in curve] == [1, 2]
        assert (record["top1"][seen], record["top1_masked"][seen]) == (
            curve[-1]["top1"],
            curve[-1]["top1_masked"],
        )
        assert record["top1"][seen] <= record["top1_masked"][seen]
    assert record["top1"]["10"] == record["top1_masked"]["10"]


def test_it_depends_on_its_seed_and_on_the_first_images_alone(job):
    job = Job(job.tree, job.changed(steps=2))
    record = job.go()
    assert job.go(seed=1)["curve"] != record["curve"]
    job.write_shards(IPC)
    assert job.go() == record


# Killed and started again


class Killed(BaseException):
    """Ends a job as a kill does: nothing is saved for it."""


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """`at` counts down over steps of the optimiser and writes of files.

    `then` is done when it comes to 0.
    """
    record: dict[str, Any] = {"at": -1, "then": None, "steps": 0}

    def count(_: Any) -> None:
        record["at"] -= 1
        if record["at"] == 0:
            record["then"]()

    step, replace = Trainer.step, os.replace

    def counted_step(*arguments: Any) -> None:
        record["steps"] += 1
        count("step")
        step(*arguments)

    def counted_replace(*arguments: Any) -> None:
        count("before")
        replace(*arguments)
        count("after")

    monkeypatch.setattr(Trainer, "step", counted_step)
    monkeypatch.setattr(files.os, "replace", counted_replace)
    return record


def kill() -> None:
    raise Killed


EVERY_STEP = {"runtime.checkpoint_seconds": 0}


def test_killed_at_many_moments_it_ends_the_same(job, moments):
    wanted = job.go()
    undisturbed = moments["steps"]
    record, kills = None, 0
    while record is None and kills < 30:
        moments |= {"at": 13, "then": kill}
        try:
            record = job.go(**EVERY_STEP)
        except Killed:
            kills += 1
            assert not OUT.exists()
    assert record == wanted
    assert kills >= 6
    assert moments["steps"] <= 2 * undisturbed + kills, "work was done again"


def test_killed_around_the_end_of_a_step_it_ends_the_same(job, moments):
    job = Job(job.tree, job.changed(steps=2, epochs=1))
    # three moments an optimiser step, two a finished step and two for the output: 6 + 2 + 12 + 2 +
    # 2
    wanted = job.go()
    for at in (6, 7, 8, 22, 23, 24):
        moments |= {"at": at, "then": kill}
        with pytest.raises(Killed):
            job.go(**EVERY_STEP)
        assert OUT.exists() == (at == 24)
        assert job.go() == wanted, f"killed at moment {at}"


def test_a_stopped_job_continues_where_it_was(job, moments):
    wanted = job.go()
    undisturbed, moments["steps"] = moments["steps"], 0
    for at in (3, 10):
        moments |= {"at": at, "then": lambda: os.kill(os.getpid(), signal.SIGTERM)}
        with pytest.raises(Interrupted, match="stopped by SIGTERM"):
            job.go()
    assert job.go() == wanted
    assert moments["steps"] == undisturbed


def test_finished_steps_are_not_trained_again(job, moments, monkeypatch):
    job.go()
    undisturbed, moments["steps"] = moments["steps"], 0
    monkeypatch.setattr(Checkpoint, "load", lambda _: None)
    moments |= {"at": undisturbed, "then": kill}  # writes count too, so this is in the last step
    with pytest.raises(Killed):
        job.go()
    assert moments["steps"] < undisturbed
    before, moments["steps"] = moments["steps"], 0
    job.go()
    assert 0 < moments["steps"] < undisturbed / 2 < before


def test_work_begun_with_another_teacher_is_not_gone_on_with(job, moments):
    job = Job(job.tree, job.changed(steps=2, epochs=1))
    old = job.go()
    moments |= {"at": 12, "then": kill}
    with pytest.raises(Killed):
        job.go(**EVERY_STEP)
    assert len(list(job.tree.context(job.run).work("seed-0").glob("s*"))) == 2, (
        "a finished step and a state"
    )
    job.write_model(seed=1)
    mixed = job.go()
    assert mixed == job.go()
    assert mixed["curve"] != old["curve"]


# What does not fit is refused in one line


def refused(job: Job, kind: type[CdaError], *parts: str, **arguments: Any) -> None:
    with pytest.raises(kind) as error:
        job.go(**arguments)
    assert "\n" not in str(error.value)
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert not OUT.exists()


def test_shards_of_another_run_are_refused(job):
    job.write_shards(run="constant-resnet18-00000000")
    refused(job, ArtifactError, "ipc-000.tar: belongs to run constant-resnet18-00000000", "not ")


def test_too_few_shards_are_refused(job):
    job.write_shards(IPC - 1)
    refused(job, ArtifactError, "1 of 2 shards are missing (ipc-001.tar first)")


def test_classes_in_another_order_than_the_data_sets_are_refused(job):
    job.write_shards(classes=CLASSES[::-1])
    job.write_model(classes=CLASSES[::-1])
    refused(job, DataError, "images: not the classes of digits at hand")


@pytest.mark.parametrize("classes", [CLASSES[::-1], [*CLASSES[:-1], "ten"]])
def test_a_teacher_of_other_classes_is_refused(job, classes):
    job.write_model(classes=classes)
    refused(job, ArtifactError, "model.safetensors: its classes, or their order, are not those")


def test_a_teacher_of_another_run_is_refused(job):
    described = job.model.with_name("squeeze.json")
    described.write_text(
        described.read_text().replace(job.run.upstream["model"].id, "resnet18-00000000")
    )
    refused(job, ArtifactError, "is the model of run resnet18-00000000")


def test_a_negative_seed_is_refused(job):
    refused(job, ConfigError, "--seed -1: seeds are counted from 0", seed=-1)
