"""Files appear complete or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cda import files
from cda.errors import ArtifactError


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def everything(folder: Path = Path()) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_failed_write_leaves_the_old_file_and_nothing_else():
    path = Path("out/table.csv")
    files.write_text(path, "old")

    def fails() -> None:
        with files.atomic_write(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fails()
    assert path.read_text() == "old"
    assert everything() == ["out/table.csv"]


def test_a_file_is_not_there_before_it_is_complete():
    path = Path("out/table.csv")
    with files.atomic_write(path) as temporary:
        temporary.write_text("all of it")
        assert not path.exists()
        assert temporary.parent == path.parent  # so that the rename stays within a file system
    assert everything() == ["out/table.csv"]


def test_what_a_killed_writer_left_is_cleared_away():
    folder = Path("out")
    code = (
        "import os; from pathlib import Path; from cda.files import atomic_write; p = "
        "Path('out/table.csv')\n"
    )
    code += "with atomic_write(p) as temporary: temporary.write_text('half'); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    files.write_text(folder / "table.csv", "whole")
    assert everything() == ["out/table.csv"]


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_one_line_and_costs_nothing_old(call, monkeypatch):
    path = Path("out/table.csv")
    files.write_text(path, "old")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(ArtifactError) as caught:
        files.write_text(path, "new")
    assert str(caught.value).splitlines() == [
        f"{path}: cannot be written (No space left on device); make room or allow writing, "
        "then start again: it goes on"
    ]
    assert everything() == [str(path)]
    assert path.read_text() == "old"


def test_a_folder_that_cannot_be_made_is_one_line():
    Path("out").write_text("a file where a folder should be")
    with pytest.raises(ArtifactError, match="cannot be written") as caught:
        files.write_text(Path("out/tables/table.csv"), "content")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_publishing_to_a_full_disk_is_one_line(call, monkeypatch):
    files.write_text(Path("work/out/shard.tar"), "content")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(ArtifactError, match="No space left on device") as caught:
        files.publish(Path("work/out"), Path("artifacts/part-0"))
    assert "\n" not in str(caught.value)
    assert not Path("artifacts/part-0").exists()


def test_publishing_replaces_what_is_there():
    files.write_text(Path("artifacts/part-0/old.tar"), "old")
    files.write_text(Path("work/out/new.tar"), "new")
    files.publish(Path("work/out"), Path("artifacts/part-0"))
    assert everything() == ["artifacts/part-0/new.tar"]


def test_publishing_into_a_folder_adds_and_replaces_files_and_ends_with_the_tars(monkeypatch):
    files.write_text(Path("part-0/old.tar"), "old")
    files.write_text(Path("part-0/new.tar"), "damaged")
    for name in ("new.tar", "zz.json", "snapshots/step.tar"):
        files.write_text(Path("work/out", name), name)
    replaced, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (replaced.append(b.name), replace(a, b)))
    files.publish_into(Path("work/out"), Path("part-0"))
    assert replaced == ["step.tar", "zz.json", "new.tar"]
    assert {path.name: path.read_text() for path in Path("part-0").rglob("*.*")} == {
        "old.tar": "old",
        "new.tar": "new.tar",
        "zz.json": "zz.json",
        "step.tar": "snapshots/step.tar",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "damaged"),
        (b"[]", "no JSON object"),
        (b"\xff\xfe", "damaged"),
        (None, "cannot be read"),
    ],
)
def test_json_that_is_amiss_is_one_line_with_its_path(content, message):
    path = Path("squeeze.json")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=message) as caught:
        files.read_json(path, "the model's description")
    assert str(caught.value).startswith("squeeze.json: the model's description")
    assert "\n" not in str(caught.value)


def test_no_truncated_json_is_complete(tmp_path):
    path = tmp_path / "run.json"
    files.write_json(path, {"text": "\n}\n", "curve": [{"epoch": 1}, {}], "provenance": {"a": {}}})
    content = path.read_bytes()
    for size in range(len(content) - 1):  # the last byte is a line break
        path.write_bytes(content[:size])
        assert not files.is_complete_json(path), content[:size]
    for complete in (content[:-1], content, b"{}", b'{"a": 1}'):
        path.write_bytes(complete)
        assert files.is_complete_json(path)
    assert not files.is_complete_json(tmp_path)
    assert not files.is_complete_json(tmp_path / "none.json")


def test_json_cannot_hold_what_is_no_number():
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(Path("run.json"), {"top1": float("nan")})
    assert everything() == []
