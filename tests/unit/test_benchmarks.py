"""Benchmarks: rows of measured times, and that the plain sides do what the engines do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from benchmarks import __main__ as program
from benchmarks import recover, squeeze, table, validate
from benchmarks.harness import Case, Setting, Side, measure, peak_flops, rows
from benchmarks.pictures import Pictures, synthetic, transform_of
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from cda.config.recipe import Augmentation
from cda.engine.blocks import Block, step_views
from cda.engine.images import Images
from cda.engine.objective import Objective
from cda.engine.recovery import Recovery
from cda.engine.trainer import Trainer
from cda.method.augment import mixup
from cda.method.losses import kd_loss
from cda.stages.squeeze import smoothed_ce

ROOT = Path(__file__).parents[2]

torch.set_num_threads(1)

QUICK = Setting("cpu", quick=True)


# Rates


class Clock:
    """A clock that a side's calls advance by declared seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def side(self, name: str, *seconds: float, building: float = 0.0, units: float = 10.0) -> Side:
        """A side whose calls take `seconds`, one after the other."""
        left: Iterator[float] = iter(seconds)

        def build() -> Callable[[], float]:
            self.now += building

            def work() -> float:
                self.now += next(left)
                return units

            return work

        return Side(name, build, {"name": name})


def test_medians_spreads_and_ratios_are_of_the_rounds_without_the_first_calls():
    clock = Clock()
    plain = clock.side("plain", 99.0, 2.0, 4.0, 5.0, building=1.0)
    engine = clock.side("ours", 50.0, 1.0, 1.0, 2.0)
    case = Case("recover", "block", "images/s", (plain, engine), {"px": 32}, rounds=3, seconds=0.0)
    slow, fast = rows(case, measure(case, QUICK, clock=clock))
    assert slow["rate"] == 2.5  # 5, 2.5, 2 images/s
    assert slow["spread"] == pytest.approx((5 - 2) / 2.5)
    assert slow["ratio"] == 1.0
    assert slow["start_seconds"] == pytest.approx(1 + 99 - 10 / 2.5)
    assert (fast["rate"], fast["spread"], fast["ratio"], fast["repeats"]) == (10.0, 0.5, 4.0, 3)
    assert fast["parameters"] == "px=32 name=ours"


def test_sides_are_measured_in_turn():
    called: list[str] = []

    def side(name: str) -> Side:
        return Side(name, lambda: lambda: called.append(name) or 1.0)

    measure(
        Case("recover", "x", "images/s", (side("plain"), side("ours")), rounds=2, seconds=0.0),
        QUICK,
    )
    assert called == ["plain", "ours"] + ["plain", "ours"] * 2  # the first calls, then the rounds


def test_a_round_lasts_as_long_as_it_should():
    clock = Clock()
    side = clock.side("ours", *[0.25] * 9)
    case = Case("squeeze", "x", "images/s", (side,), rounds=2, seconds=1.0)
    (row,) = rows(case, measure(case, QUICK, clock=clock))
    assert (row["rate"], row["spread"], row["ratio"]) == (
        40.0,
        0.0,
        None,
    )  # nothing plain to compare with


def test_of_seconds_a_unit_fewer_are_better():
    clock = Clock()
    sides = (clock.side("plain", 4.0, 4.0, units=1.0), clock.side("ours", 7.0, 2.0, units=1.0))
    case = Case("dag", "import", "s", sides, rounds=1, seconds=0.0)
    slow, fast = rows(case, measure(case, QUICK, clock=clock))
    assert (slow["rate"], fast["rate"], fast["ratio"], fast["start_seconds"]) == (
        4.0,
        2.0,
        2.0,
        5.0,
    )


def test_a_share_of_the_peak_is_operations_a_second_over_it():
    clock = Clock()
    side = Side("ours", clock.side("ours", 1.0, 1.0).build, operations=5.0)
    case = Case("recover", "x", "images/s", (side,), rounds=1, seconds=0.0)
    assert rows(case, measure(case, QUICK, clock=clock), peak_flops=200.0)[0]["peak_share"] == 0.25


def test_a_gpus_peak_is_its_data_sheets(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert peak_flops(Setting("cuda")) == 989e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "An unknown card")
    assert peak_flops(Setting("cuda")) is None
    assert peak_flops(QUICK) is None
    # docs/fidelity.md: 0.56 G multiply-adds a forward pass at 32 px, two passes, two operations
    assert recover.Problem(32).operations == pytest.approx(4 * 0.56e9, rel=0.01)


