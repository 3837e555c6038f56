"""The house of docs/index.md: its packages, its words, and tests that mirror its modules."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "cda"
# Words that name nothing to a stranger; use requested, stored, drawn, complete, temporary …
BANNED = {"told", "asked", "kept", "shown", "given", "whole", "aside"}
SPANNING = {"stages/test_startup.py"}  # tests of several modules of a package at once


def names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name


def sources(*folders: str) -> Iterator[tuple[Path, ast.AST]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_there_are_at_most_eight_packages_and_the_index_lists_them():
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert len(packages) <= 8
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8").split("## The house")[1]
    assert packages == set(re.findall(r"`(\w+)/`", index))


def test_no_name_is_a_word_that_means_nothing_to_a_stranger():
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path, tree in sources("src", "tests", "benchmarks", "tools")
        for name in names(tree)
        if BANNED & set(re.findall("[a-z]+", name.lower()))
    ]
    assert found == []


def test_tests_mirror_modules_and_touch_no_private_names_of_them():
    unit = ROOT / "tests" / "unit"
    mirrors = [path.relative_to(unit) for path in unit.glob("*/test_*.py")]
    stray = [
        str(path)
        for path in mirrors
        if str(path) not in SPANNING
        and not (PACKAGE / path.parent / path.name.removeprefix("test_")).exists()
        and not (PACKAGE / path.parent / path.stem.removeprefix("test_")).is_dir()
    ]
    assert stray == []
    private = [
        f"{path.relative_to(ROOT)}: {alias.name}"
        for path, tree in sources("tests")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cda")
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]
    assert private == []
