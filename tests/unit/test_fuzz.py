"""Every reader of a foreign file meets thousands of damaged ones.

An input is a good file, changed a few times at random; `SEED`, the reader and the input's number
determine it. A reader must return or raise a CdaError of one line. Else it failed: another
exception, more than `SECONDS_EACH`, more than `MEMORY` above what the process has (`RESIDENT` for
all inputs), a program that it starts, a connection, or a file that it writes outside its folder.
`make fuzz SECONDS=60` gives each reader a minute.
"""

from __future__ import annotations

import gc
import io
import json
import os
import pickle
import random
import re
import resource
import signal
import struct
import sys
import tarfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cda.config.load import parse_pairs
from cda.config.settings import Dataset, Runtime
from cda.data import sources
from cda.data.decoded import described, description_of, read_decoded
from cda.data.label_codec import Codec
from cda.data.label_store import FORMAT, LabelStore
from cda.data.released import released_images
from cda.data.shards import load_distilled, write_shard
from cda.engine.checkpoint import Checkpoint
from cda.engine.device import Device
from cda.engine.lock import Lease
from cda.errors import LONGEST, CdaError
from cda.files import file_digest, write_json
from cda.method.networks import build
from cda.pipeline.rates import rates_of
from cda.results.measured import measurements
from cda.stages import squeeze
from cda.stages.models import load_squeezed

SEED = int(os.environ.get("CDA_FUZZ_SEED", "0"))
SECONDS = float(os.environ.get("CDA_FUZZ_SECONDS", "5"))  # for each reader
SECONDS_EACH = 10.0  # for one input
MEMORY = 2**30  # bytes of address space for one input
RESIDENT = 600  # MB by which a reader's process may grow: an image may have 256 MB
FAILURES = 5  # of a reader, after which it stops
CPU = Device(Runtime(device="cpu"), torch.device("cpu"), None)
CLASSES = ["ant", "bee"]

Read = Callable[[], Any]
Reader = tuple[list[Path], Read]  # the good files, and what reads them


# The watch over a reader

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PATHS = {
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"),
    *("os.chmod", "os.chown", "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile"),
}
STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"}


class Watch:
    """Records what a reader does beyond reading, while it is `on`."""

    def __init__(self) -> None:
        self.on, self.folder, self.seen = False, "", list[str]()
        sys.addaudithook(self)  # it cannot be removed

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        own = event == "subprocess.Popen" and arguments[0] == sys.executable
        if event in STARTS and not own:  # a reader may work in a process of its own
            self.seen.append(f"{event} {arguments[:2]}")
        elif event in PATHS or (event == "open" and arguments[2] and arguments[2] & WRITES):
            names = [os.fsdecode(one) for one in arguments[:2] if isinstance(one, str | bytes)]
            names = names[:1] if event == "open" else names
            outside = [n for n in names if not os.path.realpath(n).startswith(self.folder)]
            self.seen += [f"{event} {name}" for name in outside if name != os.devnull]


WATCH = Watch()


class Hangs(BaseException):
    """An input took longer than `SECONDS_EACH`; a BaseException, which readers do not catch."""


@contextmanager
def limits() -> Iterator[None]:
    """Bounds of memory and time for what runs within."""

    def hang(*_: Any) -> None:
        raise Hangs

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, hang)
    bound = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (bound, before[1]))
    signal.setitimer(signal.ITIMER_REAL, SECONDS_EACH)
    WATCH.on, WATCH.folder, WATCH.seen = True, os.path.realpath("."), []
    try:
        yield
    finally:
        WATCH.on = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def failure(read: Read) -> str:
    """How reading fails; empty if it ends as it must."""
    try:
        with limits(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except CdaError as error:
        if not str(error).isprintable() or len(str(error)) > LONGEST:
            return f"a message of {len(str(error))} characters: {str(error)[:100]!r}"
    except (Exception, Hangs) as error:
        where = error.__traceback__
        while where and where.tb_next:
            where = where.tb_next
        at = where and f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}"
        return f"{type(error).__name__}: {str(error)[:200]} ({at})"
    return "; ".join(WATCH.seen)


