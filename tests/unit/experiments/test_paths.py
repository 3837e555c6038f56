"""Where real data sets are: paths with environment variables and ~."""

from __future__ import annotations

from pathlib import Path

import pytest

from cda.config.settings import Settings
from cda.errors import ConfigError
from cda.experiments.paths import data_root


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.delenv("CDA_DATA", raising=False)
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.setenv("HOME", "/home/me")


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("$SCRATCH/imagenet", "/scratch/me/imagenet"),
        ("${SCRATCH}/imagenet", "/scratch/me/imagenet"),
        ("~/imagenet", "/home/me/imagenet"),
        ("/data/a$", "/data/a$"),
    ],
)
def test_variables_and_the_home_folder_are_replaced(path, folder, monkeypatch):
    assert data_root(Settings(data_paths={"toy": path}), "toy") == Path(folder)
    assert data_root(Settings(data=path), "toy") == Path(folder, "toy")
    monkeypatch.setenv("CDA_DATA", path)
    assert data_root(Settings(), "toy") == Path(folder, "toy")


@pytest.mark.parametrize("name", ["$NOWHERE", "${NOWHERE}"])
def test_a_variable_that_is_not_set_is_named(name, monkeypatch):
    line = "names the environment variable NOWHERE, which is not set; set it, or write the path out"
    for settings, place in (
        (Settings(data_paths={"toy": f"{name}/x"}), "config key data_paths.toy"),
        (Settings(data=f"{name}/x"), "config key data"),
    ):
        with pytest.raises(ConfigError) as caught:
            data_root(settings, "toy")
        assert str(caught.value) == f"{place}: {name}/x {line}"


def test_a_home_that_nobody_has_is_one_line():
    with pytest.raises(ConfigError, match=r"^config key data: ~nobody_here/x: no such home folde"):
        data_root(Settings(data="~nobody_here/x"), "toy")
