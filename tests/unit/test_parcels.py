"""Parcels: what a machine found out comes back in a few files of a given size, and nothing else
does.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cda.artifacts import parcels
from cda.artifacts.needs import made
from cda.artifacts.order import _as_input, _as_output, order
from cda.artifacts.parcels import unpack, write_parcels
from cda.errors import ArtifactError, CdaError, ConfigError
from cda.experiments.jobs import inputs, outputs
from cda.experiments.runs import MEASURING

MODEL = 30_000  # bytes
SHARD = 2_000
JSON = 300
LIMIT = 20_000  # a model takes two volumes or three
OUT = Path("parcels")


def fill(path: str | Path, size: int) -> None:
    """A file that a run could have left, of `size` bytes of its own."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(random.Random(str(path)).randbytes(size))


@pytest.fixture
def done(tree):
    """A scale whose runs are all finished, made up.

    Two seeds, recover runs of two parts, and what must not travel.
    """
    tree.experiment("tiny", {"ipc": [1, 4]})
    experiments = tree.experiments()
    for run in experiments.runs().values():
        for path in outputs(run, 4, experiments.layout, 2):
            if run.stage == "recover":
                for name in (
                    "ipc-000.tar",
                    "ipc-000.json",
                    "snapshots/step-00003.tar",
                    ".snakemake_timestamp",
                ):
                    fill(f"{path}/{name}", SHARD)
            elif run.stage == "relabel":
                fill(f"{path}/logits.npy", SHARD)
            else:
                fill(path, JSON if run.stage in MEASURING else MODEL)
        if run.stage == "squeeze":
            fill(experiments.layout.model(run).replace("model.safetensors", "squeeze.json"), JSON)
    fill("artifacts/work/squeeze/digits/x/model/state.safetensors", SHARD)
    return experiments


def packed(experiments: Any, limit: int = LIMIT, most: int = 0, out: Path = OUT) -> list[Path]:
    write_parcels(experiments, list(experiments.runs().values()), out, limit, most)
    return sorted(out.iterdir())


def names_in(volumes: Sequence[Path]) -> list[str]:
    return [name for path in volumes for name in zipfile.ZipFile(path).namelist()]


def files_below(*folders: str) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for top in folders
        for path in Path(top).rglob("*")
        if path.is_file()
    }


@pytest.fixture
def elsewhere(done):
    """Parcels of everything on another machine, which has nothing yet; what was packed, by path."""
    packed(done)
    before = {
        path: content
        for path, content in files_below("results", "artifacts").items()
        if travels(path)
    }
    for folder in ("results", "artifacts"):
        shutil.rmtree(folder)
    return before


def travels(path: str) -> bool:
    return "relabel" not in path and "work" not in path and ".snakemake_timestamp" not in path


def problem_of(experiments: Any, kind: type[CdaError] = ArtifactError) -> str:
    with pytest.raises(kind) as caught:
        unpack(experiments, OUT)
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 1000
    return line


# Packing
# -------------------------------------------------------------------------------------------


def test_worth_decides_the_order_and_labels_and_checkpoints_stay(done, capsys):
    names = names_in(packed(done, 10**6))
    parts = [
        "json" if name.startswith("results/runs/") else name.split("/")[1] for name in names[1:]
    ]
    assert names[0] == "parcel.json"
    assert parts == sorted(parts, key=["json", "squeeze", "recover"].index)
    recovered = [name for name in names if "/recover/" in name]
    part_of = [(int("random" in name), name.split("/part-")[1][0]) for name in recovered]
    assert part_of == sorted(part_of)  # part 0 of every run first, real images last
    assert {number for _, number in part_of} == {"0", "1"}
    assert sorted(names[1:]) == sorted(
        path for path in files_below("results", "artifacts") if travels(path)
    )
    assert capsys.readouterr().out == "parcels: 19 of 19 outputs in 1 volumes, 69.9 kB.\n"


def test_equal_files_give_equal_bytes(done):
    first = [path.read_bytes() for path in packed(done)]
    for path in files_below("results", "artifacts"):
        os.utime(path, (1, 1))
    assert [path.read_bytes() for path in packed(done, out=Path("again"))] == first