# Changes

TOKENS = [
    *(b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"1.5", b"9" * 30, b"9" * 5000, b'"x"'),
    *(b"[]", b"{}", b"[[1]]", b'{"a": 1}', b'"\\ud800"', b"\\u0000", b"\xff\xfe", b"\0", b"\n"),
    *(b"&a ", b"*a", b"!!python/object:os.system ", b"!!binary x", b"? ", b"- ", b": ", b"  "),
    *(b"<<: *a", b"2024-99-99", b"0o17", b"0x1F", b"1:30", b"~", b"%", b"../..", b"\xe2\x80\xae"),
    b"[" * 3000,
]


def changed(content: bytes, draw: random.Random) -> bytes:
    """The bytes after one to four changes."""
    data = content
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        start = draw.randrange(len(data) + 1)
        end = min(len(data), start + draw.choice((1, 2, 4, 16, 256)))
        part, number = data[start:end], draw.choice((0, 1, -1, 2**31 - 1, -(2**31), 2**16, 255))
        others = [
            draw.randbytes(len(part)),
            b"",
            part + part,
            draw.choice(TOKENS),
            part + draw.choice(TOKENS),
            struct.pack(draw.choice("<>") + "i", number),
            bytes([part[0] ^ 1 << draw.randrange(8)]) + part[1:] if part else b"",
        ]
        kind = draw.randrange(len(others) + 3)
        if kind < len(others):
            data = data[:start] + others[kind] + data[end:]
        elif kind == len(others):
            data = data[:start]
        elif kind == len(others) + 1:  # a word or number of a text
            words = [one.span() for one in re.finditer(rb"[\w.+-]+", data[:100_000])]
            start, end = draw.choice(words or [(0, 0)])
            data = data[:start] + draw.choice(TOKENS) + data[end:]
        else:  # a line of a text: away, doubled or elsewhere
            lines = data.splitlines(keepends=True) or [b""]
            line = lines.pop(draw.randrange(len(lines)))
            for _ in range(draw.randrange(3)):
                lines.insert(draw.randrange(len(lines) + 1), line)
            data = b"".join(lines)
    return data


def replaced(value: Any, draw: random.Random) -> Any:
    """JSON with one of its values replaced, dropped or doubled."""
    others: list[Any] = [None, True, -1, 0, 1.5, 10**30, 1e308, "", "x", [], {}, [[]], {"a": 1}]
    if not isinstance(value, list | dict) or not value or draw.random() < 0.1:
        return draw.choice(others)
    key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
    copy = value.copy()
    if draw.random() < 0.15:
        del copy[key]
    else:
        copy[key] = replaced(value[key], draw)
    return copy


def sealed(data: bytes, name: str) -> bytes:
    """Checksums made to fit again, so that changes get past them: of PNG chunks, of tar headers."""
    made = bytearray(data)
    if name.endswith(".png"):
        at = 8
        while at + 12 <= len(made):
            length = min(int.from_bytes(made[at : at + 4], "big"), len(made) - at - 12)
            end = at + 8 + length
            made[end : end + 4] = struct.pack(">I", zlib.crc32(made[at + 4 : end]))
            at = end + 4
    elif name.endswith(".tar"):
        for at in range(0, len(made) - 511, 512):
            if made[at + 257 : at + 262] == b"ustar":
                made[at + 148 : at + 156] = b" " * 8
                made[at + 148 : at + 156] = b"%06o\0 " % sum(made[at : at + 512])
    return bytes(made)


def damaged(path: Path, good: bytes, draw: random.Random) -> bytes:
    """Another content for one of a reader's files."""
    if path.suffix == ".json" and draw.random() < 0.5:
        return json.dumps(replaced(json.loads(good), draw)).encode()
    if path.suffix == ".yaml" and draw.random() < 0.3:
        return yaml.safe_dump(replaced(yaml.safe_load(good), draw)).encode()
    content = changed(good, draw)
    return sealed(content, path.name) if draw.random() < 0.5 else content


