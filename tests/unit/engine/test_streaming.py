"""Streamed data sets: images as torchvision sees them, epochs that resume, validation images that
are decoded once.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from cda.config.recipe import Squeeze
from cda.config.settings import Dataset, Runtime
from cda.data import sources
from cda.data.decoded import read_decoded
from cda.engine import images
from cda.engine.device import Device
from cda.engine.images import Images
from cda.engine.signals import Stop
from cda.engine.streaming import StreamedBatches, worker_count
from cda.errors import ArtifactError, ConfigError, DataError, Interrupted
from cda.experiments.runs import decode_run
from cda.method.augment import draw_cutouts
from cda.rng import generator
from cda.stages import decode, squeeze

torch.set_num_threads(1)
SIZE = 24
DATA = Dataset(
    name="toy", layout="image_folder", classes=2, resolution=SIZE, mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.3, 0.4), stream=True, get="fetch it from example.org.",
)  # fmt: skip


def device(workers: int | str = 0, **place: int) -> Device:
    return Device(Runtime(device="cpu", workers=workers), torch.device("cpu"), None, **place)


def recipe(**values: Any) -> Squeeze:
    return Squeeze(**({"epochs": 2, "batch_size": 4, "lr": 0.1, "seed": 3} | values))


@pytest.fixture
def root(tmp_path):
    """Seven photographs of several sizes for training, five to test on, as smooth as photographs
    are.
    """
    draws = np.random.default_rng(0)
    for split, count in (("train", 7), ("val", 5)):
        for index in range(count):
            height, width = (int(side) for side in draws.integers(30, 70, 2))
            small = Image.fromarray(draws.integers(0, 256, (5, 5, 3), dtype=np.uint8))
            path = tmp_path / split / "ab"[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            small.resize((width, height), Image.Resampling.BICUBIC).save(path)
    return tmp_path


def batches(
    root: Path, values: Squeeze, workers: int = 0, data: Dataset = DATA, **place: int
) -> StreamedBatches:
    return StreamedBatches(sources.files(data, root), values, device(workers, **place))


def epoch(
    stream: StreamedBatches, number: int, first: int = 0
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(stream.epoch(number, first))


def assert_equal(found: Any, expected: Any) -> None:
    assert len(found) == len(expected) > 0
    for (pixels, labels), (others, other_labels) in zip(found, expected, strict=True):
        assert torch.equal(pixels, others)
        assert torch.equal(labels, other_labels)


def by_hand(
    root: Path, values: Squeeze, number: int, fit: str = "auto"
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The epoch one image after the other, with torchvision's transforms composed and the square
    put in by a loop.
    """
    paths = [*sorted(root.glob("train/a/*")), *sorted(root.glob("train/b/*"))]
    crops = {
        "random_resized_crop": [v2.RandomResizedCrop(SIZE, scale=values.crop_scale)],
        "pad_crop": [
            v2.Resize(SIZE),
            v2.CenterCrop(SIZE),
            v2.RandomCrop(SIZE, padding=values.padding),
        ],
        "none": [v2.Resize(SIZE), v2.CenterCrop(SIZE)],
    }
    if fit == "squash":
        crops["none"] = [v2.Resize((SIZE, SIZE))]
    first = v2.Compose([*crops[values.augment], v2.RandomHorizontalFlip(values.flip)])
    images, labels = [], []
    for index in generator("squeeze", values.seed, number, "order").permutation(7):
        draws = generator("squeeze", values.seed, number, "image", index)
        torch.manual_seed(int(draws.integers(2**63)))
        pixels = np.array(first(Image.open(paths[index])))
        if values.cutout:
            square = draw_cutouts(draws, 1, SIZE, values.cutout)
            top, bottom, left, right = square.boxes[0]
            for row in range(top, bottom):
                for column in range(left, right):
                    pixels[row, column] = np.rint(square.colours[0] * 255)
        image = Image.fromarray(pixels)
        if values.randaugment:
            image = v2.RandAugment(values.randaugment, 9)(image)
        scaled = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        images.append(
            (scaled - torch.tensor(DATA.mean).view(3, 1, 1)) / torch.tensor(DATA.std).view(3, 1, 1)
        )
        labels.append(int(paths[index].parent.name == "b"))
    pairs = [(start, min(start + 4, 7)) for start in (0, 4)]
    return [(torch.stack(images[low:high]), torch.tensor(labels[low:high])) for low, high in pairs]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"crop_scale": (0.3, 0.6), "randaugment": 2, "cutout": 0.5},
        {"augment": "pad_crop", "padding": 3, "cutout": 0.3},
        {"augment": "none", "flip": 0.0, "randaugment": 2, "cutout": 0.5},
        {"augment": "none", "flip": 1.0},
    ],
    ids=["crop", "all", "pad", "imagenet21k", "flip"],
)
def test_images_are_those_of_torchvision(root, values):
    stream = batches(root, recipe(**values))
    assert (stream.images, stream.steps) == (7, 2)
    for number in (0, 1):
        assert_equal(epoch(stream, number), by_hand(root, recipe(**values), number))