def test_large_file_goes_in_pieces_and_no_volume_exceeds_the_limit(done):
    volumes = packed(done)
    assert [path.name for path in volumes] == [
        f"parcel-{index:03d}.zip" for index in range(len(volumes))
    ]
    assert all(path.stat().st_size <= LIMIT for path in volumes)
    pieces = [name for name in names_in(volumes) if ".piece-" in name]
    assert [name.rpartition(".")[2] for name in pieces] == [
        f"piece-{i:03d}-of-{len(pieces):03d}" for i in range(len(pieces))
    ]
    assert len(pieces) in (2, 3)
    assert {name.rpartition(".")[0].rpartition("/")[2] for name in pieces} == {"model.safetensors"}


@pytest.mark.parametrize(
    ("limit", "most"), [(9_500, 2), (13_337, 5), (20_000, 1), (20_001, 3), (36_000, 2)]
)
def test_limits_hold_and_what_does_not_fit_is_named(done, capsys, limit, most):
    volumes = packed(done, limit, most)
    assert 1 <= len(volumes) <= most
    assert all(path.stat().st_size <= limit for path in volumes)
    said, names = capsys.readouterr().out, "\n".join(names_in(volumes))
    for run in done.runs().values():
        for path in made(done, run) if run.stage in (*MEASURING, "recover") else []:
            assert (path in names) != (path in said)
    for path in files_below("artifacts"):  # a part is there with all its files, or with none
        if "/part-" in path and travels(path):
            assert (path in names) == (
                path.split("/part-")[0] + "/part-" + path.split("/part-")[1][0] not in said
            )


def test_small_outputs_still_go_where_a_model_found_no_room(done, capsys):
    names = names_in(packed(done, LIMIT, 1))
    assert not [name for name in names if "squeeze" in name]
    assert [name for name in names if "/part-0/" in name]
    assert "No room for " in capsys.readouterr().out


def test_packing_refuses(done, monkeypatch):
    with pytest.raises(
        ConfigError, match=r"--megabytes: the list of \d+ files alone takes \d+ bytes; raise it"
    ):
        packed(done, 1_000)
    assert list(OUT.iterdir()) == []
    packed(done)
    with pytest.raises(ConfigError, match="--out parcels: holds something already"):
        packed(done)
    described = parcels._described
    monkeypatch.setattr(
        parcels, "_described", lambda path: described(path).model_copy(update={"sha256": "0" * 64})
    )
    with pytest.raises(ArtifactError, match="changed while it was packed; the same command again"):
        packed(done, out=Path("other"))
    assert list(Path("other").iterdir()) == []


def test_nothing_finished(tree):
    with pytest.raises(ArtifactError, match="no run of these is finished"):
        packed(tree.experiments())
    assert not OUT.exists()


# Unpacking
# -----------------------------------------------------------------------------------------


def test_everything_comes_back_and_a_second_time_changes_nothing(done, elsewhere, capsys):
    unpack(done, OUT)
    unpacked = {
        path: content
        for path, content in files_below("results", "artifacts").items()
        if travels(path)
    }
    assert unpacked == elsewhere
    assert f"{len(elsewhere)} files unpacked of {len(elsewhere)}." in capsys.readouterr().out
    times = {path: os.stat(path).st_mtime_ns for path in elsewhere}
    unpack(done, OUT)
    assert f"0 files unpacked of {len(elsewhere)}." in capsys.readouterr().out
    assert times == {path: os.stat(path).st_mtime_ns for path in elsewhere}


def test_times_are_put_in_order(done, elsewhere):
    unpack(done, OUT)
    seen = 0
    for run in done.runs().values():
        for needed in inputs(run, done.settings.labels.max_gb):
            for path, read in ((p, r) for p in made(done, run) for r in made(done, needed)):
                assert _as_output(path) >= _as_input(read)
                seen += 1
    assert seen > 10


def test_a_measurement_is_no_older_than_the_model_behind_inputs_that_are_not_here(done, elsewhere):
    """As of real images: neither they nor their labels came, but the model that made the labels
    did.
    """
    unpack(done, OUT)
    run = next(
        run
        for run in done.runs().values()
        if run.stage == "validate" and run.slug.startswith("random-ipc1")
    )
    labels = run.upstream["labels"]
    shutil.rmtree(done.layout.run_folder(labels.upstream["images"]))
    assert not made(done, labels)
    model, measured = done.layout.model(labels.upstream["model"]), done.layout.run_json(run, 0)
    os.utime(measured, ns=(1, 1))
    order(done)
    assert _as_output(measured) >= _as_input(model) > 1


