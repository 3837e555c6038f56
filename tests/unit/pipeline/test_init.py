"""`cda init`: files that a table is made from without an edit, and nothing overwritten."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cda.data.sources import check
from cda.pipeline import init as module
from cda.pipeline.estimate import estimate

ROOT = Path(__file__).resolve().parents[3]
FILES = ("config/datasets/mine.yaml", "config/recipes/mine.yaml")


@pytest.fixture
def photos(tree):
    """Twelve photographs of two sizes in three class folders, and the repository's recipes."""
    for name in ("cifar100", "tiny_imagenet", "imagenet1k"):
        shutil.copy(ROOT / f"config/recipes/{name}.yaml", "config/recipes")
    draws = np.random.default_rng(0)
    for index in range(12):
        folder = Path("photos", ("ant", "bee", "cat")[index % 3])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = draws.integers(0, 256, ((30, 40, 3), (50, 36, 3))[index % 2], dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    return tree


def test_tiny_imagenet_s_layout_is_recognised_by_its_list_of_held_out_images(photos, capsys):
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for folder, count in (("train/n01/images", 4), ("train/n02/images", 4), ("val/images", 2)):
        Path("tiny", folder).mkdir(parents=True)
        for index in range(count):
            pixels.save(Path("tiny", folder, f"{index}.JPEG"))
    Path("tiny/val/val_annotations.txt").write_text("0.JPEG\tn01\n1.JPEG\tn02\n")
    assert photos.cda("init", "mine", "--data", "tiny") == 0
    assert "2 classes, 8 training and 2 held-out images" in capsys.readouterr().out
    assert photos.experiments().dataset("mine").layout == "tiny_imagenet"


def test_a_folder_of_photographs_becomes_a_table_that_can_be_planned(photos, capsys):
    assert photos.cda("init", "mine", "--data", "photos") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == (
        "data/mine, links into photos: 3 classes, 9 training and 3 held-out images of 40×30 to "
        "36×50 pixels in 2 sizes"
    )
    assert tuple(printed[1:3]) == FILES
    assert printed[-3:-1] == [
        "  cda check mine",
        "  cda run mine mine-grid --config runtime.blocks=3",
    ]
    assert "every fifth image of a class" in Path(FILES[0]).read_text(encoding="utf-8")
    own = photos.experiments()
    data = own.dataset("mine")
    assert check(data, Path("data/mine")) is None
    assert (data.resolution, data.train_images, data.val_images) == (24, 9, 3)
    assert data.mean != (0.5, 0.5, 0.5)
    settings = {(cell.key["method"], cell.key["setting"]) for cell in own.cells("mine")}
    assert {
        ("random", ""),
        ("cda", ""),
        ("cda", "labels=hard"),
        ("sre2l", "labels=hard"),
    } <= settings
    hours = estimate(own, ["mine"], "cpu", 1).gpu_hours
    assert 0 < hours < module.CPU_HOURS
    assert f"at {60 * hours:.2g} min on cpu" in printed[3]


def test_a_smaller_budget_is_proposed_where_the_price_is_above_the_limit(
    photos, monkeypatch, capsys
):
    assert photos.cda("init", "large", "--data", "photos") == 0
    large = photos.experiments()
    monkeypatch.setattr(module, "CPU_HOURS", estimate(large, ["large"], "cpu", 1).gpu_hours * 0.8)
    assert photos.cda("init", "mine", "--data", "photos") == 0
    assert estimate(photos.experiments(), ["mine"], "cpu", 1).gpu_hours <= module.CPU_HOURS
    assert "more than" not in capsys.readouterr().out
    monkeypatch.setattr(module, "CPU_HOURS", 1e-9)
    assert photos.cda("init", "least", "--data", "photos") == 0
    assert "more than 0 s: lower the recipe's epochs" in capsys.readouterr().out


def test_a_gpu_gets_more(photos, capsys):
    photos.cda("init", "mine", "--data", "photos", "--gpu", "a100")
    text = Path(FILES[1]).read_text(encoding="utf-8")
    assert "for mine on a100" in text
    assert "width" not in text
    assert "iterations: 1000 " in text
    assert capsys.readouterr().out.splitlines()[-2] == "  cda run mine mine-grid"


def test_data_in_its_place_needs_no_path(photos, capsys):
    for part in ("train", "val"):
        shutil.copytree("photos", f"data/mine/{part}")
    assert photos.cda("init", "mine", "--config", "scale=paper") == 0
    assert capsys.readouterr().out.startswith("data/mine: 3 classes, 12 training and 12 held-out")


@pytest.mark.parametrize("name", ["a b", "../mine", "", "a;b", "-"])
def test_a_name_that_a_path_or_a_shell_could_misread_is_refused(name, photos, capsys):
    assert photos.cda("init", "--data", "photos", "--", name) == 1
    assert "must be letters, digits, _ and -" in capsys.readouterr().err
    assert not Path("data").exists()


@pytest.mark.parametrize("file", [*FILES, "config/experiments/mine.yaml"])
def test_nothing_is_overwritten(file, photos, capsys):
    Path(file).write_text("# of the user\n", encoding="utf-8")
    assert photos.cda("init", "mine", "--data", "photos") == 1
    line = f"cda: {file}: exists and stays as it is; choose another name, or edit it\n"
    assert capsys.readouterr().err == line
    assert Path(file).read_text(encoding="utf-8") == "# of the user\n"
    assert not Path("data").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "photos/ant"), "needs a folder for each of 2 or more classes"),
        (("--data", "nowhere"), "--data nowhere: does not exist"),
        (("--data", "photos", "--gpu", "abacus"), "--gpu abacus: is not in config/devices.yaml"),
        (("--data", "photos", "--layout", "tiny_imagenet"), "needs a folder train in it"),
        ((), "data/mine: mine needs a folder train in it, found nothing"),
    ],
)
def test_after_an_error_of_one_line_nothing_is_left(options, message, photos, capsys):
    before = sorted(path for path in Path("config").rglob("*"))
    assert photos.cda("init", "mine", *options) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len([line for line in error.splitlines() if line.startswith("cda:")]) == 1
    assert sorted(path for path in Path("config").rglob("*")) == before
    assert not os.path.lexists("data/mine")
