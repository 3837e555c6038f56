"""Images that do not decode are found in parallel, those too at which a decoder crashes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cda.data import inspection as module
from cda.data.inspection import damaged_images
from cda.errors import DataError

# A process that crashes over one of the images
CRASH = """\
import json, os, sys
for line in sys.stdin:
    paths = json.loads(line)
    if any(path.endswith("17.png") for path in paths):
        os._exit(11)
    print(json.dumps([[p, "no image"] for p in paths if p.endswith("/5.png")]), flush=True)
"""


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    found = [str(tmp_path / f"{index}.png") for index in range(20)]
    for path in found:
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)
    return found


def test_damaged_images_come_in_order_with_reasons_and_progress(paths, monkeypatch, capfd):
    monkeypatch.setattr(module, "_CHUNK", 3)
    monkeypatch.setattr(module, "_AHEAD", 4)
    Path(paths[4]).write_bytes(b"")
    Path(paths[18]).write_bytes(Path(paths[18]).read_bytes()[:40])
    Path(paths[19]).unlink()
    found = list(damaged_images(paths, "toy"))
    assert [path for path, _ in found] == [paths[4], paths[18], paths[19]]
    assert found[0][1] == "an empty file"
    assert "No such file" in found[2][1]
    assert "toy: 20/20 images" in capfd.readouterr().err


def test_a_decoder_that_crashes_is_narrowed_down_to_its_image(paths, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 2)
    monkeypatch.setattr(module, "COMMAND", (sys.executable, "-c", CRASH))
    reasons = dict(damaged_images(paths, "toy"))
    assert list(reasons) == [paths[5], paths[17]]
    assert reasons[paths[17]] == "its decoder crashes, or memory does not suffice"


def test_a_process_that_does_not_start_blames_no_image(paths, monkeypatch):
    monkeypatch.setattr(module, "COMMAND", (sys.executable, "-c", "raise SystemExit"))
    with pytest.raises(DataError, match="does not start"):
        list(damaged_images(paths, "toy"))


def test_a_path_that_is_no_text_is_named(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\n.png")
    Path(path).write_bytes(b"")
    assert list(damaged_images([path], "toy")) == [(path, "an empty file")]
