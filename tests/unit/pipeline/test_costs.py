"""Costs: operations of each stage's networks, and the size of what a job writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cda.config.recipe import Architecture
from cda.config.settings import Dataset
from cda.errors import ConfigError
from cda.experiments.runs import Run
from cda.pipeline import costs


def data_of(classes: int, resolution: int) -> Dataset:
    return Dataset(
        name="d",
        layout="image_folder",
        classes=classes,
        resolution=resolution,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        get="x",
    )


@pytest.mark.parametrize(
    ("name", "classes", "resolution", "stem", "published"),
    [
        (
            "resnet18",
            1000,
            224,
            "imagenet",
            1.814,
        ),  # torchvision's table of GFLOPS, which counts multiply-adds
        ("resnet18", 100, 32, "small", 0.56),  # fidelity.md
        ("resnet18", 200, 64, "small", 2.22),  # fidelity.md
        ("resnet50", 1000, 224, "imagenet", 4.089),
        ("densenet121", 1000, 224, "imagenet", 2.834),
        ("vgg16", 1000, 224, "imagenet", 15.470),
        ("mobilenet_v2", 1000, 224, "imagenet", 0.301),
        ("regnet_y_8gf", 1000, 224, "imagenet", 8.473),  # cannot be built on shapes alone
    ],
)
def test_a_network_s_multiply_adds_are_the_published_ones(
    name, classes, resolution, stem, published
):
    counted = costs.multiply_adds(name, data_of(classes, resolution), Architecture(stem=stem))
    assert counted / 1e9 == pytest.approx(published, rel=0.009)


def test_multiply_adds_are_those_of_plain_counting():
    from cda.method.networks import build

    architecture, counted = Architecture(stem="small", width=0.25), []

    def count(module: torch.nn.Module, _inputs: Any, out: torch.Tensor) -> None:
        counted.append(out.numel() * module.weight[0].numel())

    model = build("resnet18", 10, 16, architecture).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(count)
    model(torch.zeros(1, 3, 16, 16))
    assert costs.multiply_adds("resnet18", data_of(10, 16), architecture) == sum(counted)


def test_a_network_that_does_not_fit_is_named_in_one_line():
    with pytest.raises(ConfigError, match="'alexnet' cannot take 16×16") as caught:
        costs.multiply_adds("alexnet", data_of(10, 16), Architecture())
    assert "\n" not in str(caught.value)


def forward(run: Run) -> int:
    return costs.multiply_adds(run.model, run.data, run.recipe.architecture)


def test_operations_of_each_stage(devices):
    runs = devices.runs(ipc=2)
    ones = forward(runs["squeeze"])
    assert costs.operations(runs["squeeze"], 50) == 2 * ones * (3 * 2 * 1438 + 1 * 359)
    assert costs.operations(runs["recover"], 50) == 2 * ones * 2 * 6 * (
        2 * 10
    )  # a part: two shards of ten classes
    assert costs.operations(runs["relabel"], 50) == 2 * ones * 5 * 20
    assert costs.operations(runs["validate"], 50) == 2 * ones * (3 * 3 * 20 + 359)
    assert costs.operations(runs["validate"], 1e-9) == 2 * ones * (
        4 * 3 * 20 + 359
    )  # the teacher runs along
    assert costs.operations(runs["relabel"], 1e-9) == 0


def test_what_costs_nothing(devices):
    assert costs.operations(devices.runs("random")["recover"], 50) == 0
    devices.experiment("tiny", {"set": {"relabel.labels": "hard"}})
    assert costs.operations(devices.runs()["relabel"], 50) == 0
    devices.experiment("tiny", {"set": {"squeeze.weights": "torchvision:X"}})
    assert costs.operations(devices.runs()["squeeze"], 50) == 0


def test_operations_of_score_and_continual(devices):
    from cda.config.recipe import Continual
    from cda.experiments.runs import continual_run, score_run

    runs = devices.runs(ipc=2)
    squeeze, images = runs["squeeze"], runs["recover"]
    ones, data, recipe = forward(squeeze), squeeze.data, squeeze.recipe
    assert (
        costs.operations(score_run(data, recipe, squeeze, images, 2, {}), 50) == 2 * ones * 20 * 11
    )
    assert costs.operations(score_run(data, recipe, squeeze, None, 0, {}), 50) == 2 * ones * 359
    recipe = recipe.model_copy(
        update={"continual": Continual(epochs=7, batch_size=8, lr=0.1, steps=5)}
    )
    learned = continual_run(data, recipe, images, squeeze, "resnet18", 2, {})
    trained = sum(7 * 2 * seen for seen in (2, 4, 6, 8, 10))
    tested = sum(359 * seen / 10 for seen in (2, 4, 6, 8, 10))
    assert costs.operations(learned, 50) == pytest.approx(2 * ones * (4 * trained + tested))


@pytest.mark.parametrize(
    ("epochs", "every", "times"), [(100, 10, 10), (101, 10, 11), (3, 10, 1), (10, 1, 10)]
)
def test_how_often_a_training_is_evaluated(epochs, every, times, devices):
    values = devices.runs()["validate"].recipe.validate_.model_copy(
        update={"epochs": epochs, "evaluate_every": every}
    )
    seen = [
        epoch for epoch in range(epochs) if epoch + 1 == epochs or (epoch + 1) % every == 0
    ]  # as cda.engine.trainer does
    assert costs.evaluations(values) == len(seen) == times


def test_the_size_of_a_shard_is_near_a_written_one(devices, tmp_path):
    from cda.data.shards import write_shard
    from cda.rng import generator

    run = devices.runs(ipc=2)["recover"]
    data = run.data.model_copy(update={"resolution": 64, "shards_per_job": 1})
    run = Run("recover", run.slug, run.spec, data, run.recipe, upstream=run.upstream)
    rough = generator("test").normal(128, 45, (10, 64, 64, 3)).clip(0, 255).astype("uint8")
    write_shard(tmp_path / "ipc-000.tar", rough, [str(i) for i in range(10)], 0, run.id, "digits")
    assert costs.shard_gigabytes(run, [1]) * 1e9 == pytest.approx(
        (tmp_path / "ipc-000.tar").stat().st_size, rel=0.25
    )
    assert costs.shard_gigabytes(run, [0]) == pytest.approx(
        3 * costs.shard_gigabytes(run, [1])
    )  # two snapshots


def test_steps_of_each_stage(devices):
    """ceil(images / batch) an epoch, and batches of 512 where a training is tested."""
    devices.edit("recipes/digits.yaml", "batch_size: 6 ", "evaluate_every: 2\n  batch_size: 6 ")
    runs, settings = devices.runs(ipc=2), devices.experiments().settings
    assert costs.steps(runs["squeeze"], settings) == 2 * 6 + 1  # 1,438 in batches of 256; a test
    assert costs.steps(runs["recover"], settings) == 6 * 2 * 2  # 6 steps, 2 blocks, 2 shards
    assert costs.steps(runs["relabel"], settings) == 5
    assert costs.steps(runs["validate"], settings) == 3 * 4 + 2  # 20 images in batches of 6
    packed = devices.experiments(runtime={"blocks": 3}).settings
    assert costs.steps(runs["recover"], packed) == 6 * 2
    assert costs.steps(devices.runs("random", ipc=2)["recover"], settings) == 0
    online = devices.experiments(labels={"max_gb": 1e-9}).settings
    assert costs.steps(runs["relabel"], online) == 0


def test_images_of_files_are_read_by_every_job_that_trains_or_tests_on_them(devices):
    assert {costs.read_images(run) for run in devices.runs().values()} == {0}  # no files
    devices.edit("datasets/digits.yaml", "layout: digits", "layout: image_folder")
    read = {stage: costs.read_images(run) for stage, run in devices.runs(ipc=2).items()}
    assert read == {"squeeze": 1438 + 359, "recover": 0, "relabel": 0, "validate": 359}
    assert costs.read_images(devices.runs("random", ipc=2)["recover"]) == 20
    devices.edit("datasets/digits.yaml", "shards_per_job: 2", "shards_per_job: 2\nstream: true")
    assert costs.read_images(devices.runs()["squeeze"]) == 0  # while it trains


def flat(_name: str, _data: Dataset, _architecture: Architecture) -> float:
    """A network of one multiply-add."""
    return 1.0


def test_an_expert_trains_on_all_images_and_is_tested_after_each_epoch(devices):
    devices.trajectories()
    run, settings = devices.runs("mtt", 2)["expert"], devices.experiments().settings
    assert costs.operations(run, 50, flat) == 2 * 2 * 2 * (3 * 1438 + 359)  # 2 experts, 2 epochs
    assert costs.steps(run, settings) == 2 * 2 * (72 + 1)  # batches of 20, and a test


def test_a_trajectory_costs_nine_passes_an_image_and_step_and_three_more_in_two_passes(devices):
    devices.trajectories()
    settings = devices.experiments().settings
    unrolled, two_pass = (devices.runs(name, 2)["distill"] for name in ("mtt", "tesla"))
    assert costs.operations(unrolled, 50, flat) == 2 * 4 * 3 * 20 * 9  # all 20 images
    assert costs.operations(two_pass, 50, flat) == 2 * 4 * 3 * 15 * 12  # 15 of them
    assert costs.steps(unrolled, settings) == 4 * 3 * 2
    assert costs.steps(two_pass, settings) == 4 * 3 * 3


def test_experts_read_all_images_and_trajectories_their_first_ones(devices):
    devices.trajectories()
    devices.edit("datasets/digits.yaml", "layout: digits", "layout: image_folder")
    read = {stage: costs.read_images(run) for stage, run in devices.runs("mtt", 2).items()}
    assert read == {"expert": 1438 + 359, "distill": 20, "relabel": 0, "validate": 359}


@pytest.mark.parametrize(("model", "resolution"), [("convnet2", 8), ("convnet3", 32)])
def test_the_size_of_experts_is_that_of_their_networks_weights(model, resolution, devices):
    from cda.method.networks import build

    devices.trajectories()
    run = devices.runs("mtt", 2)["expert"]
    data = run.data.model_copy(update={"resolution": resolution})
    run = Run("expert", run.slug, run.spec, data, run.recipe, model=model)
    network = build(model, 10, resolution, run.recipe.architecture)
    weights = sum(parameter.numel() for parameter in network.parameters())
    assert costs.expert_gigabytes(run, 0) * 1e9 == pytest.approx(2 * 3 * 4 * weights)
    assert costs.expert_gigabytes(run, 1) * 1e9 == pytest.approx(1 * 3 * 4 * weights)
