"""Proposed files: each line with its reason, values that suit the set, and the machine's budget."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from cda.config.recipe import Recipe
from cda.config.settings import Dataset
from cda.config.types import parse
from cda.config.yaml_source import nested, read_layer
from cda.data.intake import Survey
from cda.pipeline.proposal import (
    CPU_LEVELS,
    GPU_LEVELS,
    complete,
    dataset_text,
    propose_resolution,
    recipe_text,
)

CONFIG = Path(__file__).resolve().parents[3] / "config"


def dataset(
    train: int = 5000, classes: int = 10, resolution: int = 32, least: int = 500
) -> Dataset:
    blank = Dataset(
        name="mine",
        layout="image_folder",
        classes=2,
        resolution=8,
        mean=(0.5, 0.25, 0.125),
        std=(0.2, 0.2, 0.2),
        get="draw it",
    )
    return complete(blank, survey(train, classes, least), resolution)


def survey(train: int = 5000, classes: int = 10, least: int = 500) -> Survey:
    return Survey(classes, train, 100, least, ["x.png"] * min(train, 5000), [(32, 32)])


def recipe(data: Dataset, kind: str, level: int = 0) -> dict[str, Any]:
    """The values of a proposed recipe, with dots; each has a source, and it parses."""
    levels = CPU_LEVELS if kind == "cpu" else GPU_LEVELS
    path = Path("mine.yaml")
    path.write_text(recipe_text(CONFIG, data, levels[level], kind), encoding="utf-8")
    layer = read_layer(path)
    assert [key for key, one in layer.items() if one.value != {} and not one.source] == []
    assert "variant" not in path.read_text(encoding="utf-8")  # it has none to point at
    values = {key: one for key, one in layer.items() if not key.startswith("methods.")}
    parse(Recipe, nested(values), "mine.yaml")
    return {key: one.value for key, one in layer.items()}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("sizes", "largest", "wanted"),
    [
        ([(32, 32)] * 20, 64, 32),
        ([(28, 28)] * 20, 64, 28),
        ([(96, 96)] * 20, 64, 64),
        ([(640, 480), (50, 70)] * 10, 64, 48),
        ([(640, 480)] * 19 + [(20, 20)], 224, 224),  # one small image of twenty does not count
        ([(9, 200)] * 20, 64, 8),
    ],
)
def test_the_resolution_is_one_that_nearly_all_images_have(sizes, largest, wanted):
    assert propose_resolution(sizes, largest)[0] == wanted


@pytest.mark.parametrize(("least", "ipc"), [(500, (1, 10)), (8, (1, 8)), (1, (1,))])
def test_the_table_takes_no_more_images_than_a_class_has(least, ipc):
    assert dataset(least=least).compare_ipc == ipc


def test_a_data_set_s_file_is_what_was_found_with_a_reason_a_line():
    data = dataset()
    text = dataset_text(data, survey(), "the size of all images", split=False)
    assert Dataset(**yaml.safe_load(text)).model_copy(update={"get": data.get}) == data
    lines = [line for line in text.splitlines() if line[0] != "#"]
    assert [line for line in lines if "  # " not in line] == [lines[-1]]
    assert "mean: [0.5, 0.25, 0.125]         # of all 5,000 training images" in text
    assert "random real images" in text
    assert "hard labels" in text


def test_a_sample_and_our_own_split_are_named():
    text = dataset_text(dataset(90_000), survey(90_000), "", split=True)
    assert "# of 5,000 training images" in text
    assert "every fifth image of a class" in text.splitlines()[-1]


@pytest.mark.parametrize(("train", "stream"), [(10_000, False), (100_000, True)])
def test_pixels_that_may_not_fit_in_memory_are_streamed(train, stream):
    assert dataset(train, resolution=224).stream == stream


@pytest.mark.parametrize(
    ("resolution", "base", "stem"),
    [(32, "cifar100", "small"), (64, "tiny_imagenet", "imagenet"), (224, "imagenet1k", "imagenet")],
)
@pytest.mark.parametrize("kind", ["cpu", "a100"])
def test_a_recipe_starts_from_the_nearest_of_the_paper_s(resolution, base, stem, kind):
    values = recipe(dataset(resolution=resolution), kind)
    theirs = {key: one.value for key, one in read_layer(CONFIG / f"recipes/{base}.yaml").items()}
    assert values["recover.min_crop"] == theirs["recover.min_crop"]
    assert values["recover.alpha_bn"] == theirs["recover.alpha_bn"]
    assert ("architecture.stem_init" in values) == (values["architecture.stem"] == "small")
    assert values["architecture.stem"] == (stem if kind == "cpu" else theirs["architecture.stem"])
    assert values["validate.optimizer"] == "adamw"
    assert {"methods.cda", "methods.random.recover.mode"} <= set(values)
    assert not [key for key in values if key.startswith("methods.sre2l.validate")]


def test_a_cpu_has_a_narrow_network_and_small_budgets():
    cpu, gpu = recipe(dataset(), "cpu"), recipe(dataset(), "a100")
    assert cpu["architecture.width"] == 0.25
    assert "architecture.width" not in gpu
    for key in ("squeeze.epochs", "recover.iterations"):
        assert cpu[key] < gpu[key]
    assert gpu["recover.iterations"] == 1000  # the paper's


@pytest.mark.parametrize(("kind", "levels"), [("cpu", CPU_LEVELS), ("a100", GPU_LEVELS)])
def test_each_level_is_smaller_than_the_one_before(kind, levels):
    keys = ("squeeze.epochs", "recover.iterations", "validate.epochs")
    data = dataset(50_000, 100)
    for level, (large, small) in enumerate(itertools.pairwise(levels)):
        before, after = (recipe(data, kind, index) for index in (level, level + 1))
        if (large.resolution, large.width) == (small.resolution, small.width):
            assert all(after[key] <= before[key] for key in keys)
            assert any(after[key] < before[key] for key in keys)
        else:
            assert (small.resolution, small.width) < (large.resolution, large.width)


def test_a_few_images_are_trained_in_small_batches_at_a_rate_in_proportion():
    values = recipe(dataset(24, 3, resolution=64, least=8), "cpu")
    assert (values["squeeze.batch_size"], values["squeeze.lr"]) == (8, 0.0063)
    assert values["validate.batch_size"] == 8
    assert values["squeeze.warmup_epochs"] < values["squeeze.epochs"]


def test_mixing_partners_are_drawn_among_a_batch_of_post_training():
    values = recipe(dataset(), "cpu")
    assert values["relabel.batch_size"] == values["validate.batch_size"] == 16
