"""One set of pins: pyproject.toml asks, requirements.lock answers, environment.yml repeats."""

import importlib.util
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
ENVIRONMENT = (ROOT / "environment.yml").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PYTHONS = ("3.11.0", "3.12.0", "3.13.0")


def entries(lock: str) -> list[tuple[Requirement, list[str]]]:
    """Requirement and hashes of each entry, read without the generator's own parser."""
    found = []
    for entry in re.split(r"\n(?=\S)", lock.strip()):
        first, *rest = (line.strip(" \\") for line in entry.splitlines())
        found.append((Requirement(first), rest))
    return found


ENTRIES = entries(LOCK)
REQUIRED = [
    *PROJECT["build-system"]["requires"],
    *PROJECT["project"]["dependencies"],
    *(line for extra in PROJECT["project"]["optional-dependencies"].values() for line in extra),
]


def pinned(name: str, python: str) -> list[str]:
    """Versions that the lock gives an ordinary Linux machine for a package."""
    device = {
        "python_full_version": python,
        "python_version": python.removesuffix(".0"),
        "sys_platform": "linux",
    }
    device |= {
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
    }
    named = [pin for pin, _ in ENTRIES if canonicalize_name(pin.name) == canonicalize_name(name)]
    return [
        next(iter(pin.specifier)).version
        for pin in named
        if pin.marker is None or pin.marker.evaluate(device)
    ]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("required", REQUIRED)
def test_each_dependency_is_pinned_once_to_a_version_that_satisfies_it(required, python):
    requirement = Requirement(required)
    (version,) = pinned(requirement.name, python)
    assert requirement.specifier.contains(version)


def test_every_pin_is_exact_and_hashed():
    assert len(ENTRIES) > 50
    for pin, hashes in ENTRIES:
        assert [clause.operator for clause in pin.specifier] == ["=="], pin
        assert hashes, f"{pin} has no hash"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashes), pin


def test_environment_is_what_the_lock_generates():
    spec = importlib.util.spec_from_file_location("environment", ROOT / "tools" / "environment.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.environment(LOCK) == ENVIRONMENT


def test_environment_repeats_every_pin():
    environment = yaml.safe_load(ENVIRONMENT)
    python, pip, by_pip = environment["dependencies"]
    assert environment["name"] == "cda"
    assert python.removeprefix("python=") + ".0" in PYTHONS
    assert pip == "pip"
    assert [str(Requirement(line)) for line in by_pip["pip"]] == [str(pin) for pin, _ in ENTRIES]


def test_no_address_in_the_pins():
    assert "://" not in LOCK
    assert "://" not in ENVIRONMENT


def test_torch_is_the_ordinary_build():
    for python in PYTHONS:
        for name in ("torch", "torchvision"):
            (version,) = pinned(name, python)
            assert "+" not in version
        assert pinned("nvidia-cudnn-cu13", python), "torch's CUDA libraries are missing"


def test_git_ignores_the_data_folder_and_not_the_data_package(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True, env=environment)

    def ignored(path: str) -> bool:
        command = [
            "git",
            "-c",
            f"core.excludesFile={os.devnull}",
            "check-ignore",
            "--quiet",
            "--no-index",
            path,
        ]
        done = subprocess.run(command, cwd=tmp_path, env=environment, check=False)
        assert done.returncode in (0, 1)
        return done.returncode == 0

    assert "/data/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert ignored("data/cifar100/train")
    assert not ignored("src/cda/data/sources.py")