def test_squashed_images_are_those_of_torchvision(root):
    """As ImageNet-21K-P's are (fidelity 22)."""
    values = recipe(augment="none", flip=0.0, randaugment=2, cutout=0.5)
    stream = batches(root, values, data=DATA.model_copy(update={"fit": "squash"}))
    assert_equal(epoch(stream, 0), by_hand(root, values, 0, "squash"))


def test_workers_change_nothing_nor_what_torch_draws_next(root):
    values = recipe(randaugment=2, cutout=0.5)
    torch.manual_seed(0)
    expected = torch.rand(3)
    made = []
    for workers in (0, 2):
        torch.manual_seed(0)
        made.append(epoch(batches(root, values, workers), 1))
        assert torch.equal(torch.rand(3), expected)
    assert_equal(*made)


@pytest.mark.parametrize(
    ("setting", "cores", "world", "expected"),
    [
        ("auto", 10, 1, 9),
        ("auto", 1, 1, 1),
        ("auto", 128, 1, 16),
        ("auto", 40, 4, 9),
        ("auto", 2, 4, 1),
        (3, 128, 4, 3),
        (0, 128, 1, 0),
    ],
)
def test_a_rank_decodes_with_its_share_of_the_job_s_cores(
    setting, cores, world, expected, monkeypatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert worker_count(device(setting, world=world)) == expected


def test_a_resumed_epoch_goes_on_and_reads_nothing_that_it_skips(root, monkeypatch):
    stream = batches(root, recipe(randaugment=1))
    complete, read = epoch(stream, 1), []
    content = stream.files.source.content
    monkeypatch.setattr(
        stream.files.source, "content", lambda path: read.append(path) or content(path)
    )
    assert_equal(epoch(stream, 1, 1), complete[1:])
    assert len(read) == 3


def test_ranks_share_each_batch(root):
    """Of the last batch of three, one rank has all: a rank has two images, or none that count."""
    complete = epoch(batches(root, recipe()), 0)
    first, second = (epoch(batches(root, recipe(), rank=rank, world=2), 0) for rank in (0, 1))
    shares = [
        torch.stack([own[0][0], other[0][0]], dim=1).flatten(0, 1)
        for own, other in ((first, second),)
    ]
    assert torch.equal(shares[0], complete[0][0])
    assert torch.equal(first[1][0], complete[1][0])
    assert [device(rank=rank, world=2).weight(3) for rank in (0, 1)] == [2.0, 0.0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_ends_in_one_line(root, workers):
    path = root / "train/a/2.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError) as caught:
        epoch(batches(root, recipe(), workers), 0)
    assert str(caught.value).startswith(
        f"{path}: toy needs a complete image, found 200 bytes that do not decode"
    )
    assert "\n" not in str(caught.value)


def test_data_sets_without_a_file_an_image_cannot_be_streamed(root):
    digits = DATA.model_copy(update={"layout": "digits", "classes": 10})
    with pytest.raises(ConfigError, match="stream needs one file per image"):
        sources.files(digits, root)


# Validation images


@pytest.fixture
def streamed(tree):
    """Forty held-out digits in folders, and the run that decodes them."""
    tree.few_images()
    tree.edit("datasets/digits.yaml", "shards_per_job: 2", "shards_per_job: 2\nstream: true")
    squeezed = tree.runs()["squeeze"]
    return tree, decode_run(squeezed.data, squeezed.recipe)


def decoded(tree: Any, run: Any, **settings: Any) -> Path:
    context = tree.context(run, **settings)
    out = Path(context.layout.decoded(run))
    decode.run(context, out)
    return out


def test_decoded_images_are_those_of_the_data_set(streamed):
    tree, run = streamed
    out = decoded(tree, run)
    real = sources.load(run.data, "val", Path("data/digits"))
    found = read_decoded(out, run.id, 8)
    assert isinstance(found.images, np.memmap)
    np.testing.assert_array_equal(found.images, real.images)
    np.testing.assert_array_equal(found.labels, real.labels)
    assert found.classes == real.classes
    record = json.loads(out.with_name("val.json").read_text())
    assert (record["run"], record["shape"]) == (run.id, [40, 8, 8, 3])
    assert record["provenance"]["host"]
    assert not Path(tree.context(run).layout.work(run, "val")).exists()


def test_images_that_a_gpu_has_no_room_for_are_the_same(tree, monkeypatch):
    context = tree.context(tree.runs()["squeeze"])
    resident = context.validation(device())
    monkeypatch.setattr(images, "fits_on_gpu", lambda _size, _machine: False)
    apart = context.validation(device())
    assert not hasattr(apart, "pixels")
    index = torch.tensor([3, 39, 0])
    assert torch.equal(apart.at(index), resident.at(index))


def test_a_context_has_the_same_validation_images_streamed_or_not(streamed):
    tree, run = streamed
    decoded(tree, run)
    context = tree.context(tree.runs()["squeeze"])
    mapped = context.validation(device())
    tree.edit("datasets/digits.yaml", "stream: true", "stream: false")
    resident = tree.context(tree.runs()["squeeze"]).validation(device())
    assert mapped.classes == resident.classes == list("0123456789")
    index = torch.tensor([3, 39, 0])
    assert torch.equal(mapped.at(index), resident.at(index))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
    assert mapped.evaluate(model, 7) == resident.evaluate(model, 7)


def test_ranks_share_an_evaluation(monkeypatch):
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (20, SIZE, SIZE, 3), dtype=np.uint8)
    labels = draws.integers(0, 2, 20)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE**2, 2))
    one = Images(pixels, labels, DATA, device()).evaluate(model, 3)["top1"]
    monkeypatch.setattr(Device, "total", lambda self, values: values)  # each rank's own part
    parts = [
        Images(pixels, labels, DATA, device(rank=r, world=3)).evaluate(model, 3)["top1"]
        for r in range(3)
    ]
    assert sum(parts) == pytest.approx(one)
    assert min(parts) > 0