def test_what_is_lacking_is_added_to_what_is_there(done, elsewhere):
    unpack(done, OUT)
    lost = [
        next(path for path in elsewhere if path.endswith(end))
        for end in ("seed-1.json", "squeeze.json", ".tar")
    ]
    for path in lost:
        Path(path).unlink()
    unpack(done, OUT)
    assert {path: Path(path).read_bytes() for path in elsewhere} == elsewhere


def test_what_differs_is_left_and_named_and_the_rest_is_unpacked(done, elsewhere, capsys):
    own = [
        next(path for path in elsewhere if path.endswith(end))
        for end in ("seed-0.json", "ipc-000.tar")
    ]
    for path in own:
        fill(path, 10)
    mine = files_below("results", "artifacts")
    assert "not all is unpacked, as it says above" in problem_of(done)
    said = capsys.readouterr().err
    part = os.path.dirname(own[1])
    for path, content in elsewhere.items():
        if path in own:
            assert Path(path).read_bytes() == mine[path] != content
            assert (
                f"{path}: is there and differs from the parcel's; remove it to have that one"
                in said
            )
        else:
            assert Path(path).exists() != path.startswith(part)
    Path(own[0]).unlink()
    shutil.rmtree(part)
    unpack(done, OUT)
    assert {path: Path(path).read_bytes() for path in elsewhere} == elsewhere


@pytest.mark.parametrize("damage", ["missing", "truncated", "changed"])
def test_damaged_volume_costs_only_its_own(done, elsewhere, capsys, damage):
    volume = sorted(OUT.iterdir())[-1]
    names, content = zipfile.ZipFile(volume).namelist(), volume.read_bytes()
    if damage == "missing":
        volume.unlink()
    else:
        volume.write_bytes(
            content[:-30] if damage == "truncated" else content[:200] + b"?" + content[201:]
        )
    problem_of(done)
    assert volume.name in capsys.readouterr().err
    lost = {path for path in elsewhere if not Path(path).exists()}
    units = {os.path.dirname(name).removesuffix("/snapshots") for name in names}
    assert lost
    assert all(any(path.startswith(unit) for unit in units) for path in lost)
    assert not list(Path("artifacts").rglob(".*.tmp"))
    for path in set(elsewhere) - lost:
        assert Path(path).read_bytes() == elsewhere[path]
    volume.write_bytes(content)
    unpack(done, OUT)
    assert {path: Path(path).read_bytes() for path in elsewhere} == elsewhere


def test_other_scale_is_refused_with_the_mend(tree, done, elsewhere):
    tree.scale("small")
    other = tree.experiments(scale="small")
    assert problem_of(other, ConfigError).endswith("is of scale paper; add --config scale=paper")
    assert not Path("results").exists()


# Parcels that somebody made
# ------------------------------------------------------------------------