# Readers: each writes good files into the working directory


def toy(layout: str = "image_folder", **values: Any) -> Dataset:
    usual = {"name": "toy", "layout": layout, "classes": 2, "resolution": 8, "get": "get it"}
    return Dataset.model_validate(usual | {"mean": [0.5] * 3, "std": [0.5] * 3} | values)


def pictures(folder: Path) -> list[Path]:
    """A small image in each format and some modes, in turn in two classes."""
    draws, paths = np.random.default_rng(0), []
    kinds = ["png", "jpg", "webp", "bmp", "gif", "tif", "ppm", "avif", "jp2", "qoi", "pcx", "sgi"]
    modes = {"png": "I;16 P RGBA LA", "tif": "CMYK LAB", "jpg": "CMYK", "gif": "P"}
    for number, kind in enumerate(kinds):
        for mode in ["RGB", *modes.get(kind, "").split()]:
            image = Image.fromarray(draws.integers(0, 256, (9, 12, 3), dtype=np.uint8))
            if mode == "I;16":
                image = Image.fromarray(draws.integers(0, 2**16, (9, 12), dtype=np.uint16))
            elif mode != "RGB":
                image = image.convert("L").convert(mode) if mode == "LA" else image.convert(mode)
            path = folder / CLASSES[number % 2] / f"{kind}-{mode.replace(';', '')}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                image.save(path)
            except (KeyError, OSError, ValueError):  # this Pillow does not write it
                path.unlink(missing_ok=True)
                continue
            paths.append(path)
    return paths


def image_folder(_tree: Any) -> Reader:
    paths = pictures(Path("toy/train"))
    return paths, lambda: sources.load(toy(), "train", Path("toy"))


def released(_tree: Any) -> Reader:
    paths = [Path(f"new{label:03d}/class{label:03d}_id000.jpg") for label in range(2)]
    for path, kind in zip(paths, ("JPEG", "PNG"), strict=True):
        path.parent.mkdir()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(
            path, kind
        )
    return paths, lambda: released_images(Path(), 0, toy())


def shard(_tree: Any) -> Reader:
    path = Path("run/part-0/ipc-000.tar")
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    write_shard(path, images, CLASSES, 0, "cda-1", "toy")
    return [path], lambda: load_distilled(Path("run"), 1, "toy", "cda-1", 8)


def label_store(_tree: Any) -> Reader:
    folder, codec = Path("labels"), Codec(5, 8, 2, 4.0)
    recipe = {"labels": "stored", "top_k": 2, "bits": 8, "epochs": 3}
    header = {"format": FORMAT, "run": "r", "images_digest": "d", "labels": "stored", "epochs": 3}
    header |= {"recipe": recipe, "classes": list("abcde"), "temperature": 4.0}
    folder.mkdir()
    rows = codec.encode(torch.randn(12, 5)).reshape(3, 4, -1)
    np.save(folder / "logits.npy", rows.numpy())
    digest = {"shape": [3, 4, codec.width], "sha256": file_digest(folder / "logits.npy")}
    write_json(folder / "header.json", header | digest)

    def read() -> None:
        store = LabelStore(folder)
        if store.mode == "stored":
            store.read(0, np.arange(1))
        store.verify()
        store.check("r", "d", list("abcde"), 3)

    return [folder / "header.json", folder / "logits.npy"], read


def squeezed_model(tree: Any) -> Reader:
    run, path = tree.runs()["squeeze"], Path("model.safetensors")
    model = build(run.model, 10, 8, run.recipe.architecture)
    squeeze.write_model(tree.context(run), model, list("0123456789"), path, {"top1": 50.0})
    good = path.read_bytes()
    size = struct.unpack("<Q", good[:8])[0]
    header = Path("header.json")  # changed by itself: most of the file is numbers
    header.write_bytes(good[8 : 8 + size])

    def read() -> None:
        own = header.read_bytes()
        if own != good[8 : 8 + size]:
            path.write_bytes(struct.pack("<Q", len(own)) + own + good[8 + size :])
        try:
            load_squeezed(path, run, CPU)
        finally:
            path.write_bytes(good)

    return [path.with_name("squeeze.json"), path, header], read


