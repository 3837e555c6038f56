"""The rules in an environment that has the dependencies and not this package.

`environment.yml` describes such an environment; `--sdm conda` itself is not run here.
"""

from __future__ import annotations

import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
from tests.workflow.conftest import ROOT


@pytest.fixture
def dependencies(tmp_path: Path) -> Path:
    """The Python of an environment with everything that is installed here, less this package."""
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    paths = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    target = Path(subprocess.run(paths, capture_output=True, text=True, check=True).stdout.strip())
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(("cda-", "cda.egg", "__editable__")):
            (target / entry.name).symlink_to(entry)
    return python


def test_rules_run_where_the_package_is_not_installed(dependencies, tmp_path, tree):
    tree.few_images()
    tree.experiment("tiny", {"methods": ["random"], "ipc": [1]})
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "CDA_CONFIG")
    }
    environment["PATH"] = f"{dependencies.parent}:{os.environ['PATH']}"
    absent = [dependencies, "-c", "import cda"]
    assert subprocess.run(absent, env=environment, capture_output=True, check=False).returncode
    command = [dependencies, "-m", "snakemake", "-s", ROOT / "workflow/Snakefile", "--cores", "1"]
    done = subprocess.run(
        [*command, "results/tiny.csv", "--config", "seeds=1"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert ",measured,own," in Path("results/tiny.csv").read_text(encoding="utf-8")
