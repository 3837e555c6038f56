"""Arrays whose disk space is allocated first, also where the system has no call for that."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from cda.data.memmap import allocate
from cda.errors import ArtifactError


def refuse(number: int):
    def call(*_):
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("number", [None, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_without_the_call_zeros_take_the_space_and_nothing_is_lost(number, tmp_path, monkeypatch):
    if number is None:
        monkeypatch.delattr(os, "posix_fallocate")  # macOS
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse(number))
    path = tmp_path / "rows.npy"
    rows = allocate(path, (70_000, 256), np.uint8, True, "make room")
    assert path.stat().st_blocks * 512 >= 70_000 * 256
    assert not rows.any()
    rows[:] = 7
    rows.flush()
    again = allocate(path, (70_000, 256), np.uint8, False, "make room")
    assert (again == 7).all()


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", refuse(errno.ENOSPC))
    with pytest.raises(ArtifactError, match=r"rows.npy: cannot be written, no room for .*make roo"):
        allocate(tmp_path / "rows.npy", (4,), np.uint8, True, "make room")
