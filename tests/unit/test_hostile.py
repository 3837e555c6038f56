"""Hostile files: no artifact runs code, costs memory it does not hold or leaves its folder.

Every reader meets files that were made to do harm; each ends in one clear line. And no name of a
run, a data set, a model, a table or a scale leaves its folder or has a meaning in a shell.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cda.config.load import load_settings
from cda.config.recipe import Architecture
from cda.config.settings import Dataset
from cda.data import sources
from cda.data.decoded import described, description_of, read_decoded
from cda.data.label_codec import Codec
from cda.data.label_store import FORMAT, LabelStore
from cda.data.released import released_images
from cda.data.shards import load_distilled, read_shard, write_shard
from cda.engine.checkpoint import load_weights
from cda.errors import ArtifactError, CdaError, ConfigError, DataError
from cda.experiments.experiment_set import ExperimentSet
from cda.files import read_json, write_json
from cda.method.networks import build
from cda.pipeline.rules import Plan
from cda.stages.models import read_description

ROOT = Path(__file__).parents[2]
CLASSES = ["ant", "bee"]
DEEP = "[" * 100_000
MARK = "pwned"  # what an attack that works leaves behind


class Evil:
    """Unpickled, it leaves the mark in the working directory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(MARK),)


@pytest.fixture(autouse=True)
def unharmed(tmp_path, monkeypatch):
    """In a folder of its own; neither there nor where the attacks aim is the mark afterwards."""
    monkeypatch.chdir(tmp_path)
    yield
    left = [path for path in tmp_path.rglob("*") if path.name == MARK]
    assert not left + [
        folder / MARK for folder in (tmp_path.parent, Path("/tmp")) if (folder / MARK).exists()
    ]


def refusal(call: Callable[..., Any], *arguments: Any, kind: type[CdaError] = ArtifactError) -> str:
    """The one line that `call` is refused with.

    It names a path or key, and after a semicolon the fix.
    """
    with pytest.raises(kind) as caught:
        call(*arguments)
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 1000
    return line


