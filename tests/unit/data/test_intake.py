"""A user's folder of images: linked or split by links, counted, measured, and refused in a line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cda.config.settings import Dataset
from cda.data import intake
from cda.errors import ConfigError, DataError

DATA = Dataset(
    name="mine",
    layout="image_folder",
    classes=2,
    resolution=8,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    get="draw it",
)
ROOT = Path("data/mine")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def paint(path: str, count: int = 5, size: tuple[int, int] = (8, 8), grey: int = 51) -> None:
    Path(path).mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", size, (grey, grey, 0)).save(Path(path, f"{index:02d}.png"))


def split(count: int = 5) -> Path:
    for part in ("train", "val"):
        for name in "ab":
            paint(f"mine/{part}/{name}", count)
    return Path("mine")


def below(folder: Path) -> list[str]:
    return sorted(
        str(Path(top, file).relative_to(folder))
        for top, _, files in os.walk(folder)
        for file in files
    )


def test_a_split_folder_is_linked_and_stays_where_it_is():
    assert intake.place(DATA, split(), ROOT) == "link"
    assert ROOT.is_symlink()
    assert ROOT.resolve() == Path("mine").resolve()
    assert intake.place(DATA, Path("mine"), ROOT) == ""
    intake.remove(ROOT)
    assert not ROOT.exists()
    assert len(below(Path("mine"))) == 20


@pytest.mark.parametrize("top", ["mine", "mine/train"])
def test_every_fifth_image_of_a_class_is_held_out_where_none_are(top):
    paint(f"{top}/a", 11)
    paint(f"{top}/b/deep", 2)
    before = below(Path("mine"))
    assert intake.place(DATA, Path("mine"), ROOT) == "split"
    assert below(ROOT / "val") == ["a/04.png", "a/09.png", "b/deep/01.png"]
    assert len(below(ROOT / "train")) == 10
    assert (ROOT / "val/a/04.png").read_bytes() == Path(top, "a/04.png").read_bytes()
    intake.remove(ROOT)
    assert below(Path("mine")) == before
    assert os.listdir("data") == []


def test_another_folder_in_its_place_is_refused():
    paint("data/mine/train/x")
    with pytest.raises(ConfigError, match=r"^data/mine: exists and is not mine; choose another"):
        intake.place(DATA, split(), ROOT)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: None, "--data mine: does not exist"),
        (lambda: Path("mine").write_text("x"), "--data mine: is a file"),
        (lambda: Path("mine").mkdir(), "a folder for each of 2 or more classes, found .* nothing"),
        (lambda: paint("mine"), "2 or more classes, found a folder with 00.png"),
        (lambda: paint("mine/a"), r"2 or more classes, found a folder with a; draw it"),
        (lambda: (paint("mine/a"), paint("mine/b", 1)), r"of every class, found fewer in 1 \(b\)"),
    ],
)
def test_what_is_no_data_set_is_one_line_and_leaves_nothing(make, message):
    make()
    with pytest.raises(DataError, match=message) as error:
        intake.place(DATA, Path("mine"), ROOT)
    assert "\n" not in str(error.value)
    assert not ROOT.exists()
    assert not Path("data").exists() or os.listdir("data") == []


def test_a_survey_counts_and_reads_sizes():
    paint("data/mine/train/a", 3, (20, 30))
    paint("data/mine/train/b", 2)
    paint("data/mine/val/a", 1)
    paint("data/mine/val/b", 1)
    found = intake.survey(DATA, ROOT)
    assert (found.classes, found.train_images, found.val_images) == (2, 5, 2)
    assert found.smallest_class == 2
    assert found.sizes == [(20, 30)] * 3 + [(8, 8)] * 2


def test_of_a_large_set_a_sample_from_every_class_is_read(monkeypatch):
    monkeypatch.setattr(intake, "SAMPLE", 4)
    found = intake.survey(DATA, split(20))
    assert found.train_images == 40
    assert [Path(path).parent.name for path in found.sample] == ["a", "a", "b", "b"]


def test_images_below_eight_pixels_are_refused():
    for part in ("train", "val"):
        for name in "ab":
            paint(f"data/mine/{part}/{name}", 1, (7, 90))
    with pytest.raises(DataError, match="images of at least 8×8 pixels, found 7 at most; draw it"):
        intake.survey(DATA, ROOT)


def test_mean_and_deviation_are_over_all_pixels_and_without_damaged_images(capsys):
    path = split(1)
    Image.new("RGB", (8, 8), (153, 51, 0)).save(path / "train/b/00.png")
    (path / "train/b/damaged.png").write_bytes(b"x")
    found = intake.survey(DATA, path)
    mean, std = intake.pixel_statistics(DATA, path, found.sample)
    assert mean == [0.4, 0.2, 0.0]
    np.testing.assert_allclose(std, [0.2, 0.001, 0.001], atol=1e-9)
    assert "1 of 3 images cannot be read" in capsys.readouterr().err
