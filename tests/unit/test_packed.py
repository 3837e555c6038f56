"""Packs: a data set as a few zip files gives the arrays of its folders, and whatever is wrong with
one is one line.
"""

from __future__ import annotations

import json
import os
import pickle
import stat
import struct
import zipfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cda.config.settings import Dataset
from cda.data import folders as folder_layout
from cda.data import packed, sources
from cda.errors import ConfigError, DataError
from cda.files import file_digest

GET = "fetch it from example.org."
MUCH = 10**6


def dataset(layout: str = "image_folder", **values: Any) -> Dataset:
    values = {"name": "toy", "classes": 2, "resolution": 8, "get": GET, **values}
    return Dataset(layout=layout, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), **values)


def pixels(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def write_folders(root: Path) -> None:
    """Two classes of sizes and kinds of their own, some images in folders within."""
    for c, name in enumerate(("ant", "cat")):
        for i in range(3):
            write(
                root / "train" / name / f"{i}.{'png' if i else 'JPEG'}",
                pixels(10 * c + i, 8 + i, 9),
            )
        write(
            root / "train" / name / "1a" / "0.png", pixels(10 * c + 5)
        )  # comes third, and not by its own name
        write(root / "test" / name / "é 0.png", pixels(100 + c))


def write_tiny(root: Path) -> None:
    (root / "wnids.txt").parent.mkdir(parents=True)
    (root / "wnids.txt").write_text("n02\nn01\n")
    for c, wnid in enumerate(("n01", "n02")):
        for i in range(3):
            write(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", pixels(10 * c + i))
    for i in range(4):
        write(root / "val/images" / f"val_{i}.JPEG", pixels(100 + i))
    (root / "val/val_annotations.txt").write_text(
        "".join(f"val_{i}.JPEG\tn0{2 - i % 2}\t0\t0\n" for i in range(4))
    )


def write_pickles(root: Path) -> None:
    root.mkdir(parents=True)
    (root / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple", "baby"]}))
    for split in ("train", "test"):
        data = np.random.default_rng(len(split)).integers(0, 256, (6, 3072), dtype=np.uint8)
        record = {
            "filenames": [f"{i}.png" for i in (3, 0, 4, 1, 5, 2)],
            "fine_labels": [0, 1, 1, 0, 1, 0],
        }
        (root / split).write_bytes(pickle.dumps(record | {"data": data}, protocol=4))


WRITERS = {"image_folder": write_folders, "tiny_imagenet": write_tiny, "cifar100": write_pickles}


@pytest.fixture
def pack(tmp_path):
    """A pack of folders in three volumes or more."""
    write_folders(tmp_path / "folders")
    sources.pack(dataset(), tmp_path / "folders", tmp_path / "pack", 1200)
    assert len(list((tmp_path / "pack").glob("*.zip"))) >= 3
    return tmp_path / "pack"


def problem_of(root: Path, data: Dataset | None = None) -> str:
    with pytest.raises(DataError) as caught:
        sources.load(data or dataset(), "train", root)
    line = str(caught.value)
    assert line.isprintable()
    assert line.endswith(GET)
    assert len(line) < 1000
    return line


def described(root: Path, **values: Any) -> dict[str, Any]:
    """Change what `pack.json` says.

    By default only the sizes and digests, to those that volumes have.
    """
    told = json.loads((root / "pack.json").read_text())
    for volume in told["volumes"]:
        path = root / volume["name"]
        if path.is_file():
            volume |= {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    (root / "pack.json").write_text(json.dumps(told | values))
    return told


# As the folders
# ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "resolution"), [*product(WRITERS, (8, 72)), ("digits", 16)])
def test_pack_gives_what_its_source_gives(tmp_path, layout, resolution):
    data = dataset(layout, resolution=resolution, classes=10 if layout == "digits" else 2)
    WRITERS.get(layout, Path.mkdir)(tmp_path / "source")
    sources.pack(
        data, tmp_path / "source", tmp_path / "pack", 200_000 if layout == "digits" else 20_000
    )
    assert sources.check(data, tmp_path / "pack") is None
    for split in ("train", "val"):
        theirs, ours = (sources.load(data, split, tmp_path / name) for name in ("source", "pack"))
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert ours.classes == theirs.classes == sources.class_names(data, tmp_path / "pack")
        np.testing.assert_array_equal(
            sources.labels_of(data, split, tmp_path / "pack"), theirs.labels
        )
        chosen = np.array([3, 0, 1, 1])[: len(theirs.labels)] % len(theirs.labels)
        np.testing.assert_array_equal(
            list(sources.select(data, split, tmp_path / "pack", chosen)), theirs.images[chosen]
        )


def test_files_are_kept_byte_for_byte_in_the_order_of_reading(tmp_path):
    write_folders(tmp_path / "folders")
    told = sources.pack(dataset(), tmp_path / "folders", tmp_path / "pack", MUCH)
    assert "10 images of toy packed and verified; volumes: 1, " in told
    with zipfile.ZipFile(tmp_path / "pack/pack-000.zip") as volume:
        names = volume.namelist()
        contents = [volume.read(name) for name in names]
    own = ["000000-0.JPEG", "000001-1.png", "000002-0.png", "000003-2.png"]
    held_out = ["val/ant/é 0.png", "val/cat/é 0.png"]
    assert names == [f"train/{name}/{file}" for name in ("ant", "cat") for file in own] + held_out
    source = folder_layout.Folders(dataset(), tmp_path / "folders")
    assert contents == [
        source.content(path) for split in ("train", "val") for path in source.listing(split)[0]
    ]


def test_equal_images_give_equal_bytes_and_a_pack_can_be_packed_again(tmp_path, pack):
    for path in (tmp_path / "folders").rglob("*"):
        os.utime(path, (1, 1))
    sources.pack(dataset(), tmp_path / "folders", tmp_path / "again", 1200)
    sources.pack(dataset(), pack, tmp_path / "repacked", 1200)
    for path in pack.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    first, second = (
        json.loads((root / "pack.json").read_text()) for root in (pack, tmp_path / "repacked")
    )
    assert first == second


def test_no_volume_is_larger_than_the_limit(tmp_path, pack):
    sizes = [path.stat().st_size for path in sorted(pack.glob("*.zip"))]
    assert max(sizes) <= 1200
    together = tmp_path / "together"
    sources.pack(dataset(), tmp_path / "folders", together, MUCH)
    needed = (
        together / "pack-000.zip"
    ).stat().st_size + 76  # what a zip of many members would end with besides
    for limit, volumes in ((needed, 1), (needed - 1, 2)):
        sources.pack(dataset(), tmp_path / "folders", tmp_path / str(limit), limit)
        assert len(list((tmp_path / str(limit)).glob("*.zip"))) == volumes


def test_image_that_exceeds_the_limit_leaves_nothing(tmp_path):
    write_folders(tmp_path / "folders")
    with pytest.raises(
        ConfigError,
        match=r"--megabytes: train/ant/000000-0.JPEG alone takes \d+ bytes of 300; raise",
    ):
        sources.pack(dataset(), tmp_path / "folders", tmp_path / "pack", 300)
    assert list((tmp_path / "pack").iterdir()) == []


def test_folder_that_holds_something_is_left_alone(tmp_path):
    write_folders(tmp_path / "folders")
    with pytest.raises(ConfigError, match="holds something already; name a new folder"):
        sources.pack(dataset(), tmp_path / "folders", tmp_path / "folders", MUCH)
    assert len([path for path in (tmp_path / "folders").rglob("*") if path.is_file()]) == 10


def test_what_differs_once_written_is_no_pack(tmp_path, monkeypatch):
    write_folders(tmp_path / "folders")
    whole = packed.write_zip

    def damaged(path, members):
        whole(path, members)
        path.write_bytes(path.read_bytes().replace(b"IDAT", b"IDOT", 1))

    monkeypatch.setattr(packed, "write_zip", damaged)
    with pytest.raises(DataError, match="Bad CRC-32"):
        sources.pack(dataset(), tmp_path / "folders", tmp_path / "pack", MUCH)
    monkeypatch.setattr(packed, "write_zip", whole)
    content, seen = folder_layout.Folders.content, set()

    def changing(self, path):
        before = path in seen
        seen.add(path)
        return content(self, path) + (b"more" if before and path.endswith("cat/2.png") else b"")

    monkeypatch.setattr(folder_layout.Folders, "content", changing)
    with pytest.raises(
        DataError, match=r"pack-000.zip/train/cat/000003-2.png: differs from the source"
    ):
        sources.pack(dataset(), tmp_path / "folders", tmp_path / "pack", MUCH)
    assert list((tmp_path / "pack").iterdir()) == []


def test_name_that_no_member_can_have_is_refused(tmp_path):
    write_folders(tmp_path / "folders")
    write(tmp_path / "folders/train/cat/a\\b.png", pixels(0))
    with pytest.raises(DataError, match="needs printable names of classes and files"):
        sources.pack(dataset(), tmp_path / "folders", tmp_path / "pack", MUCH)
    assert list((tmp_path / "pack").iterdir()) == []


# Checks
# --------------------------------------------------------------------------------------------


def test_volumes_are_hashed_once_and_only_for_pixels(pack, monkeypatch):
    hashed = []
    monkeypatch.setattr(
        packed, "file_digest", lambda path: hashed.append(path.name) or file_digest(path)
    )
    assert sources.check(dataset(), pack) is None
    assert len(sources.labels_of(dataset(), "train", pack)) == 8
    assert hashed == []
    sources.load(dataset(), "train", pack)
    assert len(hashed) == len(set(hashed))
    assert "pack-000.zip" in hashed


def test_declared_counts_hold_for_packs(pack):
    assert "needs 9 train images, found 8" in problem_of(pack, dataset(train_images=9))
    assert "needs 3 classes, found 2 (ant, cat)" in problem_of(pack, dataset(classes=3))


def test_streaming_is_refused(pack):
    with pytest.raises(ConfigError, match="stream needs a file an image"):
        sources.files(dataset(), pack)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (Path.unlink, "needs the pack's volume of"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "found a file of"),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b"IDAT", b"IDOT")),
            "the volume that was packed (SHA-256 ",
        ),
        (
            lambda path: path.write_bytes(b"<html>" + path.read_bytes()[6:-22] + bytes(22)),
            "no whole zip (File is not",
        ),
    ],
    ids=["missing", "truncated", "changed", "no_zip"],
)
def test_damaged_volume_is_named(pack, damage, problem):
    damage(pack / "pack-001.zip")
    line = problem_of(pack)
    assert line.startswith(f"{pack}/pack-001.zip: toy needs ")
    assert problem in line


