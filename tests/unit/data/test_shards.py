"""Distilled images on disk: what is written is read, equal content is equal bytes, anything else is
refused by name.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cda.data.released import released_images
from cda.data.shards import DistilledDataset, load_distilled, read_shard, shard_name, write_shard
from cda.errors import ArtifactError, DataError
from cda.stages import recover

CLASSES = ["ant", "bee", "café"]
Members = list[tuple[tarfile.TarInfo, bytes]]


def pixels(seed: int = 0, classes: int = 3, size: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (classes, size, size, 3), dtype=np.uint8)


def written(
    folder: Path, ipc: int = 0, run: str = "cda-1", dataset: str = "toy", **values: Any
) -> Path:
    path = folder / f"part-{ipc // 2}" / shard_name(ipc)
    write_shard(
        path, values.get("images", pixels(ipc)), values.get("classes", CLASSES), ipc, run, dataset
    )
    return path


def members(path: Path) -> Members:
    with tarfile.open(path) as tar:
        return [(entry, tar.extractfile(entry).read()) for entry in tar]  # type: ignore[union-attr]


def rewrite(path: Path, entries: Members) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for entry, content in entries:
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def file(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    return tarfile.TarInfo(name), content


def described(path: Path, change: Callable[[Any], Any]) -> None:
    """Rewrite the shard with its description changed."""
    (meta, content), *rest = members(path)
    rewrite(path, [(meta, json.dumps(change(json.loads(content))).encode()), *rest])


def refused(call: Callable[[], Any], path: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        call()
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert line.startswith(f"{path}: ")
    return line


# Written and read
# --------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    path = written(tmp_path, ipc=7)
    images, meta = read_shard(path)
    np.testing.assert_array_equal(images, pixels(7))
    assert images.dtype == np.uint8
    assert (meta["classes"], meta["ipc"], meta["run"], meta["dataset"]) == (
        CLASSES,
        7,
        "cda-1",
        "toy",
    )


def test_equal_content_is_equal_bytes_whenever_and_wherever(tmp_path):
    first = written(tmp_path / "a").read_bytes()
    assert written(tmp_path / "b").read_bytes() == first
    code = "import numpy, pathlib; from cda.data.shards import write_shard\n"
    code += (
        "images = numpy.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=numpy.uint8)\n"
    )
    code += f"write_shard(pathlib.Path('c/ipc-000.tar'), images, {CLASSES}, 0, 'cda-1', 'toy')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert (tmp_path / "c" / "ipc-000.tar").read_bytes() == first


def test_a_shard_holds_nothing_of_who_made_it_and_when(tmp_path):
    for entry, _ in members(written(tmp_path)):
        assert (entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname) == (0, 0, 0, "", "")


def test_members_are_named_as_webdataset_reads_them(tmp_path):
    entries = members(written(tmp_path, ipc=7))
    names = [entry.name for entry, _ in entries]
    assert names == [
        "__shard.json__",
        *(f"{label:05d}_007.{kind}" for label in range(3) for kind in ("png", "cls")),
    ]
    content = {entry.name: data for entry, data in entries}
    assert [content[f"{label:05d}_007.cls"] for label in range(3)] == [b"0", b"1", b"2"]
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(content["00001_007.png"]))), pixels(7)[1]
    )


def test_a_large_ipc_index_has_its_own_name(tmp_path):
    assert written(tmp_path, ipc=1234).name == "ipc-1234.tar"
    assert read_shard(tmp_path / "part-617" / "ipc-1234.tar")[1]["ipc"] == 1234


# Refused
# --------------------------------------------------------------------------------------------------


def test_a_jpeg_shard_holds_what_jpeg_makes_of_its_images(tmp_path):
    path = tmp_path / shard_name(3)
    smooth = (
        np.linspace(0, 255, 16 * 16 * 3).reshape(1, 16, 16, 3).repeat(3, axis=0).astype(np.uint8)
    )
    write_shard(path, smooth, CLASSES, 3, "cda-1", "toy", "jpg")
    assert [entry.name for entry, _ in members(path)][1:3] == ["00000_003.jpg", "00000_003.cls"]
    images, _ = read_shard(path)
    jpeg = io.BytesIO()
    Image.fromarray(smooth[0]).save(jpeg, "JPEG", quality=75)
    assert np.array_equal(images[0], np.asarray(Image.open(jpeg)))
    assert 0 < np.abs(images.astype(int) - smooth).mean() < 8


def floats(seed: int = 0, size: int = 4) -> np.ndarray:
    draws = np.random.default_rng(seed).normal(0.5, 1, (3, size, size, 3))
    return draws.astype(np.float32)


def test_floats_are_read_to_the_last_bit_and_seen_as_pictures(tmp_path):
    images = floats()
    path = written(tmp_path, images=images)
    found, meta = read_shard(path, 4)
    np.testing.assert_array_equal(found, images)
    assert (found.dtype, meta["format"]) == (np.float32, "cda-shard/2")
    content = {entry.name: data for entry, data in members(path)}
    array = np.load(io.BytesIO(content["00001_000.npy"]))
    np.testing.assert_array_equal(array, images[1])
    picture = np.asarray(Image.open(io.BytesIO(content["00001_000.png"])))
    np.testing.assert_array_equal(picture, np.rint(np.clip(images[1], 0, 1) * 255))
    image, label = DistilledDataset(tmp_path, 1)[2]
    np.testing.assert_array_equal(image, images[2])
    assert label == 2


@pytest.mark.parametrize(
    "array",
    [
        floats()[0].astype(np.float64),
        floats(size=5)[0],
        np.full((4, 4, 3), np.nan, np.float32),
        np.asfortranarray(floats()[0]),
        np.array([{"a": 1}], dtype=object),
    ],
    ids=["float64", "size", "nan", "order", "pickle"],
)
def test_an_array_that_is_no_image_is_refused(array, tmp_path):
    path = written(tmp_path, images=floats())
    buffer = io.BytesIO()
    np.save(buffer, array)
    entries = [
        (entry, buffer.getvalue() if entry.name == "00001_000.npy" else data)
        for entry, data in members(path)
    ]
    rewrite(path, entries)
    with pytest.raises(ArtifactError, match="damaged or no shard"):
        read_shard(path, 4)


def test_floats_and_pixels_are_not_one_set(tmp_path):
    written(tmp_path, 0)
    written(tmp_path, 1, images=floats())
    with pytest.raises(ArtifactError, match="not to its neighbours"):
        load_distilled(tmp_path, 2)


def test_a_shard_that_is_not_there_is_refused(tmp_path):
    path = tmp_path / "ipc-000.tar"
    assert "recover it or pull it" in refused(lambda: read_shard(path), path)


@pytest.mark.parametrize("size", [0, 100, 511, 512, 1000, 2000, 3000, 4000, 5000])
def test_a_truncated_shard_is_refused(size, tmp_path):
    path = written(tmp_path)
    assert path.stat().st_size > 5000
    path.write_bytes(path.read_bytes()[:size])
    refused(lambda: read_shard(path), path)


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/passwd",
        "sub/00000_000.png",
        "notes.txt",
        "00003_000.txt",
        "./00000_000.png",
    ],
)
def test_a_foreign_member_is_refused_and_never_written(name, tmp_path):
    path = written(tmp_path)
    rewrite(path, [*members(path), file(name, b"evil")])
    assert "foreign member" in refused(lambda: read_shard(path), path)
    assert [found.name for found in tmp_path.rglob("*") if found.is_file()] == [path.name]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_a_member_that_is_no_plain_file_is_refused(kind, tmp_path):
    path = written(tmp_path)
    entry = tarfile.TarInfo("00000_000.png")
    entry.type, entry.linkname = kind, "/etc/passwd"
    rewrite(path, [*members(path)[:-1], (entry, b"")])
    assert "foreign member" in refused(lambda: read_shard(path), path)


def test_a_changed_pixel_is_noticed(tmp_path):
    path = written(tmp_path)
    entries, changed = members(path), pixels()
    changed[0, 0, 0, 0] ^= 1
    buffer = io.BytesIO()
    Image.fromarray(changed[0]).save(buffer, "PNG")
    entries[1] = (entries[1][0], buffer.getvalue())
    rewrite(path, entries)
    assert "digest" in refused(lambda: read_shard(path), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: entries[:-2], "2 images for 3 classes"),
        (lambda entries: entries[:-1], "00002_000.cls"),
        (lambda entries: [*entries[:-1], file("00002_000.cls", b"1")], "another class"),
        (lambda entries: [*entries[:-1], file("00002_000.cls", b"two")], "damaged"),
        (lambda entries: entries[1:], "__shard.json__"),
        (lambda entries: [file("__shard.json__", b"{"), *entries[1:]], "damaged"),
        (
            lambda entries: [*entries[:-2], file("00002_000.png", b"no image"), entries[-1]],
            "damaged",
        ),
    ],
    ids=["no class", "no .cls", "wrong .cls", "no number", "no description", "no JSON", "no image"],
)
def test_a_shard_that_lacks_something_is_refused(change, message, tmp_path):
    path = written(tmp_path)
    rewrite(path, change(members(path)))
    assert message in refused(lambda: read_shard(path), path)


@pytest.mark.parametrize(
    "change",
    [
        lambda meta: [],
        lambda meta: meta | {"classes": 3},
        lambda meta: meta | {"format": "cda-shard/9"},
        *(
            lambda meta, key=key: {k: v for k, v in meta.items() if k != key}
            for key in ("run", "dataset", "ipc", "pixels")
        ),
    ],
    ids=[
        "a list",
        "no class names",
        "another format",
        "no run",
        "no data set",
        "no ipc",
        "no digest",
    ],
)
def test_a_description_that_is_amiss_is_refused(change, tmp_path):
    path = written(tmp_path)
    described(path, change)
    refused(lambda: load_distilled(tmp_path, 1), path)


def test_a_pickle_named_as_a_shard_is_refused_and_never_loaded(tmp_path):
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "evil",)

    path = tmp_path / "ipc-000.tar"
    path.write_bytes(pickle.dumps(Evil()))
    refused(lambda: read_shard(path), path)
    assert not (tmp_path / "evil").exists()


def test_whatever_bit_is_flipped_the_content_is_right_or_refused(tmp_path):
    path = written(tmp_path)
    original, draws, refusals = path.read_bytes(), random.Random(0), set()
    for _ in range(400):
        at, bit = draws.randrange(len(original)), 1 << draws.randrange(8)
        path.write_bytes(original[:at] + bytes([original[at] ^ bit]) + original[at + 1 :])
        with contextlib.suppress(ArtifactError):
            images, _, classes, _ = load_distilled(tmp_path, 1, "toy")
            np.testing.assert_array_equal(images, pixels())
            assert classes == CLASSES, f"bit {bit} of byte {at}"
            continue
        refusals.add(refused(lambda: load_distilled(tmp_path, 1, "toy"), path))
    assert len(refusals) > 10


# Many shards
# --------------------------------------------------------------------------------------------------


def test_shards_follow_each_other_whatever_part_they_lie_in(tmp_path):
    for ipc in (2, 0, 1):
        written(tmp_path, ipc)
    images, labels, classes, _ = load_distilled(tmp_path, 3, "toy")
    np.testing.assert_array_equal(images, np.concatenate([pixels(0), pixels(1), pixels(2)]))
    assert labels.tolist() == [0, 1, 2] * 3
    assert classes == CLASSES


def test_a_smaller_ipc_is_a_prefix_with_a_digest_of_its_own(tmp_path):
    for ipc in range(2):
        written(tmp_path, ipc)
    (one, _, _, first), (two, _, _, second) = (
        load_distilled(tmp_path, 1),
        load_distilled(tmp_path, 2),
    )
    np.testing.assert_array_equal(two[:3], one)
    assert first != second


def test_missing_shards_are_counted_and_the_first_is_named(tmp_path):
    for ipc in (0, 3):
        written(tmp_path, ipc)
    assert "2 of 4 shards are missing (ipc-001.tar first)" in refused(
        lambda: load_distilled(tmp_path, 4), tmp_path
    )


@pytest.mark.parametrize(
    "other", [{"run": "cda-2"}, {"dataset": "other"}, {"classes": CLASSES[::-1]}]
)
def test_shards_of_two_runs_are_not_mixed(other, tmp_path):
    written(tmp_path, 0)
    path = written(tmp_path, 1, **other)
    refused(lambda: load_distilled(tmp_path, 2), path)


def test_a_shard_under_another_s_name_is_refused(tmp_path):
    path = written(tmp_path, 0)
    path.write_bytes(written(tmp_path, 1).read_bytes())
    refused(lambda: load_distilled(tmp_path, 2), path)


def test_shards_of_two_sizes_are_not_mixed(tmp_path):
    written(tmp_path, 0)
    path = written(tmp_path, 1, images=pixels(1, size=5))
    refused(lambda: load_distilled(tmp_path, 2), path)


def test_shards_of_another_data_set_are_refused(tmp_path):
    path = written(tmp_path)
    assert "toy" in refused(lambda: load_distilled(tmp_path, 1, "digits"), path)


def test_images_of_another_run_are_not_relabelled(tree, capsys):
    tree.experiment("tiny", {"methods": ["random", "released"], "set": {"relabel.labels": "hard"}})
    release(Path("data/released/theirs"))
    images, labels = tree.runs("random")["recover"], tree.runs("released")["relabel"]
    assert tree.cda("recover", "--run", images.id) == 0
    capsys.readouterr()
    assert (
        tree.cda("relabel", "--run", labels.id, "--images", f"artifacts/recover/digits/{images.id}")
        == 1
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert images.id in line
    assert labels.upstream["images"].id in line


def test_it_is_a_data_set_for_pytorch(tmp_path):
    import torch
    from torch.utils.data import DataLoader

    for ipc in range(2):
        written(tmp_path, ipc)
    dataset = DistilledDataset(
        str(tmp_path), ipc=2, transform=lambda image: torch.from_numpy(np.array(image))
    )
    assert (len(dataset), dataset.classes) == (6, CLASSES)
    batches = list(DataLoader(dataset, batch_size=4))  # type: ignore[arg-type]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    np.testing.assert_array_equal(images.numpy(), np.concatenate([pixels(0), pixels(1)]))
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_without_a_transform_it_gives_pil_images(tmp_path):
    written(tmp_path)
    image, label = DistilledDataset(tmp_path, ipc=1)[2]
    assert isinstance(image, Image.Image)
    assert label == 2
    np.testing.assert_array_equal(np.asarray(image), pixels()[2])


# The authors' released images
# --------------------------------------------------------------------------------------------------


def release(
    folder: Path, ipc: int = 2, classes: int = 10, size: int = 8
) -> dict[tuple[int, int], Path]:
    """A folder as the authors publish it, with noise in it."""
    paths = {}
    for label in range(classes):
        for index in range(ipc):
            path = folder / f"new{label:03d}" / f"class{label:03d}_id{index:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(100 * label + index, 1, size)[0]).save(path, quality=90)
            paths[label, index] = path
    return paths


@pytest.fixture
def imported(tree: Any) -> Any:
    """Runs the import of `data/released/theirs` as a recover run; gives its shards' folder."""
    tree.experiment("tiny", {"methods": ["released"]})
    context = tree.context(tree.runs("released")["recover"])
    out = Path(context.layout.part(context.run, 0))
    return lambda: recover.run(context, 0, None, out) or out


