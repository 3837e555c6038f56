"""Which files below a class folder are images; litter, links and pipes; what is logged."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cda.config.settings import Dataset
from cda.data import sources
from cda.data.pixels import ENDINGS
from cda.errors import DataError

READ = (
    *("png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"),
    *("pbm", "avif", "jp2", "j2k"),
)
DATA = Dataset(
    name="toy",
    layout="image_folder",
    classes=1 + 1,
    resolution=8,
    mean=(0.5, 0.5, 0.5),
    std=(0.2, 0.2, 0.2),
    get="fetch it.",
)


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            draw(tmp_path / "data" / split / name / "0.png")
    return tmp_path / "data"


def count(root: Path) -> int:
    return len(sources.labels_of(DATA, "train", root))


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        sources.load(DATA, "train", root)
    line = str(caught.value)
    assert line.isprintable()
    assert sources.check(DATA, root) == line
    return line


@pytest.mark.parametrize("ending", [*READ, *(ending.upper() for ending in READ)])
def test_files_of_every_common_ending_are_read(data, ending, capfd):
    draw(data / "train/ant" / f"1.{ending}")
    assert len(sources.load(DATA, "train", data).images) == 3
    assert "skipped" not in capfd.readouterr().err


def test_all_endings_are_known_to_pillow():
    Image.init()
    assert {f".{ending}" for ending in ENDINGS} <= set(Image.registered_extensions())


def test_what_is_skipped_is_counted_and_named_in_one_line(data, capfd):
    for name in ("a.heic", "b.HEIC", "c.txt", "d.svg", "no_ending", "e.jpg.part", "f.x\x1b[31m"):
        (data / "train/ant" / name).write_text("?")
    (data / "train/list.csv").write_text("?")
    assert count(data) == 2
    assert count(data) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if "skipped" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"{data}/train: skipped 8 files not read as images: .heic (2)")
    for part in (".csv (1)", ".txt (1)", ".svg (1)", ".part (1)", "others (2)"):
        assert part in lines[0]


@pytest.mark.parametrize(
    "folder",
    [
        *("@eaDir", "__MACOSX", ".ipynb_checkpoints", "lost+found", ".snapshot", "#recycle"),
        *(".Trash-1000", ".thumbnails", "@Recycle", "$RECYCLE.BIN"),
    ],
)
@pytest.mark.parametrize("inside", ["train", "train/ant", "train/ant/more"])
def test_folders_that_systems_leave_are_no_data(data, folder, inside, capfd):
    draw(data / inside / folder / "0.jpg")
    draw(data / inside / folder / "deeper" / "0.jpg")
    assert count(data) == 2
    assert sources.class_names(DATA, data) == ("ant", "bee")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "name", [".DS_Store", "Thumbs.db", "desktop.ini", "._0.png", ".nfs000000000.png", "Icon\r"]
)
def test_files_that_systems_leave_are_no_data(data, name, capfd):
    (data / "train/ant" / name).write_text("?")
    (data / "train" / name).write_text("?")
    assert count(data) == 2
    assert sources.check(DATA, data) is None
    assert capfd.readouterr().err == ""


# Links, and what is no file
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("train/ant/up", ".."),
        ("train/ant/here", "."),
        ("train/ant/root", "../.."),
        ("train/cat", "."),
        ("train/cat", ".."),
    ],
)
def test_a_link_to_a_folder_that_contains_it_is_refused(data, link, target):
    (data / link).symlink_to(target)
    line = refusal(data)
    assert line.startswith(f"{data / link}: toy needs links without a loop")


def test_links_that_lead_to_each_other_are_refused(data):
    (data / "train/ant/x").symlink_to("../bee")
    (data / "train/bee/y").symlink_to("../ant")
    assert "links without a loop" in refusal(data)


@pytest.mark.parametrize("name", ["1.png", "more"])
@pytest.mark.parametrize("target", ["nowhere", "self"])
def test_a_link_that_leads_nowhere_is_a_missing_image(data, name, target):
    link = data / "train/ant" / name
    link.symlink_to(link if target == "self" else "nowhere")
    assert refusal(data).startswith(f"{link}: toy needs links that lead to files, found ")


def test_a_class_or_split_that_leads_nowhere_is_refused(data):
    (data / "train/cat").symlink_to("nowhere")
    assert "train/cat: toy needs links that lead to files" in refusal(data)
    (data / "train").rename(data / "other")
    (data / "train").symlink_to("nowhere")
    assert "needs a folder train in it" in refusal(data)


def test_a_text_that_leads_nowhere_is_skipped(data):
    (data / "train/ant/notes.txt").symlink_to("nowhere")
    assert count(data) == 2


@pytest.mark.parametrize("relative", [True, False])
def test_links_out_of_the_data_set_are_followed_and_logged(data, relative, capfd):
    draw(data.parent / "elsewhere/1.png")
    draw(data.parent / "elsewhere/2.png")
    target = "../../../elsewhere" if relative else str(data.parent / "elsewhere")
    (data / "train/ant/more").symlink_to(target)
    (data / "train/bee/1.png").symlink_to(data.parent / "elsewhere/1.png")
    assert count(data) == 5
    assert f"{data}/train: 2 links lead out of the data set; " in capfd.readouterr().err


def test_links_within_the_data_set_need_no_word(data, tmp_path, capfd):
    (data / "train/ant/1.png").symlink_to("../bee/0.png")
    (data / "train/ant/2.png").symlink_to(data.resolve() / "train/bee/0.png")
    (tmp_path / "name").symlink_to(data)
    assert count(tmp_path / "name") == 4
    assert capfd.readouterr().err == ""


def test_pipes_are_no_images_and_do_not_block(data, capfd):
    os.mkfifo(data / "train/ant/1.png")
    assert len(sources.load(DATA, "train", data).images) == 2
    assert "skipped 1 files not read as images: pipes and devices (1)" in capfd.readouterr().err


def test_a_folder_with_the_name_of_an_image_is_a_folder(data):
    draw(data / "train/ant/more.png/1.png")
    assert count(data) == 3


def test_an_unreadable_folder_ends_in_one_line(data, monkeypatch):
    scan = os.scandir

    def closed(path: str) -> object:
        if str(path).endswith("ant"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert "train/ant: toy needs a readable folder, found Permission denied" in refusal(data)