def checkpoint(_tree: Any) -> Reader:
    path = Path("state.safetensors")
    Checkpoint(path, "key", 0).save({"model": {"a": torch.arange(4.0)}, "at": [0, 1], "rng": None})
    return [path], lambda: Checkpoint(path, "key", 0).load()


def configuration(tree: Any) -> Reader:
    tree.scale("small", ipc={1: 1, 2: 1}, recipe={"squeeze.epochs": 1})
    tree.experiment("tiny", scales=["paper", "small"])
    figure = {"title": "T", "kind": "lines", "scales": ["paper"], "tables": ["tiny"]}
    tree.write("experiments/drawn.yaml", yaml.safe_dump(figure))

    def read() -> None:
        for scale in ("paper", "small"):
            experiments = tree.experiments(scale=scale)
            experiments.runs()
            _ = experiments.figures
        rates_of(experiments.config, "a100")

    files = sorted(path for path in tree.folder.rglob("*") if path.is_file())
    assert {path.suffix for path in files} == {".yaml", ".csv"}
    return files, read


def command_line(_tree: Any) -> Reader:
    path = Path("pairs.txt")
    path.write_text("runtime.device=cpu\ndatasets=[a, b]\nseeds=2\ndata_paths.digits=$HOME/x\n")
    return [path], lambda: parse_pairs(path.read_text(errors="replace").splitlines())


def run_json(tree: Any) -> Reader:
    experiments = tree.experiments()
    cell = next(cell for cell in experiments.cells("tiny") if cell.run)
    path = Path(experiments.layout.run_json(cell.run, 0))
    provenance = {"device": "a CPU", "seconds": 5.0, "host": "h"}
    record = {"run": cell.run.id, "seed": 0, "top1": 50.0, "top5": 90.0, "provenance": provenance}
    write_json(path, record | {"curve": [{"epoch": 1, "loss": 1.0, "top1": 50.0}]})
    return [path], lambda: measurements(experiments, cell)


def decoded_images(_tree: Any) -> Reader:
    path, images = Path("decode/val.npy"), np.zeros((4, 8, 8, 3), np.uint8)
    path.parent.mkdir()
    np.save(path, images)
    record = described(images, np.array([0, 0, 1, 1]), tuple(CLASSES)) | {"run": "val-1"}
    write_json(description_of(path), record)
    return [path, description_of(path)], lambda: read_decoded(path, "val-1", 8)


def cifar(_tree: Any) -> Reader:
    pixels = np.zeros((2, 3072), np.uint8)
    record = {b"data": pixels, b"fine_labels": [0, 1], b"filenames": [b"a", b"b"]}
    paths = [Path(name) for name in ("train", "test", "meta")]
    for path in paths[:2]:
        path.write_bytes(pickle.dumps(record, 2))
    paths[2].write_bytes(pickle.dumps({b"fine_label_names": [b"ant", b"bee"]}, 2))
    data = toy("cifar100", resolution=32)
    return paths, lambda: [sources.load(data, split, Path()) for split in ("train", "val")]


def tiny_imagenet(_tree: Any) -> Reader:
    for name in ("train/n01/images/a", "train/n02/images/b", "val/images/c", "val/images/d"):
        Path(f"{name}.png").parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(f"{name}.png")
    table, wnids = Path("val/val_annotations.txt"), Path("wnids.txt")
    table.write_text("c.png\tn01\t0\t0\nd.png\tn02\t0\t0\n")
    wnids.write_text("n02\nn01\n")
    data = toy("tiny_imagenet")
    return [table, wnids], lambda: sources.load(data, "val", Path())