def test_released_images_become_shards_pixel_by_pixel(imported):
    paths = release(Path("data/released/theirs"))
    out = imported()
    assert sorted(path.name for path in out.iterdir()) == [
        f"ipc-00{i}.{kind}" for i in (0, 1) for kind in ("json", "tar")
    ]
    images, labels, classes, _ = load_distilled(out.parent, 2, "digits")
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        np.testing.assert_array_equal(
            image, np.asarray(Image.open(paths[int(label), index // 10]).convert("RGB"))
        )
    assert classes == list("0123456789")


def test_an_import_needs_no_model(tree):
    tree.experiment("tiny", {"methods": ["released"]})
    release(Path("data/released/theirs"))
    assert tree.cda("recover", "--run", tree.runs("released")["recover"].id) == 0


def spoil(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "wrong size":
        Image.fromarray(pixels(size=9)[0]).save(path)
    else:
        path.write_bytes(path.read_bytes()[: 0 if how == "empty" else 300])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "missing"),
        ("wrong size", "9×9 pixels"),
        ("cut", "unreadable"),
        ("empty", "unreadable"),
    ],
)
def test_a_released_image_that_is_amiss_is_one_line_and_leaves_nothing(how, message, imported):
    path = release(Path("data/released/theirs"))[3, 1]
    spoil(path, how)
    with pytest.raises(DataError) as caught:
        imported()
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert message in line
    assert len(line.splitlines()) == 1
    assert not list(Path("artifacts/recover").rglob("*.tar"))


def test_no_release_is_one_line_that_names_what_is_missing(imported):
    with pytest.raises(
        DataError, match=r"data/released/theirs: no such folder; .*class000_id000\.jpg"
    ):
        imported()


def test_grey_and_palette_images_are_read_as_colour(tree):
    paths = release(Path("theirs"), ipc=1)
    Image.fromarray(pixels()[0, :, :, 0].repeat(2, 0).repeat(2, 1)).save(paths[0, 0])
    images = released_images(Path("theirs"), 0, tree.experiments().dataset("digits"))
    assert images.shape == (10, 8, 8, 3)
    assert (images[0, ..., 0] == images[0, ..., 1]).all()


def test_a_release_one_folder_too_deep_names_that_folder(tree):
    release(Path("theirs/syn_data"), ipc=1)
    with pytest.raises(DataError) as caught:
        released_images(Path("theirs"), 0, tree.experiments().dataset("digits"))
    line = "theirs: its images lie one folder too deep, in theirs/syn_data; move that folder's "
    assert str(caught.value).startswith(line)