def png(side: int, content: bytes = b"") -> bytes:
    """A PNG whose header claims `side` × `side` pixels, whatever is in it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(content))
        + chunk(b"IEND", b"")
    )


POSTSCRIPT = (
    f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n({MARK}) (w) "
    "file closefile showpage\n"
)


# Shards
# --------------------------------------------------------------------------------------------------

Member = tuple[tarfile.TarInfo, bytes]


def member(
    name: str, content: bytes = b"", size: int | None = None, kind: bytes = tarfile.REGTYPE
) -> Member:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = len(content) if size is None else size, kind
    return entry, content


def shard(change: Callable[[list[Member]], list[Member]]) -> Path:
    """A shard of two classes, its members changed."""
    path = Path("run", "part-0", "ipc-000.tar")
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    write_shard(path, images, CLASSES, 0, "cda-1", "toy")
    with tarfile.open(path) as tar:
        members = [(entry, tar.extractfile(entry).read()) for entry in tar]  # type: ignore[union-attr]
    with path.open("wb") as file:
        for entry, content in change(members):
            file.write(entry.tobuf(tarfile.GNU_FORMAT) + content + b"\0" * (-len(content) % 512))
        file.write(b"\0" * 1024)
    return path


def described_as(**values: Any) -> Callable[[list[Member]], list[Member]]:
    """The description changed, with a digest that fits it."""

    def change(members: list[Member]) -> list[Member]:
        meta = json.loads(members[0][1]) | values
        return [member("__shard.json__", json.dumps(meta).encode()), *members[1:]]

    return change


PAX = b"30 size=99999999999999999999\n"


IMAGE = "00000_000.png"
Change = Callable[[list[Member]], list[Member]]


def added(*new: Member) -> Change:
    """Members after all others."""
    return lambda members: [*members, *new]


def replaced(index: int, new: Member) -> Change:
    """Another member at `index`: 0 is the description, 1 and 3 are the images."""
    return lambda members: [*members[:index], new, *members[index + 1 :]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (added(member(IMAGE, size=2**40)), "claims 1099511627776 bytes"),
        (added(member(IMAGE, size=-512)), "claims -512 bytes"),
        (added(member(IMAGE, size=2**40, kind=tarfile.GNUTYPE_SPARSE)), "no plain file"),
        (added(member(IMAGE, kind=tarfile.CHRTYPE)), "no plain file"),
        (lambda all: [member("x", PAX, kind=tarfile.XHDTYPE), *all], "no plain file"),
        (lambda all: [member("x", b"", 2**60, tarfile.XHDTYPE), *all], "no plain file"),
        (lambda all: [member("x", b"", 2**60, tarfile.GNUTYPE_LONGNAME), *all], "no plain file"),
        (lambda all: [*[member("x", PAX, kind=tarfile.XHDTYPE)] * 2000, *all], "no plain file"),
        (added(member("../" + MARK, b"x")), "foreign member '../pwned'"),
        (added(member(f"/tmp/{MARK}", b"x")), "foreign member '/tmp/pwned'"),
        (added(member("\x1b]0;x\x07\n.png", b"x")), r"foreign member '\x1b]0;x\x07\n.png'"),
        (lambda all: [*all, all[1]], "00000_000.png is there twice"),
        (lambda all: [*all, all[0]], "__shard.json__ is there twice"),
        (
            lambda all: [*all, member("00000_001.png", all[1][1]), member("00000_001.cls", b"0")],
            "has two images",
        ),
        (
            lambda all: [all[0], member("00000_000.jpg", all[1][1]), *all[2:]],
            "cannot identify image file",
        ),
        (replaced(1, member(IMAGE, png(5000))), "an image of 5000×5000 pixels"),
        (replaced(1, member(IMAGE, png(10**6))), "decompression bomb"),
        (replaced(3, member("00001_000.png", png(4000))), "4000×4000 pixels, where 4×4 belong"),
        (replaced(1, member(IMAGE, POSTSCRIPT.encode())), "cannot identify image file"),
        (replaced(0, member("__shard.json__", DEEP.encode())), "recursion"),
        (replaced(0, member("__shard.json__", b"[" + b"9" * 10**5 + b"]")), "limit"),
        (described_as(classes="ab"), "classes must be a list of names"),
        (described_as(classes=[1, 2]), "classes must be a list of names"),
        (described_as(classes=[[], {}]), "classes must be a list of names"),
        (described_as(ipc=False), "ipc a number"),
        (described_as(run={"a": 1}), "run and dataset must be names"),
        (described_as(dataset=None), "run and dataset must be names"),
        (described_as(run="another\nrun"), "its pixels differ from the digest"),
    ],
)
def test_a_hostile_shard_is_refused(change, message):
    path = shard(change)
    for read in (lambda: read_shard(path), lambda: load_distilled(Path("run"), 1, "toy", "cda-1")):
        line = refusal(read)
        assert line.startswith(f"{path}: ")
        assert message in line
        assert line.endswith("delete it, and the same call makes it again, or pull it again")


def test_images_of_another_size_are_refused_before_they_are_decoded():
    path = shard(lambda all: [all[0], member("00000_000.png", png(4000)), *all[2:]])
    assert "an image of 4000×4000 pixels, where 4×4 belong" in refusal(
        load_distilled, Path("run"), 1, None, None, 4
    )
    assert "where 8×8 belong" in refusal(read_shard, shard(lambda all: all), 8)
    assert read_shard(path.with_name("ipc-000.tar"), 4)[0].shape == (2, 4, 4, 3)


def test_two_parts_with_one_shard_are_refused():
    path = shard(lambda all: all)
    shutil.copytree("run/part-0", "run/part-7")
    line = refusal(load_distilled, Path("run"), 1)
    assert line == f"{path}: part-7 has it too; delete the part that is not the run's"


# Arrays
# --------------------------------------------------------------------------------------------------

ARRAYS = {
    "more than there is": {"shape": (2**40,)},
    "more than can be": {"shape": (2**62, 4)},
    "more than counts": {"shape": (10**30,)},
    "less than none": {"shape": (-1,)},
    "no shape": {"shape": 5},
    "yes and no": {"shape": (True,)},
    "objects": {"descr": "|O"},
    "objects inside": {"descr": [("a", "|O")]},
    "no type": {"descr": ["a"]},
    "huge elements": {"descr": ("|u1", (10**9,))},
    "code": "__import__('pathlib').Path('pwned').touch()",
    "deep": "-" * 9000 + "1",
    "long": "(" * 60000,
}


def spoil(path: Path, change: dict[str, Any]) -> None:
    """Change a JSON object; what is None is gone."""
    changed = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))


def array(path: Path, header: Any) -> None:
    """An .npy file with that header and some bytes."""
    text = (
        header
        if isinstance(header, str)
        else repr({"descr": "|u1", "fortran_order": False, "shape": (4,)} | header)
    )
    path.write_bytes(
        b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + b"\0" * 1000
    )


@pytest.fixture
def store():
    folder = Path("labels")
    recipe = {"labels": "stored", "top_k": 2, "bits": 8, "epochs": 3}
    described_as = {
        "format": FORMAT,
        "run": "r",
        "images_digest": "d",
        "labels": "stored",
        "epochs": 3,
        "recipe": recipe,
    }
    codec = Codec(5, 8, 2, 4.0)
    write_json(
        folder / "header.json",
        described_as | {"classes": list("abcde"), "temperature": 4.0, "shape": [3, 4, codec.width]},
    )
    rows = codec.encode(torch.randn(12, 5)).reshape(3, 4, -1)
    np.save(folder / "logits.npy", rows.numpy())
    assert LabelStore(folder).read(0, np.arange(4)).shape == (4, 5)
    return folder


@pytest.mark.parametrize("kind", ARRAYS)
def test_a_hostile_label_array_is_refused(kind, store):
    array(store / "logits.npy", ARRAYS[kind])
    line = refusal(LabelStore, store)
    assert line.startswith("labels/logits.npy: ")
    assert "relabel again" in line


@pytest.mark.parametrize(
    "change",
    [
        {"shape": 7}, {"shape": [3, "4", None]}, {"shape": {}}, {"shape": None}, {"shape": [3, 4]},
        {"shape": [3]},
        {"classes": []}, {"classes": [1, 2, 3, 4, 5]}, {"classes": ["a", ["b"], "c", "d", "e"]},
        {"epochs": 10**40}, {"epochs": -1}, {"epochs": True},
        {"temperature": "x"}, {"temperature": float("nan")}, {"temperature": float("inf")},
        {"temperature": None},
        {"labels": "pickled"}, {"labels": ["stored"]}, {"format": ["cda-labels/1"]},
        {"recipe": {"top_k": 10**30}}, {"recipe": {"top_k": 2, "bits": 8, "pwned": 1}},
        {"recipe": {"top_k": [2]}},
    ],
)  # fmt: skip
def test_a_hostile_label_header_is_refused(change, store):
    path = store / "header.json"
    spoil(path, change)
    assert refusal(LabelStore, store).startswith(("labels/header.json: ", "labels/logits.npy: "))


@pytest.mark.parametrize(
    ("classes", "top_k", "bitmap"), [(20, 10, True), (200, 2, False), (1000, 2, False)]
)
def test_labels_for_classes_that_there_are_not_stay_within_the_row(classes, top_k, bitmap):
    codec = Codec(classes, 16, top_k)
    assert codec.parts.bitmap == bitmap
    foreign = torch.full((3, codec.width), 255, dtype=torch.uint8)
    assert codec.decode(foreign).shape == (3, classes)


@pytest.fixture
def decoded():
    path = Path("decode", "val.npy")
    path.parent.mkdir()
    images = np.zeros((4, 8, 8, 3), np.uint8)
    np.save(path, images)
    write_json(
        description_of(path),
        described(images, np.array([0, 0, 1, 1]), tuple(CLASSES)) | {"run": "val-1"},
    )
    assert len(read_decoded(path, "val-1", 8).images) == 4
    return path


@pytest.mark.parametrize("kind", ARRAYS)
def test_a_hostile_array_of_decoded_images_is_refused(kind, decoded):
    array(decoded, ARRAYS[kind])
    line = refusal(read_decoded, decoded, "val-1", 8)
    assert line.startswith("decode/val.npy: ")
    assert "decode again" in line


@pytest.mark.parametrize(
    "change",
    [
        {"images_per_class": [10**18, 4 - 10**18]}, {"images_per_class": [4]},
        {"images_per_class": [2.0, 2.0]},
        {"images_per_class": "22"}, {"images_per_class": None}, {"images_per_class": [0, 0]},
        {"images_per_class": [10**30, 1]}, {"images_per_class": [1, 3, 0]},
        {"classes": "ab"}, {"classes": [1, 2]}, {"classes": None},
        {"sampled_sha256": None}, {"sampled_sha256": ["x"]},
    ],
)  # fmt: skip
def test_a_hostile_description_of_decoded_images_is_refused(change, decoded):
    where = description_of(decoded)
    spoil(where, change)
    assert refusal(read_decoded, decoded, "val-1", 8).startswith(
        ("decode/val.json: ", "decode/val.npy: ")
    )


# Models
# --------------------------------------------------------------------------------------------------


def tensor(start: int, end: int, **values: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end]} | values


@pytest.mark.parametrize(
    ("header", "length"),
    [
        ({"a": tensor(0, 8), "b": tensor(4, 12)}, None),
        ({"a": tensor(0, 100, shape=[2**62, 4])}, None),
        ({"a": tensor(0, 2**50)}, None),
        ({"a": tensor(100, 0)}, None),
        ({"a": tensor(0, 100, dtype="O")}, None),
        ({"\n\x1b[31m": tensor(0, 100)}, None),
        ({}, 2**40),
        ({}, 2**63),
        ("[" * 10000, None),
        (pickle.dumps(Evil()).decode("latin1"), None),
    ],
    ids=[
        "overlap",
        "overflow",
        "beyond",
        "backwards",
        "objects",
        "terminal",
        "long",
        "longer",
        "deep",
        "pickle",
    ],
)
def test_hostile_weights_are_refused(header, length):
    path, text = (
        Path("model.safetensors"),
        header if isinstance(header, str) else json.dumps(header),
    )
    content = text.encode("latin1")
    path.write_bytes(
        struct.pack("<Q", len(content) if length is None else length) + content + b"\0" * 100
    )
    line = refusal(load_weights, build("convnet1", 2, 8, Architecture()), path)
    assert line.startswith("model.safetensors: ")


@pytest.mark.parametrize("classes", [None, "ab", 2, [1, 2], [["a"], "b"]])
def test_a_model_whose_classes_are_no_names_is_refused(classes, tree):
    run = tree.runs()["squeeze"]
    write_json(Path("squeeze.json"), {"run": run.id, "classes": classes})
    line = refusal(read_description, Path("model.safetensors"), run)
    assert line == (
        "model.safetensors: its squeeze.json has no list of classes; delete model.safetensors and "
        "squeeze again, or pull both"
    )


@pytest.mark.parametrize(
    "save", [torch.save, lambda evil, path: path.write_bytes(pickle.dumps(evil, 2))]
)
def test_a_pickle_among_published_weights_is_never_run(save, monkeypatch):
    from cda.engine.pretrained import fetch

    monkeypatch.setenv("TORCH_HOME", "torch")
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    cached = Path("torch/hub/checkpoints/squeezenet1_1-b8a52dc0.pth")
    cached.parent.mkdir(parents=True)
    save(Evil(), cached)
    weights = "torchvision:SqueezeNet1_1_Weights.IMAGENET1K_V1"
    line = refusal(fetch, weights, "squeezenet1_1", Path("mark.json"), kind=ConfigError)
    fix = "holds more than tensors, which is refused; delete it from its library's cache"
    assert line == f"cda fetch: {weights} {fix}"
    assert not Path("mark.json").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    pickle.loads(pickle.dumps(Evil()))  # it would have worked
    Path(MARK).unlink()


# Images of strangers
# --------------------------------------------------------------------------------------------------


def data_set(**values: Any) -> Dataset:
    usual = {
        "name": "toy",
        "layout": "image_folder",
        "classes": 2,
        "resolution": 8,
        "get": "ask for it",
    }
    return Dataset.model_validate(usual | {"mean": [0.5] * 3, "std": [0.5] * 3} | values)


def released(folder: Path) -> list[Path]:
    """A folder of two released images."""
    paths = [folder / f"new{label:03d}" / f"class{label:03d}_id000.jpg" for label in range(2)]
    for path in paths:
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(path)
    return paths


def linked(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, target)
    path.symlink_to(target.absolute())


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (lambda path: linked(path, Path("private.jpg")), "a link out of archive"),
        (lambda path: linked(path.parent, Path("home/private")), "a link out of archive"),
        (lambda path: (path.unlink(), path.symlink_to(path.name)), "unreadable image"),
        (lambda path: (path.unlink(), path.mkdir()), "unreadable image"),
        (lambda path: path.write_bytes(png(5000)), "5000×5000 pixels, toy has 8×8"),
        (lambda path: path.write_bytes(png(10**6)), "decompression bomb"),
        (lambda path: path.write_text(POSTSCRIPT), "cannot identify image file"),
        (lambda path: path.write_bytes(pickle.dumps(Evil())), "cannot identify image file"),
    ],
    ids=["link", "linked folder", "endless link", "folder", "large", "bomb", "program", "pickle"],
)
def test_a_hostile_release_is_refused(attack, message):
    path = released(Path("archive"))[1]
    assert released_images(Path("archive"), 0, data_set()).shape == (2, 8, 8, 3)
    attack(path)
    line = refusal(released_images, Path("archive"), 0, data_set(), kind=DataError)
    assert line.startswith(f"{path}: ")
    assert message in line


def test_a_release_may_lie_elsewhere_and_link_within_itself():
    first, second = released(Path("far/archive"))
    second.unlink()
    second.symlink_to(first.absolute())
    Path("archive").symlink_to("far/archive")
    assert released_images(Path("archive"), 0, data_set()).shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
    "content",
    [POSTSCRIPT.encode(), b"\0" * 12 + b"\x08\0\x08\0\x18\0", png(10**6), pickle.dumps(Evil())],
    ids=["EPS", "TGA", "bomb", "pickle"],
)
def test_a_hostile_image_of_a_data_set_is_refused(content):
    for split, name in (("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")):
        Path("data", split, name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(f"data/{split}/{name}/0.png")
    Path("data/train/b/1.png").write_bytes(content)
    assert len(sources.load(data_set(), "val", Path("data")).images) == 2
    line = refusal(sources.load, data_set(), "train", Path("data"), kind=DataError)
    assert line.startswith("data/train/b/1.png: toy needs a complete image")


# JSON
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [DEEP, DEEP + "]" * 100_000, "9" * 10**5, '"\ud800', "[1, 2]", '"x"', "\0"]
)
def test_hostile_json_is_refused(text):
    Path("x.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert refusal(read_json, Path("x.json"), "it").startswith("x.json: it is ")


@pytest.mark.parametrize(
    "value",
    [True, None, "50", [50], {"x": 50}, -1, 101, 10**400, 1e308, float("nan"), float("inf")],
)
def test_a_measurement_that_is_no_percentage_is_refused(value, tree):
    from cda.results.tables import table

    run = tree.runs()["validate"]
    path = Path(tree.experiments().layout.run_json(run, 0))
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"run": run.id, "seed": 0, "top1": value}))
    line = refusal(table, tree.experiments(cells="present"), "tiny")
    assert line.startswith(f"{path}: does not hold top1 of run {run.id}, seed 0; delete it")
    path.write_text(json.dumps({"run": run.id, "seed": 0, "top1": 50}))
    assert (table(tree.experiments(cells="present"), "tiny")["measured"] == 50).any()


def test_only_seeds_as_we_write_them_are_counted(tree):
    run, experiments = tree.runs()["validate"], tree.experiments(cells="present")
    folder = Path(experiments.layout.run_json(run, 0)).parent
    folder.mkdir(parents=True)
    for name in (
        "seed-0",
        "seed-00",
        "seed-12",
        "seed-²",
        "seed--1",
        "seed-" + "9" * 200,
        "seed-٣",
        "seed-1\n",
    ):
        (folder / f"{name}.json").touch()
    assert experiments.seeds(run) == [0, 12]


# What is printed
# --------------------------------------------------------------------------------------------------


def test_messages_stay_one_line_and_steer_no_terminal():
    assert str(ArtifactError("a\nb\r\x1b[2J\u202e\x9b é × –")) == r"a\nb\r\x1b[2J\u202e\x9b é × –"


def test_a_cell_cannot_leave_its_markdown_table(tree):
    tree.experiment(
        "tiny",
        {"setting": "a | b\n\n# c {}", "vary": {"validate.lr": [0.1, 0.2]}},
        layout={"rows": ["setting"], "columns": ["method", "ipc"]},
    )
    assert tree.cda("table", "tiny") == 0
    body = [
        line for line in Path("results/tiny.md").read_text().splitlines() if line.startswith("|")
    ]
    assert len(body) == 5  # a header, a rule, the quoted cells and the two settings
    assert {len(re.split(r"(?<!\\)\|", line)) for line in body} == {10}
    assert [line.split(" | ")[0].strip() for line in body[3:]] == [
        r"| a \| b # c 0.1",
        r"| a \| b # c 0.2",
    ]


def test_a_class_may_be_called_anything(tree):
    from cda.results.figures import draw

    group = {"dataset": "digits", "methods": ["cda"], "recovery_models": ["resnet18"], "ipc": [1]}
    group |= {"validation_models": ["resnet18"]}
    figure = {"title": "T", "kind": "grid", "scales": ["paper"], "groups": [group]}
    tree.write("experiments/shown.yaml", json.dumps(figure))
    run, experiments = tree.runs()["recover"], tree.experiments()
    part = Path(experiments.layout.part(run, 0))
    names = [
        r"$\frac{$",
        "$x",
        "\\end{x}",
        "%",
        "\x1b[2J",
        "\n",
        "",
        "a" * 5000,
        "a b " * 100,
        "\u202e",
    ]
    images = np.zeros((10, 8, 8, 3), np.uint8)
    for ipc in range(2):
        write_shard(part / f"ipc-{ipc:03d}.tar", images, names, ipc, run.id, "digits")
    draw(experiments, "shown", Path("shown.png"))
    write_shard(part / "ipc-000.tar", images, names, 0, "cda-foreign", "digits")
    line = refusal(draw, experiments, "shown", Path("shown.png"))
    assert (
        line == f"{part}/ipc-000.tar: belongs to run cda-foreign, not {run.id}; recover it again "
        "or pull it"
    )


# Names
# --------------------------------------------------------------------------------------------------

NAMES = (
    f"x; touch {MARK}", f"$(touch {MARK})", f"`touch {MARK}`", "a b", "a'b", 'a"b', "a&b", "a|b",
    "a>b", "a*", "a\nb", "../up", "/etc", "a/b", "..", ".hidden", "-rf", "--out", "~root",
    "{wildcards.run}", "a\\b", "é\x00",
)  # fmt: skip
PLACES = {
    "name": ("datasets/digits.yaml", "name: digits", "name: NAME"),
    "data set's recipe": ("datasets/digits.yaml", "layout:", "recipe: NAME\nlayout:"),
    "release": ("recipes/digits.yaml", "release: theirs ", "release: NAME "),
    "weights": (
        "recipes/digits.yaml",
        "  epochs: 2              # paper Table 10a",
        "  weights: NAME\n  epochs: 2",
    ),
    "init": (
        "recipes/digits.yaml",
        "  epochs: 2              # paper Table 10a",
        "  init: NAME\n  epochs: 2",
    ),
    "recovery model": (
        "experiments/tiny.yaml",
        "recovery_models:\n  - resnet18",
        "recovery_models:\n  - NAME",
    ),
    "validation model": (
        "experiments/tiny.yaml",
        "validation_models:\n  - resnet18",
        "validation_models:\n  - NAME",
    ),
    "relabel model": (
        "experiments/tiny.yaml",
        "  validation_models:",
        "  relabel_models: [NAME]\n  validation_models:",
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_names_that_leave_their_folder_or_mean_something_to_a_shell_are_refused(place, tree):
    file, old, new = PLACES[place]
    if place == "release":
        tree.experiment("tiny", {"methods": ["released"]})
    text = (tree.folder / file).read_text()
    for name in NAMES:
        tree.write(file, text)
        tree.edit(file, old, new.replace("NAME", json.dumps(name)))
        line = refusal(lambda: tree.experiments().runs(), kind=ConfigError)
        assert line.startswith(f"config/{file}")
        assert re.search(
            r"must be a name of letters, digits|should match pattern|not valid YAML|unacceptable",
            line,
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_scale_that_leaves_its_folder_is_refused(name, tree):
    tree.scale("small")
    if "\0" not in name and not name.startswith("/"):
        evil = tree.folder / "scales" / f"{name}.yaml"
        evil.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tree.folder / "scales/small.yaml", evil)
    line = refusal(lambda: tree.experiments(scale=name), kind=ConfigError)
    assert line.startswith("config key scale: there is no scale ")


@pytest.mark.parametrize("name", [name for name in NAMES if "/" not in name and "\0" not in name])
def test_a_table_that_means_something_to_a_shell_is_refused(name, tree):
    shutil.copy(tree.folder / "experiments/tiny.yaml", tree.folder / f"experiments/{name}.yaml")
    line = refusal(Plan, {}, None, kind=ConfigError)
    assert "a table or figure is named by letters, digits, _ and -; rename the file" in line


@pytest.mark.parametrize("name", ["resnet18", "resnet18.a1_in1k", "vit_tiny-2", "ResNet", "_x"])
def test_names_that_libraries_use_are_taken(name, tree):
    tree.edit(
        "experiments/tiny.yaml", "recovery_models:\n  - resnet18", f"recovery_models:\n  - {name}"
    )
    assert any(run.model == name for run in tree.experiments().runs().values())


@pytest.mark.parametrize("scale", ["paper", "demo"])
def test_every_path_of_a_run_is_plain_and_below_its_folder(scale):
    experiments = ExperimentSet(load_settings({"scale": scale}, ROOT / "config"), ROOT / "config")
    layout = experiments.layout
    for run in experiments.runs().values():
        for path in (layout.run_folder(run), layout.work(run, "out"), layout.run_json(run, 0)):
            assert re.fullmatch(r"(artifacts|results)(/\w[\w.-]*)+", path)


def test_what_reaches_a_shell_is_constrained():
    text = "\n".join(path.read_text() for path in sorted((ROOT / "workflow").rglob("*.smk")))
    used = set(re.findall(r"\{wildcards\.(\w+)", text))
    blocks = re.findall(r"wildcard_constraints:\n((?:[ ]+\w+=.*\n)+)", text)
    constrained = dict(re.findall(r"^ +(\w+)=(.*),$", "".join(blocks), flags=re.MULTILINE))
    assert {"run", "table", "figure", "part", "seed"} <= used <= set(constrained)
    for name in used:
        pattern = re.fullmatch(r'r"(.*)"', constrained[name])
        assert pattern or constrained[name].startswith(("one_of(", "PLAN."))
        assert not pattern or not any(
            re.fullmatch(pattern[1], one) for one in NAMES if not re.fullmatch(r"[\w.-]+", one)
        )


def test_the_configuration_reaches_jobs_quoted(tree):
    overrides = {
        "data": f"'; touch {MARK}; '",
        "data_paths": {"digits": f"$(touch {MARK}) {{}} {{x}} \n \\ `id` é"},
    }
    plan = Plan(overrides, None)
    shell = (plan.prefix + 'printf %s "$CDA_CONFIG"').format()  # as snakemake does
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == overrides