def forged(
    path: str, content: bytes = b"pwned", member: str | None = None, **manifest: Any
) -> None:
    """One volume that says it has a file at `path`, under the name `member`."""
    file = {"path": path, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    told = {"format": "cda-parcel/1", "scale": "paper", "volumes": 1, "files": [file]} | manifest
    OUT.mkdir(exist_ok=True)
    with zipfile.ZipFile(OUT / "parcel-000.zip", "w") as volume:
        volume.writestr("parcel.json", json.dumps(told))
        volume.writestr(member or path, content)


PLACE = "results/runs/digits/some-run-01234567/seed-0.json"


def test_forging_by_itself_is_no_reason_to_refuse(tree):
    forged(PLACE, b"{}")
    unpack(tree.experiments(), OUT)
    assert Path(PLACE).read_bytes() == b"{}"


@pytest.mark.parametrize(
    "path",
    [
        "../seed-0.json",
        "/tmp/seed-0.json",
        "results/runs/digits/../../../seed-0.json",
        "results/runs/digits/run/seed-0.json/../seed-1.json",
        "results/runs/digits/.run/seed-0.json",
        "results/runs/digits/run/seed-0.json\n",
        "results/runs/digits/run/other.json",
        "results/table1.csv",
        "src/cda/cli.py",
        ".git/hooks/post-checkout",
        "artifacts/relabel/digits/run/labels/logits.npy",
        "artifacts/squeeze/digits/run/model.pt",
        "artifacts/squeeze/digits/run.dvc",
        "artifacts/recover/digits/run/part-0",
        "artifacts/recover/digits/run/part-0/../../../../../x",
        "artifacts/recover/digits/run/part-0/.snakemake_timestamp",
        "artifacts/work/recover/digits/run/part-0/x",
        "artifacts/mini/recover/digits/run/part-0/x",
        "C:\\x",
        "",
    ],
)
def test_other_places_are_refused(tree, path):
    before = files_below(".")
    forged(path, member="x")
    assert f"{path!r} is no place of a run's file; nothing is unpacked" in problem_of(
        tree.experiments()
    )
    assert {name for name in files_below(".") if name not in before} == {
        str(OUT / "parcel-000.zip")
    }


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"format": "cda-parcel/2"},
            "no parcel (parcel.json: format input should be 'cda-parcel/1'",
        ),
        (
            {"volumes": 10**9},
            "no parcel (parcel.json: volumes input should be less than or equal to 10000",
        ),
        ({"files": [{"path": PLACE}]}, "no parcel (parcel.json: files.0.bytes field required"),
        ({"scale": "\x1b[2J" * 1000}, "is of scale "),
    ],
)
def test_list_of_files_is_not_trusted(tree, changes, problem):
    forged(PLACE, **changes)
    assert problem in problem_of(tree.experiments(), CdaError)
    assert not Path("results").exists()


@pytest.mark.parametrize(
    "content", [b"", b"<html>404</html>", b"PK\5\6" + bytes(18)], ids=["empty", "html", "no_list"]
)
def test_file_that_is_no_parcel(tree, content):
    assert "parcels/parcel-000.zip: missing; copy it here" in problem_of(tree.experiments())
    fill(OUT / "parcel-000.zip", 0)
    (OUT / "parcel-000.zip").write_bytes(content)
    assert problem_of(tree.experiments()).startswith("parcels/parcel-000.zip: ")


@pytest.mark.parametrize(
    "member", ["../x", "/tmp/x", f"{PLACE[:-6]}1.json", f"{PLACE}.piece-000-of-002"]
)
def test_member_that_is_not_listed_or_not_whole_is_refused(tree, capsys, member):
    forged(PLACE, member=member)
    problem_of(tree.experiments())
    said = capsys.readouterr().err
    assert (f"member {member!r} is not in parcel.json; nothing of it is taken" in said) != (
        "1 of 2 pieces" in said
    )
    assert not files_below("results")


def test_link_is_refused(tree):
    forged(PLACE, b"/etc/passwd")
    info = zipfile.ZipInfo("parcel.json")
    with zipfile.ZipFile(OUT / "parcel-000.zip") as volume:
        told = volume.read("parcel.json")
    link = zipfile.ZipInfo(PLACE)
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(OUT / "parcel-000.zip", "w") as volume:
        volume.writestr(info, told)
        volume.writestr(link, b"/etc/passwd")
    assert f"member {PLACE!r}, which is no plain file" in problem_of(tree.experiments())
    assert not os.path.lexists(PLACE)


def test_content_that_is_not_what_was_listed_is_refused(tree, capsys):
    forged(PLACE, files=[{"path": PLACE, "bytes": 5, "sha256": "0" * 64}])
    problem_of(tree.experiments())
    assert (
        f"{PLACE}: differs from its SHA-256 in parcel.json; copy the volumes again"
        in capsys.readouterr().err
    )
    assert not files_below("results")


# The commands
# --------------------------------------------------------------------------------------


def test_commands(tree, done, capsys):
    before = {
        path: content
        for path, content in files_below("results", "artifacts").items()
        if travels(path)
    }
    assert tree.cda("parcel", "tiny", "--out", "parcels") == 0
    shutil.rmtree("artifacts")
    shutil.rmtree("results")
    assert tree.cda("unpack", "parcels") == 0
    assert {path: Path(path).read_bytes() for path in before} == before
    assert tree.cda("parcel", "--out", "other", "--files", "-1") == 1
    assert "cda: --files -1: must be at least 0, which is any number" in capsys.readouterr().err
