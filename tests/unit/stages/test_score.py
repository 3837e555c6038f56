"""Score: accuracies against plain loops over torchvision's crops, models with known answers, inputs
that do not fit.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.transforms import functional as transforms

from cda.config.recipe import Score
from cda.config.settings import Dataset, Runtime
from cda.data.shards import write_shard
from cda.engine.device import open_device
from cda.engine.images import Images
from cda.errors import ArtifactError
from cda.experiments.runs import score_run
from cda.method import networks
from cda.method.augment import draw_views
from cda.rng import generator
from cda.stages import score, squeeze
from cda.stages.context import Context

torch.set_num_threads(1)

CLASSES = list("0123456789")


def dataset(classes: int = 4, size: int = 12) -> Dataset:
    mean, std = (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)
    return Dataset(
        name="made",
        layout="image_folder",
        classes=classes,
        resolution=size,
        mean=mean,
        std=std,
        get="made here",
    )


def pixels(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Coarse noise, so that crops differ and still look like their image."""
    coarse = np.random.default_rng(seed).integers(
        0, 256, (count, size // 2, size // 2, 3), dtype=np.uint8
    )
    return coarse.repeat(2, axis=1).repeat(2, axis=2)


def plain_accuracies(
    model: nn.Module, images: np.ndarray, labels: np.ndarray, data: Dataset, values: Score
):
    """One image after the other, cropped and resized by torchvision, in double precision."""
    mean, std = (torch.tensor(value).double().view(3, 1, 1) for value in (data.mean, data.std))
    accuracies = []
    for crop in range(values.crops):
        boxes = draw_views(
            generator("score", values.seed, crop), len(images), data.resolution,
            crop="random_resized_crop", scale=values.crop_scale, flip=0.0,
        ).boxes  # fmt: skip
        correct = 0
        for image, label, (top, left, height, width) in zip(
            images, labels, boxes.tolist(), strict=True
        ):
            tensor = torch.from_numpy(image).permute(2, 0, 1).double() / 255
            seen = transforms.resized_crop(
                tensor, top, left, height, width, [data.resolution] * 2, antialias=True
            )
            with torch.no_grad():
                correct += int(model.double()(((seen - mean) / std)[None])[0].argmax()) == label
        accuracies.append(100 * correct / len(images))
    model.float()
    return accuracies


# Accuracies on crops


@pytest.mark.parametrize("values", [Score(crops=3), Score(crops=2, crop_scale=(0.5, 0.6), seed=4)])
def test_crops_are_torchvisions(monkeypatch, values):
    monkeypatch.setattr(score, "BATCH", 7)
    data, images, labels = dataset(), pixels(40, 12), np.arange(40, dtype=np.int64) % 4
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(800, 4))
    found = score.crop_accuracies(
        model, Images(images, labels, data, open_device(Runtime(device="cpu"))), values, "made"
    )
    expected = plain_accuracies(model, images, labels, data, values)
    assert found == expected
    assert len(set(found)) > 1  # crops differ, so do their accuracies


class Brightness(nn.Module):
    """Answers 1 where all it sees is white, else 0."""

    def forward(self, x):
        white = (x.amin(dim=(1, 2, 3)) > 0).float()
        return torch.stack([1 - white, white], dim=1)


def test_a_model_with_known_answers():
    """Images with a black pixel in the corner.

    A crop is white exactly if it leaves the corner out.
    """
    data = dataset(classes=2, size=8).model_copy(
        update={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    )
    images = np.full((300, 8, 8, 3), 255, dtype=np.uint8)
    images[:, 0, 0] = 0
    values = Score(crops=2)
    on_device = Images(
        images, np.ones(300, dtype=np.int64), data, open_device(Runtime(device="cpu"))
    )
    assert on_device.evaluate(Brightness())["top1"] == 0.0
    expected = []
    for crop in range(2):
        boxes = draw_views(generator("score", 0, crop), 300, 8, crop="random_resized_crop").boxes
        expected.append(100 * float(((boxes[:, 0] > 0) | (boxes[:, 1] > 0)).mean()))
    assert score.crop_accuracies(Brightness(), on_device, values, "made") == pytest.approx(expected)
    assert 10 < min(expected) < 90


# The stage


class Scored:
    """A score run on the tree's digits.

    Shards that are written here, a squeezed model of drawn weights.
    """

    def __init__(self, tree, real: bool = False) -> None:
        tree.edit(
            "recipes/digits.yaml",
            "methods:\n",
            "score:\n  crops: 2 # our choice: speed\nmethods:\n",
        )
        self.tree = tree
        runs = tree.runs()
        self.squeezed, self.images = runs["squeeze"], runs["recover"]
        first = self.squeezed
        self.run = score_run(
            first.data, first.recipe, first, None if real else self.images, 0 if real else 2, {}
        )
        self.folder, self.model, self.out = (
            Path("shards"),
            Path("model/model.safetensors"),
            Path("out/seed-0.json"),
        )
        self.pixels = pixels(20, 8)
        self.write_shards()
        torch.manual_seed(0)
        self.network = networks.build("resnet18", 10, 8, first.recipe.architecture)
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.1)
        self.write_model()

    def write_shards(self, classes: list[str] = CLASSES, run: str = "") -> None:
        for ipc in range(2):
            images = self.pixels[10 * ipc : 10 * ipc + len(classes)]
            path = self.folder / "part-0" / f"ipc-{ipc:03d}.tar"
            write_shard(path, images, classes, ipc, run or self.images.id, "digits")

    def write_model(self, **record) -> None:
        squeeze.write_model(
            self.tree.context(self.squeezed), self.network, CLASSES, self.model, record
        )

    def score(self) -> dict:
        shards = self.folder if "images" in self.run.upstream else None
        score.run(self.tree.context(self.run), shards, self.model, self.out)
        return json.loads(self.out.read_text())

    def refusal(self) -> str:
        with pytest.raises(ArtifactError) as caught:
            self.score()
        assert "\n" not in str(caught.value)
        assert not self.out.exists()
        return str(caught.value)