def stopping(monkeypatch: pytest.MonkeyPatch, count: int) -> list[np.ndarray]:
    """Have a signal come once `count` images are decoded.

    The images that are decoded, of all starts.
    """
    made: list[np.ndarray] = []
    stops: list[Stop] = []
    source = sources.Folders.decoded

    def counted(self: Any, paths: Any) -> Any:
        for image in source(self, paths):
            made.append(image)
            if len(made) == count:
                stops[-1].signal = 15
            yield image

    class Noted(Stop):
        def __init__(self) -> None:
            super().__init__()
            stops.append(self)

    monkeypatch.setattr(sources.Folders, "decoded", counted)
    monkeypatch.setattr("cda.engine.lock.Stop", Noted)
    return made


@pytest.mark.parametrize("count", [1, 13, 40])
def test_decoding_goes_on_where_it_was(streamed, monkeypatch, count):
    tree, run = streamed
    complete = decoded(tree, run)
    expected = complete.read_bytes()
    complete.unlink()
    made = stopping(monkeypatch, count)
    with pytest.raises(Interrupted):
        decoded(tree, run)
    assert not complete.exists()
    decoded(tree, run)
    assert len(made) == 40
    assert complete.read_bytes() == expected
    read_decoded(complete, run.id, 8)


def test_decoding_starts_again_when_the_files_are_others(streamed, monkeypatch):
    tree, run = streamed
    made = stopping(monkeypatch, 13)
    with pytest.raises(Interrupted):
        decoded(tree, run)
    Path("data/digits/val/0/0.png").rename("data/digits/val/0/9.png")
    out = decoded(tree, run)
    assert len(made) == 13 + 40
    np.testing.assert_array_equal(
        np.load(out), sources.load(run.data, "val", Path("data/digits")).images
    )


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda out: out.unlink(), "damaged or missing"),
        (lambda out: out.write_bytes(out.read_bytes()[:-9]), "damaged or missing"),
        (
            lambda out: out.write_bytes(out.read_bytes()[:-9] + b"123456789"),
            "differs from the digest",
        ),
        (lambda out: np.save(out, np.zeros((3, 8, 8, 3), np.uint8)), r"holds uint8 \(3, 8, 8, 3\)"),
        (lambda out: out.with_name("val.json").unlink(), "cannot be read"),
        (
            lambda out: out.with_name("val.json").write_text('{"run": "val-1"}'),
            "describes run val-1, not val-",
        ),
    ],
)
def test_incomplete_decoded_images_are_refused(streamed, damage, line):
    tree, run = streamed
    damage(decoded(tree, run))
    with pytest.raises(ArtifactError, match=line) as caught:
        tree.context(tree.runs()["squeeze"]).validation(device())
    assert "\n" not in str(caught.value)