def test_memory_is_what_a_fresh_process_grew_by():
    """In a process of its own, as the harness does: this one may still hold what it once freed."""
    code = (
        "import numpy as np; from benchmarks.harness import Side, grown; "
        "print(grown(Side('plain', lambda: lambda: float(np.ones(25_000_000).sum())), 2))"  # 200 MB
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert int(done.stdout) >= 200e6 * 0.99


# The table


def row(device: str, benchmark: str, **values: Any) -> dict[str, Any]:
    return {
        "device": device,
        "benchmark": benchmark,
        "what": "x",
        "side": "ours",
        "unit": "images/s",
    } | values


def test_only_what_was_measured_on_this_device_is_replaced(tmp_path):
    path = tmp_path / "benchmarks.csv"
    first = [row("cpu", "recover", rate=1.0), row("cpu", "squeeze", rate=2.0)]
    table.write(path, table.merged(table.read(path), first, "cpu", ["recover", "squeeze"]))
    table.write(
        path, table.merged(table.read(path), [row("gpu", "recover", rate=3.0)], "gpu", ["recover"])
    )
    table.write(
        path, table.merged(table.read(path), [row("cpu", "recover", rate=4.0)], "cpu", ["recover"])
    )
    found = [(line["device"], line["benchmark"], line["rate"]) for line in table.read(path)]
    assert found == [("cpu", "recover", "4"), ("cpu", "squeeze", "2"), ("gpu", "recover", "3")]


def test_the_page_is_made_from_the_rows(tmp_path):
    path = tmp_path / "benchmarks.csv"
    new = row(
        "A card",
        "recover",
        rate=12345.678,
        ratio=5.1234,
        spread=0.021,
        peak_share=0.1234,
        peak_memory_mb=None,
    )
    table.write(path, table.merged([], [new], "A card", ["recover"]))
    page = path.with_suffix(".md").read_text()
    assert page == table.markdown(table.read(path))
    assert "## A card" in page
    assert "12,346" in page
    assert "5.12" in page
    assert "12.3 %" in page
    assert "peak memory, MB" not in page  # nothing was measured


def test_seconds_an_image_follow_from_the_rate_of_recovery_alone(tmp_path):
    path = tmp_path / "benchmarks.csv"
    rows = [
        row("cpu", "recover", rate=40.0, unit="image-iterations/s"),
        row("cpu", "squeeze", rate=40.0),
    ]
    table.write(path, table.merged([], rows, "cpu", ["recover", "squeeze"]))
    assert [line["seconds_an_image"] for line in table.read(path)] == ["25", ""]  # 1000 / 40
    page = path.with_suffix(".md").read_text()
    assert page.count("seconds an image") == 2  # recovery's table, and the published ones
    path.write_text(path.read_text().replace(",25\n", "\n").replace(",seconds_an_image", ""))
    table.write(path, table.read(path))  # a file of before the column
    assert table.read(path)[0]["seconds_an_image"] == "25"


def test_published_seconds_are_hours_of_all_cards_over_images():
    found = {peer.what: round(peer.seconds_an_image, 2) for peer in table.PEERS}
    assert found == {
        "CDA, ImageNet-1K, IPC 50, 224 px": 2.09,  # 29 h, 50,000 images
        "CDA, ImageNet-21K-P, IPC 20, 224 px": 3.79,  # 4 × 55 h, 20 × 10,450 images
        "CDA, Tiny-ImageNet, IPC 50, 64 px": 1.62,  # 4.5 h, 10,000 images
    }


def test_the_page_in_results_is_made_from_its_rows():
    path = ROOT / "results" / "benchmarks.csv"
    found = table.read(path)
    assert path.with_suffix(".md").read_text(encoding="utf-8") == table.markdown(found)
    assert [line["seconds_an_image"] for line in map(table.with_seconds, found)] == [
        line["seconds_an_image"] for line in found
    ]


# Plain is the same work


def test_plain_recovery_is_the_engines():
    problem = recover.Problem(16, width=0.125, images=4, classes=5)
    recipe, device, block = problem.recipe, QUICK.reference(), Block(0, 0, 4)

    class AsDrawn(recover.PlainRecovery):
        """The plain loop with the engine's draws."""

        def augmented(self, images: Tensor, step: int) -> Tensor:
            views = step_views(block, recipe, step, 16)
            top, left, height, width = (int(value) for value in views.boxes[0])
            seen = tv.resized_crop(images, top, left, height, width, [16, 16])
            seen = seen.flip(-1) if views.flips[0] else seen
            return torch.roll(seen, (int(views.rolls[0][0]), int(views.rolls[0][1])), (2, 3))

    def network() -> torch.nn.Module:
        model, draws = problem.network().double(), torch.Generator().manual_seed(3)
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                start = 0.5 if name.endswith("running_var") else -0.5
                buffer.copy_(torch.rand(buffer.shape, generator=draws) + start)
        return model

    objective = Objective(network(), 1, recipe, device, 1)
    engine = Recovery(objective, [block], recipe, problem.data, torch.float64)
    plain = AsDrawn(
        network(), engine.images.detach().clone(), torch.arange(4), recipe, problem.data
    )
    for _ in range(5):
        loss = plain.step()
        engine.step()
        entropy, distance = engine.losses()
        assert loss == pytest.approx(entropy[0] + recipe.alpha_bn * distance[0], rel=1e-9)
    objective.close()
    assert (plain.images - engine.images).abs().max() < 1e-7


@pytest.mark.parametrize("side", ["plain", "ours"])
def test_recovery_starts_again_where_its_iterations_end(side):
    """A fast device makes more steps than the recipe has."""
    problem = recover.Problem(16, width=0.125, images=4, classes=4, steps=2, iterations=3)
    if side == "plain":
        work = recover.plain(problem, QUICK)
    else:
        work = recover.engine(problem, QUICK.reference, 1)
    assert [work() for _ in range(4)] == [8.0] * 4


def trained(
    problem: squeeze.Problem, recipe: Any, optimizer: Callable[[Any], Any], losses: tuple[Any, Any]
) -> float:
    """The largest difference of a plainly trained network and the engine's after three steps."""
    device, draws = QUICK.reference(), torch.Generator().manual_seed(0)
    plain, own = problem.network(), device.place(problem.network())
    training = squeeze.PlainTraining(plain, optimizer(plain.parameters()), "cpu")
    trainer = Trainer(own, recipe, device, ("test",))
    trainer.model.train()
    for _ in range(3):
        images = torch.randn(4, 3, 16, 16, generator=draws)
        target = torch.randn(4, problem.classes, generator=draws)
        training.step(images, lambda logits, target=target: losses[0](logits, target))  # type: ignore[misc]
        trainer.step(images, target, losses[1], recipe.lr)
    pairs = zip(plain.state_dict().values(), own.state_dict().values(), strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs)


TINY = squeeze.Problem(images=8, batch_size=4, resolution=16, classes=4, width=0.125)


def test_plain_squeeze_is_the_engines():
    recipe = TINY.recipe.model_copy(
        update={"lr": 0.01}
    )  # so that three steps do not magnify rounding

    def sgd(parameters: Any) -> torch.optim.SGD:
        return torch.optim.SGD(
            parameters, recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )

    def hard(loss: Any) -> Any:
        return lambda logits, target: loss(logits, target.argmax(1))

    assert trained(TINY, recipe, sgd, (hard(F.cross_entropy), hard(smoothed_ce(0.0)))) < 1e-4


def test_plain_validate_is_the_engines():
    draws, temperature = torch.Generator().manual_seed(0), validate.POST.temperature
    logits, teacher = (
        torch.randn(6, 10, generator=draws, dtype=torch.float64) * 5 for _ in range(2)
    )
    plain, own = (
        validate.distillation(logits, teacher, temperature),
        kd_loss(logits, teacher, temperature),
    )
    assert float(plain) == pytest.approx(float(own), rel=1e-4)  # the engine computes in float32
    images, order = torch.rand(6, 3, 4, 4, generator=draws), torch.randperm(6, generator=draws)
    torch.testing.assert_close(
        validate.mixed(images, order, 0.3), mixup(images, images[order], torch.full((6,), 0.3))
    )


def test_plain_images_are_the_engines():
    """Without augmentation; tests of `method.augment` compare crops and flips with torchvision."""
    data = TINY.data
    pixels, labels = synthetic(8, data)
    pictures = Pictures(pixels, labels, transform_of(Augmentation(augment="none", flip=0.0), data))
    images = Images(pixels, labels, data, QUICK.reference())
    plain = torch.stack([pictures[index][0] for index in range(8)])
    torch.testing.assert_close(plain, images.normalised(images.at(torch.arange(8))))
    assert [pictures[index][1:] for index in range(8)] == [
        (int(label), i) for i, label in enumerate(labels)
    ]


@pytest.mark.parametrize("crop", ["pad_crop", "random_resized_crop"])
def test_plain_crops_vary_and_keep_the_size(crop):
    transform = transform_of(Augmentation(augment=crop), TINY.data)
    pictures = Pictures(*synthetic(1, TINY.data), transform)
    seen = [pictures[0][0] for _ in range(4)]
    assert {tuple(image.shape) for image in seen} == {(3, 16, 16)}
    assert len({float(image.sum()) for image in seen}) > 1


# All of it


def test_every_side_runs_and_is_written(tmp_path, capsys):
    path = tmp_path / "benchmarks.csv"
    program.main(
        [
            "--quick",
            "--device",
            "cpu",
            "--only",
            "recover",
            "squeeze",
            "validate",
            "--out",
            str(path),
        ]
    )
    found = table.read(path)
    assert {line["benchmark"] for line in found} == {"recover", "squeeze", "validate"}
    assert {line["side"] for line in found} == {"plain", "ours", "reference"}
    assert all(float(line["rate"]) > 0 and line["device"] and line["versions"] for line in found)
    assert all(line["ratio"] == "1" for line in found if line["side"] == "plain")
    assert str(path.with_suffix(".md")) in capsys.readouterr().out


def test_full_sizes_are_declared_for_both_devices():
    """A case's name is unique: the process that measures its memory finds it by name."""
    for module in (recover, squeeze, validate):
        for device in ("cpu", "cuda"):
            cases = module.cases(Setting(device))
            names = [case.what for case in cases]
            assert len(names) == len(set(names))
            assert all(case.sides[0].name == "plain" for case in cases)
