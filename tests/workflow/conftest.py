"""Snakemake as a process of its own, and a small chain that it has run from squeeze to table."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def snakemake(*arguments, cwd=ROOT, ok=True, before=(sys.executable,)):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("CDA_CONFIG", None)
    command = [*before, "-m", "snakemake", "-s", str(ROOT / "workflow" / "Snakefile"), *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    printed = done.stdout + done.stderr
    assert (done.returncode == 0) == ok, printed
    return printed


def planned(printed):
    """Jobs per rule of a dry run."""
    table = re.search(
        r"^Job stats:\njob +count\n[- ]+\n(.*?)^total", printed, re.MULTILINE | re.DOTALL
    )
    return (
        {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)", table[1], re.MULTILINE)}
        if table
        else {}
    )


@pytest.fixture(scope="session")
def chain(tmp_path_factory, config_tree):
    """A small chain, run once from squeeze to table."""
    folder = tmp_path_factory.mktemp("chain")
    before = Path.cwd()
    os.chdir(folder)
    try:
        tree = config_tree()
        tree.few_images()
        tree.experiment("tiny", {"methods": ["cda", "random"], "ipc": [2]})
        tree.edit("config.yaml", "seeds: 2", "seeds: 1")
    finally:
        os.chdir(before)
    printed = snakemake("--cores", "2", "results/tiny.csv", cwd=folder)
    return folder, printed


@pytest.fixture
def copy(chain, tmp_path):
    """The finished chain, to change at will, with the files' times kept."""
    target = tmp_path / "copy"
    shutil.copytree(chain[0], target)
    return target