def test_damage_that_the_digest_does_not_tell(pack):
    path = pack / "pack-001.zip"
    path.write_bytes(path.read_bytes().replace(b"IDAT", b"IDOT"))
    described(pack)
    assert f"{path}/train/" in problem_of(pack)
    assert "Bad CRC-32" in problem_of(pack)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("no JSON", "needs a description of volumes, found Expecting value"),
        ("[]", "found there: format field required"),
        ("[" * 100_000, "needs a description of volumes, found"),
        ('{"format": "cda-pack/2"}', "found there: format input should be 'cda-pack/1'"),
    ],
)
def test_description_that_is_none(pack, text, problem):
    (pack / "pack.json").write_text(text)
    line = problem_of(pack)
    assert line.startswith(f"{pack}/pack.json: ")
    assert problem in line
    assert sources.check(dataset(), pack) == line


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda told: told | {"dataset": "other"}, "needs a pack of its own, found one of other"),
        (
            lambda told: told | {"images": {"train": 7, "val": 2}},
            "of the 7 train images that it tells of, found 8",
        ),
        (
            lambda told: told | {"volumes": told["volumes"] * 2},
            "needs a volume once, found pack-000.zip again",
        ),
        (
            lambda told: told | {"volumes": told["volumes"][1:]},
            "train images that it tells of, found",
        ),
        (
            lambda told: told["volumes"][0].update(name="../pack-000.zip") or told,
            "volumes.0.name string should match",
        ),
        (
            lambda told: told["volumes"][0].update(sha256="0") or told,
            "volumes.0.sha256 string should match",
        ),
        (lambda told: told["volumes"][0].update(bytes=-1) or told, "volumes.0.bytes"),
        (lambda told: told | {"run": "rm"}, "run is not a known key"),
    ],
)
def test_description_of_something_else(pack, change, problem):
    told = change(json.loads((pack / "pack.json").read_text()))
    (pack / "pack.json").write_text(json.dumps(told))
    assert problem in problem_of(pack)