def imagenet(_tree: Any) -> Reader:
    for name in ("train/n01/a", "train/n02/b", *(f"val/ILSVRC2012_val_0000000{i}" for i in "12")):
        Path(f"{name}.JPEG").parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(f"{name}.JPEG")
    table = Path("LOC_val_solution.csv")
    lines = ["ImageId,PredictionString", *(f"ILSVRC2012_val_0000000{i},n0{i} 1 2" for i in (1, 2))]
    table.write_text("\n".join(lines))
    return [table], lambda: sources.load(toy("imagenet1k"), "val", Path())


def development_kit(tree: Any) -> Reader:
    """Few inputs, since each starts a process."""
    from scipy.io import savemat

    imagenet(tree)[0][0].unlink()
    kinds = [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("num_children", "i4")]
    synsets, truth = Path("data/meta.mat"), Path("data/ILSVRC2012_validation_ground_truth.txt")
    synsets.parent.mkdir()
    savemat(synsets, {"synsets": np.array([(1, "n01", 0), (2, "n02", 0)], dtype=kinds)})
    truth.write_text("1\n2\n")
    return [synsets, truth], lambda: sources.load(toy("imagenet1k"), "val", Path())


def lease(_tree: Any) -> Reader:
    path = Path("lease.json")
    write_json(path, {"host": os.uname().nodename, "pid": os.getpid(), "started": None})
    return [path], lambda: Lease(Path()).is_stale()


READERS = (
    image_folder, released, shard, label_store, squeezed_model, checkpoint, configuration,
    command_line, run_json, decoded_images, cifar, tiny_imagenet, imagenet, development_kit, lease,
)  # fmt: skip


@pytest.mark.parametrize("make", READERS, ids=lambda make: make.__name__)
def test_damaged_files_end_in_one_line(make, tree, capsys, monkeypatch):
    if sys.platform != "linux":
        pytest.skip("needs /proc, to bound memory")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    torch.manual_seed(0)
    paths, read = make(tree)
    good = {path: path.read_bytes() for path in paths}
    read()  # imports, and the good files are good
    before, number, failures = sorted(Path().rglob("*")), 0, list[str]()
    end, peak = time.monotonic() + SECONDS, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while time.monotonic() < end and len(failures) < FAILURES:
        draw = random.Random(f"{SEED} {make.__name__} {number}")
        path = draw.choice(paths)
        path.write_bytes(damaged(path, good[path], draw))
        if problem := failure(read):
            failures.append(f"input {number}, {path}: {problem}")
        path.write_bytes(good[path])
        number += 1
    gc.collect()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1e3
    with capsys.disabled():
        print(
            f"\n{make.__name__}: seed {SEED}, {number} inputs, {len(failures)} failures, "
            f"{grown:.0f} MB more memory"
        )
    assert not failures, "\n".join(failures)
    assert grown < RESIDENT
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("read", "problem"),
    [
        (lambda: {}["x"], "KeyError: 'x'"),
        (lambda: bytearray(64 * MEMORY), "MemoryError"),
        (lambda: time.sleep(2 * SECONDS_EACH), "Hangs"),
        (lambda: Path("../outside").touch(), "open .*outside"),
        (lambda: Path("inside").touch(), "^$"),
        (lambda: os.system("true"), "os.system"),
        (lambda: (_ for _ in ()).throw(CdaError("one line")), "^$"),
        (lambda: (_ for _ in ()).throw(CdaError("x" * 3000)), "^$"),
    ],
)  # fmt: skip
def test_the_watch_finds_what_a_reader_must_not_do(read, problem, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    monkeypatch.setattr(sys.modules[__name__], "SECONDS_EACH", 1)
    assert re.search(problem, failure(read))


def test_checksums_fit_after_a_change():
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[-1] ^= 1
    Image.open(io.BytesIO(sealed(bytes(content), "a.png"))).load()
    entry = tarfile.TarInfo("a").tobuf(tarfile.USTAR_FORMAT)
    other = sealed(b"b" + entry[1:], "a.tar")
    assert tarfile.TarInfo.frombuf(other, "utf-8", "strict").name == "b"
