"""Real data sets: every layout gives the same arrays, and damage ends in one line that says where
and what to do.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from cda.config.settings import Dataset
from cda.data import base, sources
from cda.data import folders as folder_layout
from cda.errors import DataError

GET = "fetch it from example.org."


def dataset(layout: str, **values: Any) -> Dataset:
    values = {"name": "toy", "classes": 2, "resolution": 8, "get": GET, **values}
    return Dataset(layout=layout, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), **values)


def pixels(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def problem_of(data: Dataset, root: Path, split: str = "train") -> str:
    with pytest.raises(DataError) as caught:
        sources.load(data, split, root)
    line = str(caught.value)
    assert "\n" not in line
    assert line.endswith(GET)
    return line


def assert_equal(one: sources.ImageSet, other: sources.ImageSet) -> None:
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.labels, other.labels)
    assert one.classes == other.classes


# The module
# --------------------------------------------------------------------------------------------------


def test_imports_nothing_heavy_even_to_load():
    code = (
        "import sys, types, pathlib; from cda.data import sources;"
        "d = types.SimpleNamespace(name='digits', layout='digits', classes=10, resolution=16, "
        "resize=None,"
        " train_images=None, val_images=None, get='');"
        "assert sources.load(d, 'val', pathlib.Path('nowhere')).images.shape == (359, 16, 16, 3);"
        "sys.exit(str({'torch', 'torchvision', 'sklearn', 'pandas', 'scipy'} & "
        "set(sys.modules) or ''))"
    )
    path = os.pathsep.join(
        [str(Path(sources.__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.strip() == ""


# Digits
# --------------------------------------------------------------------------------------------------


def test_digits_are_those_of_scikit_learn_each_in_one_split(tmp_path):
    from sklearn.datasets import load_digits

    parts = [
        sources.load(dataset("digits", classes=10), split, tmp_path) for split in ("train", "val")
    ]
    own_images = np.concatenate(
        [np.column_stack([p.images[..., 0].reshape(-1, 64), p.labels]) for p in parts]
    )
    reference = load_digits()
    expected = np.column_stack(
        [np.floor(reference.data * 255 / 16 + 0.5), reference.target]
    ).astype(np.int64)
    np.testing.assert_array_equal(
        own_images[np.lexsort(own_images.T)], expected[np.lexsort(expected.T)]
    )
    for part in parts:
        assert part.classes == tuple("0123456789")
        assert (part.images == part.images[..., :1]).all()
        assert (part.images.dtype, part.labels.dtype) == (np.uint8, np.int64)
    share = np.bincount(parts[1].labels) / np.bincount(reference.target)
    assert np.abs(share - 0.2).max() < 0.005


def test_digits_split_never_changes(tmp_path):
    """Squeezed models and tables depend on it.

    A new digest here is a new version of every run on the digits.
    """
    val = sources.load(dataset("digits", classes=10), "val", tmp_path)
    digest = hashlib.sha256(val.images.tobytes() + val.labels.astype("<i8").tobytes()).hexdigest()
    assert digest[:16] == "3c4dc34475b82cc9"


def test_digits_are_enlarged_bilinearly(tmp_path):
    small, large = (
        sources.load(dataset("digits", classes=10, resolution=r), "val", tmp_path).images
        for r in (8, 16)
    )
    at = (np.arange(16) + 0.5) / 2 - 0.5
    rows = np.apply_along_axis(
        lambda line: np.interp(at, np.arange(8), line), 1, small[:20, :, :, 0]
    )
    both = np.apply_along_axis(lambda line: np.interp(at, np.arange(8), line), 2, rows)
    assert np.abs(both - large[:20, :, :, 0]).max() <= 1


# Image folders
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    """Two classes, three train images and one held-out image each, in the sorts of places that
    people put them.
    """
    for split in ("train", "validation"):
        for c, name in enumerate(("cat", "ant")):
            for i in range(3 if split == "train" else 1):
                write(
                    tmp_path / split / name / f"{i}.png",
                    pixels(10 * c + i + (100 if split == "validation" else 0)),
                )
    return tmp_path


def test_folders_order_is_by_class_then_path(folders):
    shutil.move(folders / "train/cat/1.png", folders / "train/cat/0a.PNG")
    shutil.move(
        folders / "train/cat/2.png", write(folders / "train/cat/more/deep/x.png", pixels(0))
    )
    for stray in (
        "train/cat/._0.png",
        "train/cat/notes.txt",
        "train/.cache/0.png",
        "train/list.png",
    ):
        (folders / stray).parent.mkdir(exist_ok=True)
        (folders / stray).write_text("no image")
    data = dataset("image_folder", train_images=6, val_images=2)
    train, val = (sources.load(data, split, folders) for split in ("train", "val"))
    assert train.classes == ("ant", "cat") == sources.class_names(data, folders)
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(train.images, [pixels(i) for i in (10, 11, 12, 0, 1, 2)])
    np.testing.assert_array_equal(val.images, [pixels(110), pixels(100)])
    assert sources.check(data, folders) is None


@pytest.mark.parametrize("resolution", [8, 72])  # 72 decodes in the threads, 8 beside them
def test_order_holds_over_many_chunks(tmp_path, monkeypatch, resolution):
    monkeypatch.setattr(folder_layout, "_CHUNK", 2)
    monkeypatch.setattr(folder_layout, "_AHEAD", 6)
    for i in range(20):
        write(tmp_path / "train" / "ab"[i % 2] / f"{i:02d}.png", pixels(i, resolution, resolution))
    train = sources.load(dataset("image_folder", resolution=resolution), "train", tmp_path)
    expected = [pixels(i, resolution, resolution) for i in [*range(0, 20, 2), *range(1, 20, 2)]]
    np.testing.assert_array_equal(train.images, expected)


@pytest.mark.parametrize("resize", [None, 19])
def test_other_sizes_are_fitted_exactly_as_torchvision_does(tmp_path, resize):
    from torchvision.transforms import CenterCrop, Compose, Resize

    sizes = [(37, 53), (53, 37), (40, 40), (17, 101), (101, 18), (5, 9), (16, 33), (20, 16)]
    for i, (height, width) in enumerate(sizes):
        write(tmp_path / "train" / "ab"[i % 2] / f"{i}.png", pixels(i, height, width))
    own_images = sources.load(
        dataset("image_folder", resolution=16, resize=resize), "train", tmp_path
    ).images
    reference = Compose([Resize(resize or 16), CenterCrop(16)])
    for image, i in zip(own_images, [0, 2, 4, 6, 1, 3, 5, 7], strict=True):
        np.testing.assert_array_equal(
            image, np.asarray(reference(Image.fromarray(pixels(i, *sizes[i]))))
        )


SIZES = [(37, 53), (53, 37), (16, 16), (5, 9), (16, 33), (12, 12)]


@pytest.mark.parametrize(
    ("fit", "resize"), [("auto", 19), ("crop", 19), ("crop", None), ("squash", None)]
)
def test_images_of_every_size_are_fitted_as_the_public_scripts_do(fit, resize):
    """Resize and CenterCrop of all images (fidelity 15), or both sides at once (fidelity 22)."""
    from torchvision.transforms import CenterCrop, Compose, Resize

    data = dataset("image_folder", resolution=16, resize=resize, fit=fit)
    crop = Compose([Resize(resize or 16), CenterCrop(16)])
    for i, (height, width) in enumerate(SIZES):
        image = Image.fromarray(pixels(i, height, width))
        expected = Resize((16, 16))(image) if fit == "squash" else crop(image)
        if fit == "auto" and (height, width) == (16, 16):
            expected = image
        np.testing.assert_array_equal(base.fit(image, data), np.asarray(expected))


def test_the_ways_to_fit_differ():
    image = Image.fromarray(pixels(0, 16, 16))
    auto, crop = (
        base.fit(image, dataset("image_folder", resolution=16, resize=19, fit=fit))
        for fit in ("auto", "crop")
    )
    assert np.array_equal(auto, np.asarray(image))
    assert not np.array_equal(auto, crop)


def test_missing_folder_names_path_and_fix(tmp_path):
    data = dataset("image_folder")
    line = problem_of(data, tmp_path / "nowhere")
    assert line.startswith(f"{tmp_path}/nowhere: toy needs a folder train in it, found nothing;")
    assert sources.check(data, tmp_path / "nowhere") == line
    write(tmp_path / "train/a/0.png", pixels(0))
    write(tmp_path / "train/b/0.png", pixels(0))
    assert (
        "needs a folder val or validation or test in it, found a folder with train;"
        in problem_of(data, tmp_path, "val")
    )


def test_wrong_number_of_classes(folders):
    line = problem_of(dataset("image_folder", classes=3), folders)
    assert "needs 3 classes, found 2 (ant, cat)" in line
    with pytest.raises(DataError, match="needs 3 classes"):
        sources.class_names(dataset("image_folder", classes=3), folders)


@pytest.mark.parametrize(("expected", "found"), [(7, 6), (5, 6)])
def test_wrong_number_of_images(folders, expected, found):
    data = dataset("image_folder", train_images=expected)
    line = problem_of(data, folders)
    assert f"{folders}/train: toy needs {expected} train images, found {found};" in line
    assert sources.check(data, folders) == line


def test_partial_data_is_refused(folders):
    (folders / "validation/cat/0.png").unlink()
    data = dataset("image_folder", train_images=7, val_images=2)
    assert "needs images of every class, found none of 1 (cat)" in problem_of(data, folders, "val")
    shutil.rmtree(folders / "train/cat")
    (folders / "train/cat").mkdir()
    assert "found none of 1 (cat)" in problem_of(data, folders)


def test_held_out_class_unknown_to_train(folders):
    write(folders / "validation/dog/0.png", pixels(0))
    assert "needs only known classes, found 1 unknown (dog)" in problem_of(
        dataset("image_folder"), folders, "val"
    )


@pytest.mark.parametrize("resolution", [8, 72])
@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda _: b"", lambda _: b"<html>404</html>"]
)
def test_damaged_image_is_named(folders, damage, resolution):
    path = folders / "train/cat/1.png"
    path.write_bytes(damage(path.read_bytes()))
    data = dataset("image_folder", resolution=resolution)
    assert problem_of(data, folders).startswith(f"{path}: toy needs a complete image, found ")
    assert sources.check(data, folders) is None  # a listing cannot tell


# CIFAR-100
# --------------------------------------------------------------------------------------------------


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes text and bytes as Python 2 did: both are `str`."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_python2_str(self, value: str | bytes) -> None:
        content = value.encode() if isinstance(value, str) else value
        self.write(b"T" + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_python2_str


def dump(path: Path, value: object, python: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if python == 3:
        path.write_bytes(pickle.dumps(value, protocol=4))
        return
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(value)
    path.write_bytes(
        path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    )


def write_pickles(root: Path, python: int = 2, names: tuple[str, ...] = ("apple", "baby")) -> None:
    dump(root / "meta", {"fine_label_names": list(names), "coarse_label_names": ["things"]}, python)
    for split, count in (("train", 6), ("test", 4)):
        images = [pixels(i + (100 if split == "test" else 0), 32, 32) for i in range(count)]
        order = random.Random(split).sample(range(count), count)
        record = {
            "filenames": [f"x_{i}.png" for i in order],
            "batch_label": "training batch 1 of 1",
            "fine_labels": [i % 2 for i in order],
            "coarse_labels": [0] * count,
            "data": np.stack([images[i].transpose(2, 0, 1).reshape(-1) for i in order]),
        }
        dump(root / split, record, python)


def write_cifar_folders(root: Path) -> None:
    for split, count in (("train", 6), ("test", 4)):
        for i in range(count):
            image = pixels(i + (100 if split == "test" else 0), 32, 32)
            write(root / split / ("apple", "baby")[i % 2] / f"x_{i}.png", image)


def cifar(**values: Any) -> Dataset:
    return dataset("cifar100", **{"resolution": 32, "train_images": 6, "val_images": 4, **values})


@pytest.mark.parametrize("python", [2, 3])
@pytest.mark.parametrize("nested", ["cifar-100-python", "."])
@pytest.mark.parametrize("resolution", [32, 24])
def test_cifar_layouts_agree(tmp_path, python, nested, resolution):
    write_pickles(tmp_path / "pickles" / nested, python)
    write_cifar_folders(tmp_path / "folders")
    data = cifar(resolution=resolution)
    for split in ("train", "val"):
        pickled, foldered = (
            sources.load(data, split, tmp_path / name) for name in ("pickles", "folders")
        )
        assert_equal(pickled, foldered)
    if resolution == 32:
        np.testing.assert_array_equal(
            foldered.images, [pixels(100 + i, 32, 32) for i in (0, 2, 1, 3)]
        )
    assert sources.check(data, tmp_path / "pickles") is None
    assert sources.class_names(data, tmp_path / "pickles") == ("apple", "baby")


class Command:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("where", ["meta", "train"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_malicious_pickle_executes_nothing(tmp_path, where, protocol):
    write_pickles(tmp_path)
    marker = tmp_path / "executed"
    evil = pickle.dumps({"data": Command(f"touch {marker}"), "x": b"0" * 20000}, protocol)
    (tmp_path / where).write_bytes(evil)
    line = problem_of(cifar(), tmp_path)
    assert "posix.system, which is refused" in line
    assert line.startswith(f"{tmp_path / where}: ")
    assert not marker.exists()
    pickle.loads(evil)
    assert marker.exists()  # it would have


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(3000, np.int64),
        np.array([{"a": 1}] * 9000, dtype=object),
        np.zeros(9000, "u1,u1"),
        np.float64(1),
        Path("x"),
    ],
    ids=["int64", "object", "fields", "scalar", "class"],
)
def test_pickle_of_anything_but_bytes_is_refused(tmp_path, value):
    write_pickles(tmp_path)
    dump(tmp_path / "train", {"data": value, "x": "0" * 20000}, 3)
    assert "which is refused" in problem_of(cifar(), tmp_path)


@pytest.mark.parametrize("keep", [0.9, 0.999])
def test_truncated_pickle(tmp_path, keep):
    write_pickles(tmp_path)
    complete = (tmp_path / "train").read_bytes()
    (tmp_path / "train").write_bytes(complete[: int(keep * len(complete))])
    assert problem_of(cifar(), tmp_path).startswith(f"{tmp_path}/train: toy needs a pickle of ")


def test_interrupted_download_is_found_without_reading_it(tmp_path):
    write_pickles(tmp_path)
    (tmp_path / "train").write_bytes((tmp_path / "train").read_bytes()[:10000])
    assert "needs a pickle of 18432 bytes or more, found a file of 10000 bytes" in str(
        sources.check(cifar(), tmp_path)
    )


@pytest.mark.parametrize(
    "change",
    [
        {"fine_labels": [0, 1, 2, 0, 1, 0]},
        {"fine_labels": [0, 1]},
        {"fine_labels": ["0"] * 6},
        {"filenames": ["a"]},
        {"data": np.zeros((6, 3071), np.uint8)},
        {"data": "text" * 5000},
    ],
    ids=["label", "few_labels", "text_labels", "few_names", "shape", "no_array"],
)
def test_pickle_with_wrong_contents(tmp_path, change):
    write_pickles(tmp_path)
    record = {
        "fine_labels": [0, 1] * 3,
        "filenames": list("abcdef"),
        "data": np.zeros((6, 3072), np.uint8),
    }
    dump(tmp_path / "train", {**record, **change, "padding": "0" * 20000}, 2)
    assert problem_of(cifar(), tmp_path).startswith(f"{tmp_path}/train: ")


def test_pickled_classes_must_be_sorted(tmp_path):
    write_pickles(tmp_path, names=("baby", "apple"))
    assert "needs sorted fine_label_names" in problem_of(cifar(), tmp_path)


def test_packed_or_missing_cifar(tmp_path):
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"")
    line = problem_of(cifar(), tmp_path)
    assert "cifar-100-python/{train,test,meta}, unpacked," in line
    assert "found a folder with cifar-100-python.tar.gz;" in line
    write_pickles(tmp_path)
    (tmp_path / "test").unlink()
    assert (
        sources.check(cifar(), tmp_path)
        == f"{tmp_path}/test: toy needs a pickle, found nothing; {GET}"
    )


# Tiny-ImageNet
# --------------------------------------------------------------------------------------------------


def write_tiny(root: Path) -> None:
    """The official layout with two classes, of which one held-out and one train image are
    greyscale.
    """
    for wnid, offset in (("n02", 0), ("n01", 10)):
        for i in range(3):
            image = pixels(offset + i)
            write(root / f"train/{wnid}/images/{wnid}_{i}.JPEG", image[..., 0] if i == 1 else image)
        (root / f"train/{wnid}/{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t7\t7\n")
    lines = []
    for i, wnid in enumerate(["n02", "n01", "n01", "n02"]):
        image = pixels(100 + i)
        write(root / f"val/images/val_{i}.JPEG", image[..., 0] if i == 2 else image)
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t7\t7\n")
    (root / "val/val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("n02\nn01\n")
    write(root / "test/images/test_0.JPEG", pixels(0))


def tiny(**values: Any) -> Dataset:
    return dataset("tiny_imagenet", **{"train_images": 6, "val_images": 4, **values})


@pytest.mark.parametrize("nested", ["tiny-imagenet-200", "."])
def test_tiny_official_layout(tmp_path, nested):
    root = tmp_path / nested
    write_tiny(root)
    train, val = (sources.load(tiny(), split, tmp_path) for split in ("train", "val"))
    files = [f"train/{w}/images/{w}_{i}.JPEG" for w in ("n01", "n02") for i in range(3)]
    np.testing.assert_array_equal(
        train.images, [np.asarray(Image.open(root / f).convert("RGB")) for f in files]
    )
    assert train.classes == val.classes == ("n01", "n02") == sources.class_names(tiny(), tmp_path)
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert val.labels.tolist() == [0, 0, 1, 1]
    files = [f"val/images/val_{i}.JPEG" for i in (1, 2, 0, 3)]
    np.testing.assert_array_equal(
        val.images, [np.asarray(Image.open(root / f).convert("RGB")) for f in files]
    )
    assert (val.images[1] == val.images[1][..., :1]).all()
    assert (train.images[4] == train.images[4][..., :1]).all()
    assert sources.check(tiny(), tmp_path) is None


@pytest.mark.parametrize("inner", ["", "images"])
@pytest.mark.parametrize("leftovers", [True, False])
def test_tiny_rearranged_held_out_images_give_the_same(tmp_path, inner, leftovers):
    write_tiny(tmp_path)
    official = sources.load(tiny(), "val", tmp_path)
    for i, wnid in enumerate(["n02", "n01", "n01", "n02"]):
        (tmp_path / "val" / wnid / inner).mkdir(parents=True, exist_ok=True)
        shutil.move(tmp_path / f"val/images/val_{i}.JPEG", tmp_path / "val" / wnid / inner)
    if not leftovers:
        (tmp_path / "val/images").rmdir()
        (tmp_path / "val/val_annotations.txt").unlink()
        (tmp_path / "wnids.txt").unlink()
    assert_equal(sources.load(tiny(), "val", tmp_path), official)
    assert sources.check(tiny(), tmp_path) is None


def test_tiny_partial(tmp_path):
    write_tiny(tmp_path)
    (tmp_path / "val/images/val_2.JPEG").unlink()
    line = problem_of(tiny(), tmp_path, "val")
    assert line.startswith(
        f"{tmp_path}/val/images/val_2.JPEG: toy needs the image that line 3 of val_annotations.txt"
    )
    assert sources.check(tiny(), tmp_path) == line
    shutil.rmtree(tmp_path / "train/n01")
    assert (
        f"{tmp_path}/train: toy needs images of every class, found none of 1 (n01)"
        in problem_of(tiny(), tmp_path)
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "needs a text file, found FileNotFoundError"),
        (b"val_0.JPEG\tn02\nval_1.JPEG n01\n", "in each line, found none in line 2"),
        (b"val_0.JPEG\tn02\nval_1.JPEG\tn99\n", "found 1 unknown (n99)"),
        (b"val_0.JPEG\tn02\nval_1.JPEG\tn01\n", "needs 4 val images, found 2"),
        (b"\xff\xfe\x00", "needs a text file, found UnicodeDecodeError"),
    ],
)
def test_tiny_annotations(tmp_path, content, problem):
    write_tiny(tmp_path)
    table = tmp_path / "val/val_annotations.txt"
    table.unlink()
    if content is not None:
        table.write_bytes(content)
    assert problem in problem_of(tiny(), tmp_path, "val")


# ImageNet-1K and ImageNet-21K-P
# --------------------------------------------------------------------------------------------------

WNIDS = (
    "n02119789",
    "n01440764",
)  # in the order of their numbers in the development kit, which is not sorted
TRUTH = (1, 0, 0, 1)  # class of each held-out image, as an index of WNIDS


def write_imagenet(root: Path, val: str) -> None:
    for c, wnid in enumerate(WNIDS):
        for i in range(3):
            write(root / "train" / wnid / f"{wnid}_{i}.JPEG", pixels(10 * c + i, 20 + i, 30))
    for i, c in enumerate(TRUTH, start=1):
        folder = root / "val" / (WNIDS[c] if val == "folders" else "")
        write(folder / f"ILSVRC2012_val_{i:08d}.JPEG", pixels(100 + i, 25, 20))


def write_kaggle(root: Path) -> Path:
    rows = [
        f"ILSVRC2012_val_{i:08d},{WNIDS[c]} 1 2 3 4 {WNIDS[c]} 5 6 7 8"
        for i, c in enumerate(TRUTH, start=1)
    ]
    table = root / "LOC_val_solution.csv"
    table.write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]) + "\n")
    return table


def write_kit(folder: Path) -> Path:
    """The development kit's two files.

    Its numbers count all synsets, the classes are those without children.
    """
    from scipy.io import savemat

    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(1, WNIDS[0], "kit fox", 0), (2, WNIDS[1], "tench", 0), (3, "n00001740", "entity", 2)]
    folder.mkdir(parents=True)
    savemat(folder / "meta.mat", {"synsets": np.array(rows, dtype=fields).reshape(-1, 1)})
    table = folder / "ILSVRC2012_validation_ground_truth.txt"
    table.write_text("".join(f"{c + 1}\n" for c in TRUTH))
    return table


def imagenet(**values: Any) -> Dataset:
    return dataset("imagenet1k", **{"train_images": 6, "val_images": 4, "resize": 10, **values})


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "kaggle tree"])
@pytest.mark.parametrize("truth", ["folders", "kaggle", "kit", "kit in data"])
def test_imagenet_layouts_agree(tmp_path, nested, truth):
    plain, root = tmp_path / "plain", tmp_path / "root"
    for split, wnids in (("train", (1, 0)), ("val", (1, 0))):
        for c in wnids:
            chosen = (
                range(3)
                if split == "train"
                else [i for i, k in enumerate(TRUTH, start=1) if k == c]
            )
            for i in chosen:
                image = (
                    pixels(10 * c + i, 20 + i, 30) if split == "train" else pixels(100 + i, 25, 20)
                )
                write(plain / split / WNIDS[c] / f"{i}.JPEG", image)
    write_imagenet(root / "ILSVRC/Data/CLS-LOC" if nested else root, truth)
    if truth == "kaggle":
        write_kaggle(root)
    elif truth != "folders":
        write_kit(root / ("data" if truth == "kit in data" else "ILSVRC2012_devkit_t12/data"))
    for split in ("train", "val"):
        reference = sources.load(dataset("image_folder", resize=10), split, plain)
        assert_equal(sources.load(imagenet(), split, root), reference)
    assert sources.class_names(imagenet(), root) == tuple(sorted(WNIDS))
    assert sources.check(imagenet(), root) is None


def imagenet_problem(root: Path) -> str:
    line = problem_of(imagenet(), root, "val")
    assert sources.check(imagenet(), root) == line
    return line


def test_imagenet_without_ground_truth_names_it(tmp_path):
    write_imagenet(tmp_path, "flat")
    line = imagenet_problem(tmp_path)
    assert line.startswith(
        f"{tmp_path}: toy needs LOC_val_solution.csv or ILSVRC2012_devkit_t12/data/ILSVRC2012_val"
    )
    shutil.rmtree(tmp_path / "train")
    assert f"{tmp_path}: toy needs a folder train in it" in imagenet_problem(tmp_path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda text: text.replace("n01440764", "n99999999"),
            "only known classes, found 1 unknown (n99999999)",
        ),
        (
            lambda text: text.replace(",n02119789", ","),
            "an image, a comma and its class in each line, found none in line",
        ),
        (
            lambda text: text[: text.rindex("ILSVRC")],
            "needs an image that LOC_val_solution.csv names",
        ),
        (
            lambda text: text + "ILSVRC2012_val_00000005,n01440764\n",
            "the image that LOC_val_solution.csv names, found no",
        ),
        (
            lambda text: text + text.splitlines()[1],
            "needs an image once, found ILSVRC2012_val_00000004.JPEG again",
        ),
        (lambda _: "", "needs an image that LOC_val_solution.csv names"),
    ],
)
def test_imagenet_kaggle_table_is_not_trusted(tmp_path, change, problem):
    write_imagenet(tmp_path, "flat")
    table = write_kaggle(tmp_path)
    table.write_text(change(table.read_text()))
    assert problem in imagenet_problem(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (
            "ILSVRC2012_validation_ground_truth.txt",
            b"2\n1\n1\n",
            "needs an image that ILSVRC2012_validation_ground_tru",
        ),
        (
            "ILSVRC2012_validation_ground_truth.txt",
            b"2\n1\n1\n3\n",
            "a class number of meta.mat in each line, found '3'",
        ),
        (
            "ILSVRC2012_validation_ground_truth.txt",
            b"2\n1\n1\n2\n2\n",
            "the image that ILSVRC2012_validation_ground",
        ),
        ("meta.mat", b"", "needs the development kit's table of synsets, found"),
        (
            "meta.mat",
            b"<html>404</html>" * 100,
            "needs the development kit's table of synsets, found",
        ),
    ],
)
def test_imagenet_development_kit_is_not_trusted(tmp_path, name, content, problem):
    write_imagenet(tmp_path, "flat")
    table = write_kit(tmp_path / "ILSVRC2012_devkit_t12/data")
    table.with_name(name).write_bytes(content)
    assert problem in imagenet_problem(tmp_path)


@pytest.mark.parametrize("top", ["", "imagenet21k_resized"])
@pytest.mark.parametrize("prefix", ["", "imagenet21k_"])
def test_imagenet21k_layouts_agree(tmp_path, top, prefix):
    write_imagenet(tmp_path / "plain", "folders")
    write_imagenet(tmp_path / "root" / top, "folders")
    for split in ("train", "val"):
        (tmp_path / "root" / top / split).rename(tmp_path / "root" / top / f"{prefix}{split}")
        reference = sources.load(dataset("image_folder"), split, tmp_path / "plain")
        assert_equal(sources.load(dataset("imagenet21k"), split, tmp_path / "root"), reference)
    line = problem_of(dataset("imagenet21k"), tmp_path / "nowhere")
    assert "needs a folder imagenet21k_train or train in it, found nothing" in line


# A few images of many
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["imagenet1k", "tiny_imagenet", "cifar100", "digits"])
def test_chosen_images_are_those_of_the_split(tmp_path, layout):
    data = {"imagenet1k": imagenet(), "tiny_imagenet": tiny(), "cifar100": cifar()}.get(
        layout, dataset("digits", classes=10)
    )
    writers = {
        "imagenet1k": lambda root: write_imagenet(root, "folders"),
        "tiny_imagenet": write_tiny,
    }
    {**writers, "cifar100": write_pickles, "digits": lambda _: None}[layout](tmp_path)
    complete, chosen = sources.load(data, "train", tmp_path), np.array([5, 0, 3, 3])
    np.testing.assert_array_equal(sources.labels_of(data, "train", tmp_path), complete.labels)
    np.testing.assert_array_equal(
        list(sources.select(data, "train", tmp_path, chosen)), complete.images[chosen]
    )


def test_listing_opens_no_image_and_choosing_only_the_chosen(folders, monkeypatch):
    data, opened = dataset("image_folder"), []
    content = folder_layout.Folders.content
    monkeypatch.setattr(
        folder_layout.Folders,
        "content",
        lambda self, path: opened.append(path) or content(self, path),
    )
    assert sources.labels_of(data, "train", folders).tolist() == [0, 0, 0, 1, 1, 1]
    assert sources.check(data, folders) is None
    assert opened == []
    assert len(list(sources.select(data, "train", folders, np.array([4, 1])))) == 2
    assert opened == [str(folders / "train/cat/1.png"), str(folders / "train/ant/1.png")]


@pytest.mark.parametrize("shard", [0, 3])
def test_random_control_chooses_as_it_always_did(shard):
    """Every class's images in an order drawn for the class.

    Written out as it was when whole splits were read.
    """
    from cda.rng import generator
    from cda.stages.recover import random_choice

    labels = np.repeat(np.arange(5), [7, 4, 9, 5, 6])
    chosen = []
    for label in range(5):
        own = np.flatnonzero(labels == label)
        chosen.append(own[generator("random", 7, "class", label).permutation(len(own))[shard]])
    assert random_choice(labels, 5, shard, 7).tolist() == chosen


# The order of classes
# --------------------------------------------------------------------------------------------------


def numbered(root: Path, names: list[str], split: str = "train") -> None:
    """A folder for each name, with an image of its place in the list."""
    for place, name in enumerate(names):
        write(root / split / name / "0.png", np.full((8, 8, 3), place, np.uint8))


@pytest.mark.parametrize(
    "names", [[str(number) for number in range(12)], ["-2", "-1", "0", "3", "20"]]
)
def test_class_folders_named_by_numbers_are_labelled_in_the_order_of_the_numbers(tmp_path, names):
    numbered(tmp_path, names)
    train = sources.load(dataset("image_folder", classes=len(names)), "train", tmp_path)
    assert train.classes == tuple(names)
    assert train.images[:, 0, 0, 0].tolist() == train.labels.tolist() == list(range(len(names)))


def test_a_class_map_states_the_order(tmp_path):
    numbered(tmp_path, ["b", "a", "c"])
    data = dataset("image_folder", classes=3, class_map=["b", "a\tn01440764", "c"])
    train = sources.load(data, "train", tmp_path)
    assert train.classes == ("b", "a", "c") == sources.class_names(data, tmp_path)
    assert train.images[:, 0, 0, 0].tolist() == train.labels.tolist() == [0, 1, 2]


def test_a_class_map_of_other_folders_is_refused(tmp_path):
    numbered(tmp_path, ["Cat", "dog"])
    line = problem_of(dataset("image_folder", class_map=["cat", "dog"]), tmp_path)
    assert "needs the class folders that class_map names, found 2 unknown (Cat, cat)" in line


def test_classes_of_train_and_val_that_differ_in_form_alone(tmp_path):
    import unicodedata

    names = ["café", "dog"]
    numbered(tmp_path, names)
    numbered(tmp_path, [unicodedata.normalize("NFD", name) for name in names], "val")
    val = sources.load(dataset("image_folder"), "val", tmp_path)
    assert (val.classes, val.labels.tolist()) == (("café", "dog"), [0, 1])
    numbered(tmp_path, [unicodedata.normalize("NFD", "café")])
    assert "needs each class once" in problem_of(dataset("image_folder"), tmp_path)


@pytest.mark.parametrize(
    ("train", "val", "found"),
    [
        (["0", "1"], ["00", "01"], "found 2 unknown (00, 01)"),
        (["Cat", "dog"], ["cat", "dog"], "found 1 unknown (cat); cat and Cat differ in case"),
    ],
)
def test_classes_of_train_and_val_that_differ_are_refused(tmp_path, train, val, found):
    numbered(tmp_path, train)
    numbered(tmp_path, val, "val")
    assert found in problem_of(dataset("image_folder"), tmp_path, "val")


@pytest.mark.parametrize("name", [b"caf\xe9", b"a\nb"])
def test_a_class_folder_whose_name_is_no_text_is_refused(tmp_path, name):
    numbered(tmp_path, ["dog"])
    os.mkdir(os.path.join(os.fsencode(tmp_path / "train"), name))
    assert "needs class folders with names in UTF-8" in problem_of(
        dataset("image_folder"), tmp_path
    )


# Images that are left out
# --------------------------------------------------------------------------------------------------


def test_excluded_images_are_left_out_of_every_reader(folders):
    (folders / "train/cat/1.png").write_bytes(b"damaged")
    (folders / "train/cat/0.png").unlink()
    exclude = ["train/cat/1.png\tdoes not decode", "train/cat/0.png"]
    data = dataset("image_folder", exclude=exclude, train_images=6, val_images=2)
    train = sources.load(data, "train", folders)
    np.testing.assert_array_equal(train.images, [pixels(i) for i in (10, 11, 12, 2)])
    assert sources.labels_of(data, "train", folders).tolist() == [0, 0, 0, 1]
    assert sources.check(data, folders) is None
    stale = dataset("image_folder", exclude=[*exclude, "train/cat/9.png"], train_images=6)
    assert "needs 3 train images, found 4" in problem_of(stale, folders)


@pytest.mark.parametrize("line", ["cat/0.png", "val/cat/0.png", "test/cat/0.png"])
def test_an_excluded_path_of_no_split_is_refused(folders, line):
    data = dataset("image_folder", exclude=[line])
    assert "needs lines of exclude that begin with validation/, found" in problem_of(
        data, folders, "val"
    )


def test_excluded_images_of_official_held_out_lists(tmp_path):
    write_tiny(tmp_path / "tiny")
    (tmp_path / "tiny/val/images/val_2.JPEG").unlink()
    data = tiny(exclude=["val/images/val_2.JPEG"])
    assert sources.load(data, "val", tmp_path / "tiny").labels.tolist() == [0, 1, 1]
    write_imagenet(tmp_path / "imagenet", "flat")
    write_kaggle(tmp_path / "imagenet")
    (tmp_path / "imagenet/val/ILSVRC2012_val_00000002.JPEG").unlink()
    data = imagenet(exclude=["val/ILSVRC2012_val_00000002.JPEG"])
    assert sources.load(data, "val", tmp_path / "imagenet").labels.tolist() == [0, 0, 1]
    assert sources.check(data, tmp_path / "imagenet") is None


# Every image decoded
# --------------------------------------------------------------------------------------------------


def test_an_inspection_finds_every_damaged_image(folders, capfd):
    data = dataset("image_folder", train_images=6)
    assert sources.inspect(data, folders) == ({"train": 6, "val": 2}, [])
    assert "toy train: 6/6 images" in capfd.readouterr().err
    path = folders / "train/cat/1.png"
    path.write_bytes(path.read_bytes()[:-30])
    (folders / "validation/ant/0.png").write_bytes(b"")
    (folders / "train/ant/2.png").unlink()
    counts, damaged = sources.inspect(data, folders)
    assert counts == {"train": 5, "val": 2}
    assert [one for one, _ in damaged] == ["train/cat/1.png", "validation/ant/0.png"]
    assert damaged[1][1] == "an empty file"
    left_out = dataset(
        "image_folder", train_images=6, exclude=[*dict(damaged), "train/ant/2.png"], classes=2
    )
    with pytest.raises(DataError, match="needs images of every class, found none of 1"):
        sources.inspect(left_out, folders)
    write(folders / "validation/ant/1.png", pixels(0))
    assert sources.inspect(left_out, folders) == ({"train": 4, "val": 2}, [])


def test_an_inspection_of_good_images_still_counts_them(folders):
    with pytest.raises(DataError, match="needs 7 train images, found 6"):
        sources.inspect(dataset("image_folder", train_images=7), folders)


def test_an_inspection_of_a_layout_without_files_reads_it(tmp_path):
    counts, damaged = sources.inspect(dataset("digits", classes=10), tmp_path)
    assert (counts, damaged) == ({"train": 1438, "val": 359}, [])


def test_large_files_do_not_wait_in_memory(tmp_path, monkeypatch):
    """They are decoded where they are read; order and pixels stay."""
    monkeypatch.setattr(folder_layout, "_LARGE", 200)
    for i in range(9):
        size = 8 if i % 2 else 40
        write(tmp_path / "train" / "ab"[i > 4] / f"{i}.png", pixels(i, size, size))
    own_images = sources.load(dataset("image_folder"), "train", tmp_path).images
    monkeypatch.undo()
    np.testing.assert_array_equal(
        own_images, sources.load(dataset("image_folder"), "train", tmp_path).images
    )