# Zips that somebody made
# ---------------------------------------------------------------------------


def made(
    pack: Path, name: str, content: bytes = b"x", kind: int = stat.S_IFREG, **options: Any
) -> None:
    """Add a member to the pack's first volume, and have `pack.json` agree."""
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o644) << 16
    with zipfile.ZipFile(pack / "pack-000.zip", "a") as volume:
        volume.writestr(info, content, **options)
    described(pack)


@pytest.mark.parametrize(
    "name",
    [
        "../x.png",
        "/etc/x.png",
        "train/../x.png",
        "train/ant/../x.png",
        "train/ant/deep/x.png",
        "train/ant/.png",
        "train/ant/a\\x.png",
        "train/ant/\x1b[2Jx.png",
        "train//x.png",
        "train/ant/",
        "train/ant/x.sh",
        "test/ant/x.png",
        "x.png",
    ],
)
def test_foreign_member_is_refused(pack, name):
    made(pack, name)
    assert f"needs members train/<class>/<image> and val/…, found {name!r};" in problem_of(pack)


@pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFLNK])
def test_long_name_is_told_in_short(pack, kind):
    made(pack, "x" * 60_000, kind=kind)
    assert "xxx" in problem_of(pack)


def test_name_that_is_not_what_it_seems_is_refused(pack):
    made(pack, "train/ant/x.png0y.png")
    path = pack / "pack-000.zip"
    path.write_bytes(path.read_bytes().replace(b"x.png0y.png", b"x.png\0y.png"))
    described(pack)
    assert "which is no plain file" in problem_of(pack)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFDIR])