@pytest.fixture
def scored(tree):
    return Scored(tree)


def test_shards_are_scored_in_full_and_in_crops(scored, monkeypatch):
    monkeypatch.setattr(Context, "real", lambda *_: pytest.fail("shards know their classes"))
    found = scored.score()
    labels, data = np.tile(np.arange(10), 2), scored.run.data
    network = scored.network.double().eval()
    assert load_file(scored.model)["fc.bias"].shape == (10,)
    tensor = torch.from_numpy(scored.pixels).permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(value).double().view(1, 3, 1, 1) for value in (data.mean, data.std))
    with torch.no_grad():
        ranked = (
            network((tensor - mean) / std).argsort(dim=1, descending=True).numpy()
            == labels[:, None]
        )
    assert found["top1"] == found["top1_global"] == pytest.approx(100 * ranked[:, 0].mean())
    assert found["top5"] == pytest.approx(100 * ranked[:, :5].sum() / 20)
    expected = plain_accuracies(network, scored.pixels, labels, data, scored.run.recipe.score)
    assert found["top1_10crop"] == pytest.approx(sum(expected) / 2)
    assert (found["run"], found["stage"], found["model"]) == (scored.run.id, "score", "resnet18")
    assert (found["ipc"], found["seed"], found["images"]) == (2, 0, 20)
    assert found["spec"]["recipe"]["crops"] == 2
    assert found["provenance"]["precision"] == "fp32"


def test_a_model_that_always_predicts_one_class_is_right_in_that_class(scored):
    nn.init.zeros_(scored.network.fc.weight)
    with torch.no_grad():
        scored.network.fc.bias.copy_(-torch.arange(10.0))
    scored.write_model()
    found = scored.score()
    assert {key: found[key] for key in ("top1", "top5", "top1_global", "top1_10crop")} == {
        "top1": 10.0,
        "top5": 50.0,
        "top1_global": 10.0,
        "top1_10crop": 10.0,
    }


def test_equal_runs_give_equal_numbers(scored):
    one, other = scored.score(), scored.score()
    one.pop("provenance"), other.pop("provenance")
    assert one == other


def test_real_validation_images_are_scored_in_full(tree):
    scored = Scored(tree, real=True)
    real = tree.context(scored.run).real("val")
    found = scored.score()
    data = scored.run.data
    tensor = torch.from_numpy(real.images).permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(value).double().view(1, 3, 1, 1) for value in (data.mean, data.std))
    with torch.no_grad():
        predicted = scored.network.double().eval()((tensor - mean) / std).argmax(dim=1).numpy()
    assert found["top1"] == pytest.approx(100 * (predicted == real.labels).mean())
    assert (found["images"], found["ipc"]) == (359, 0)
    assert not {"top1_global", "top1_10crop"} & set(found)


# What does not fit


def test_images_of_other_classes_are_refused(scored):
    scored.write_shards(classes=list("012345678x"))
    assert "its classes are not those of the digits images" in scored.refusal()


def test_a_model_of_other_classes_is_refused(scored):
    scored.write_model(classes=list("abcdefghij"))
    assert "its classes are not those of the digits images" in scored.refusal()


def test_a_model_under_another_normalisation_is_refused(scored):
    scored.write_model(mean=[0.5, 0.5, 0.5])
    assert "another mean and std than digits's" in scored.refusal()


def test_a_model_of_another_run_is_refused(scored):
    scored.write_model(run="resnet18-00000000")
    assert "is the model of run resnet18-00000000" in scored.refusal()


def test_a_missing_model_is_refused(scored):
    scored.model.with_name("squeeze.json").unlink()
    assert "cannot be read" in scored.refusal()


def test_shards_of_another_run_are_refused(scored):
    scored.write_shards(run="cosine-00000000")
    assert "belongs to run cosine-00000000" in scored.refusal()


def test_missing_shards_are_refused(scored):
    (scored.folder / "part-0" / "ipc-001.tar").unlink()
    assert "1 of 2 shards are missing" in scored.refusal()