def test_only_streamed_data_sets_are_decoded(tree):
    squeezed = tree.runs()["squeeze"]
    with pytest.raises(ConfigError, match="digits: is read into memory"):
        decoded(tree, decode_run(squeezed.data, squeezed.recipe))


# The stage


def test_randaugment_needs_a_streamed_data_set(tree):
    tree.edit(
        "recipes/digits.yaml",
        "  flip: 0.0              # our choice: a mirr",
        "  randaugment: 2 # x\n  flip: 0 # a mirr",
    )
    with pytest.raises(
        ConfigError, match=r"squeeze\.randaugment: 2, but data set digits is not streamed"
    ):
        squeeze.run(tree.context(tree.runs()["squeeze"]), Path("model.safetensors"))
    assert not Path("artifacts").exists()


def test_a_model_that_is_recovered_from_needs_bn_before_it_is_trained(tree):
    tree.experiment("tiny", {"methods": ["random"], "recovery_models": ["convnet2"]})
    context = tree.context(tree.runs("random")["squeeze"])
    with pytest.raises(ConfigError, match="has no BN layers"):
        squeeze.run(context, Path("model.safetensors"), recovered=True)
    assert not Path("artifacts").exists()


def test_squeeze_on_a_streamed_data_set(streamed):
    tree, run = streamed
    tree.edit("config.yaml", "  cpu_threads: 1", "  cpu_threads: 1\n  workers: 2")
    tree.edit(
        "recipes/digits.yaml",
        "  flip: 0.0              # our choice: a mirr",
        "  randaugment: 2 # x\n  flip: 0 # a mirr",
    )
    decoded(tree, run)
    squeeze.run(tree.context(tree.runs()["squeeze"]), Path("m/model.safetensors"), recovered=True)
    record = json.loads(Path("m/squeeze.json").read_text())
    assert record["classes"] == list("0123456789")
    assert [row["epoch"] for row in record["curve"]] == [2]


@pytest.mark.parametrize(
    ("stage", "line"),
    [
        ("validate", "validate is a job of one process"),
        ("squeeze", "published weights are fetched by one"),
    ],
)
def test_jobs_of_one_process_are_refused_under_torchrun(tree, monkeypatch, stage, line):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    tree.edit(
        "recipes/digits.yaml",
        "squeeze:\n",
        "squeeze:\n  weights: torchvision:ResNet18_Weights.X # paper\n",
    )
    context = tree.context(tree.runs()[stage])
    with pytest.raises(ConfigError, match=line):
        context.open_device() if stage == "validate" else squeeze.run(
            context, Path("model.safetensors")
        )


def test_a_last_image_that_joins_the_batch_before_is_the_same_image(root):
    """Seven images in batches of three; with one step less the last batch has four."""
    usual = epoch(batches(root, recipe(batch_size=3)), 0)
    joined, ranks = batches(root, recipe(batch_size=3)), []
    for rank in (0, 1):
        ranks.append(batches(root, recipe(batch_size=3), rank=rank, world=2))
    for stream in (joined, *ranks):
        stream.steps = 2
    found, resumed = epoch(joined, 0), epoch(joined, 0, 1)
    assert [len(labels) for _, labels in usual] == [3, 3, 1]
    assert [len(labels) for _, labels in found] == [3, 4]
    assert_equal(
        [[torch.cat(parts) for parts in zip(*found, strict=True)]],
        [[torch.cat(parts) for parts in zip(*usual, strict=True)]],
    )
    assert_equal(resumed, found[1:])
    assert [len(epoch(stream, 0)[1][1]) for stream in ranks] == [2, 2]