def test_link_or_device_is_refused(pack, kind):
    made(pack, "train/ant/x.png", b"/etc/passwd", kind)
    assert "member 'train/ant/x.png', which is no plain file" in problem_of(pack)


def test_bomb_is_refused_before_it_is_read(pack):
    made(pack, "train/ant/x.png", bytes(10**6), compress_type=zipfile.ZIP_DEFLATED)
    assert "member 'train/ant/x.png', which is not stored as it is" in problem_of(pack)


def test_member_that_claims_more_than_the_volume_has_is_refused(pack):
    made(pack, "train/ant/x.png")
    path = pack / "pack-000.zip"
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\1\2")
    content[at + 20 : at + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(content)
    described(pack)
    assert "members that claim more bytes than it has" in problem_of(pack)


def test_member_twice_is_refused(pack):
    with pytest.warns(UserWarning, match="Duplicate name"):
        made(pack, zipfile.ZipFile(pack / "pack-000.zip").namelist()[0])
    assert "found a member that is there twice" in problem_of(pack)


def test_image_in_two_volumes_is_refused(pack):
    made(pack, "train/ant/x.png")
    first = (pack / "pack-000.zip").read_bytes()
    (pack / "pack-000.zip").rename(pack / "pack-001.zip")
    (pack / "pack-000.zip").write_bytes(first)
    described(pack)
    assert "needs an image once, found one of train/ant in two volumes" in problem_of(pack)


# The command
# ---------------------------------------------------------------------------------------


def test_command_packs_and_the_stages_read_it(tree, capsys):
    tree.few_images()
    folders = sources.load(tree.experiments().dataset("digits"), "train", Path("data/digits"))
    assert tree.cda("pack", "digits", "--out", "pack") == 0
    assert "100 images of digits packed and verified; volumes: 1, " in capsys.readouterr().out
    run = tree.runs()["squeeze"]
    read = tree.context(run, data_paths={"digits": "pack"}).real("train")
    np.testing.assert_array_equal(read.images, folders.images)
    assert tree.cda("pack", "digits", "--out", "other", "--megabytes", "0") == 1
    assert "cda: --megabytes 0: must be from 1 to 4000" in capsys.readouterr().err
    assert tree.cda("pack", "nothing", "--out", "other") == 1
    assert not Path("other").exists()
