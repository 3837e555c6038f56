"""Mutation testing: change one place of the code or of a recipe, and see whether a test fails.

    python tools/mutations.py FOLDER [--count 400] [--seed 0]

Copies the committed tree to FOLDER/tree and draws mutants of it by the seed. A mutant's tests run
in a process forked from one that has imported torch. FOLDER/results.jsonl gets a line for each
mutant; a second start tests those without a line and prints the summary. `docs/mutations.md` has
the last run.
"""

from __future__ import annotations

import argparse
import ast
import collections
import importlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

SECONDS = 600  # a mutant's tests at most
LIBRARIES = "numpy pandas PIL pydantic pytest safetensors.torch scipy torch torchvision yaml"
NUMBERS = "golden/test_golden_numbers"
GOLDEN = (NUMBERS, "golden/test_recovery")
RECOVERY = (*GOLDEN, "unit/engine/test_recovery")
BATCHES = ("unit/stages/test_squeeze", "unit/stages/test_validate", "unit/data/test_label_store")
TESTS = {  # file, and its functions and classes if not all: tests, the quick and the nearest first
    "config/recipes": ("unit/test_recipe_values", "unit/config/test_recipe"),
    "src/cda/method/augment.py": ("unit/method/test_augment", *GOLDEN, *BATCHES),
    "src/cda/method/bn_matching.py": ("unit/method/test_bn_matching", *GOLDEN),
    "src/cda/method/curriculum.py": ("unit/method/test_curriculum", *GOLDEN),
    "src/cda/method/dsa.py": ("unit/method/test_dsa", NUMBERS),
    "src/cda/method/losses.py": ("unit/method/test_losses", NUMBERS),
    "src/cda/method/networks.py": ("unit/method/test_networks",),
    "src/cda/engine/optimizers.py": ("unit/engine/test_optimizers", "unit/engine/test_trainer"),
    "src/cda/engine/trainer.py": ("unit/engine/test_trainer", NUMBERS),
    "src/cda/engine/recovery.py": (*RECOVERY, "unit/engine/test_memory"),
    "src/cda/engine/objective.py": RECOVERY,
    "src/cda/engine/blocks.py": RECOVERY,
    "src/cda/engine/batches.py": ("unit/engine/test_batches", *BATCHES, "unit/method/test_augment"),
    "src/cda/stages/squeeze.py:smoothed_ce,round_to_half": ("unit/stages/test_squeeze",),
    "src/cda/engine/soft_labels.py": ("unit/engine/test_soft_labels", *BATCHES),
    "src/cda/stages/validate.py:loss_of": BATCHES,
    "src/cda/stages/continual.py:class_order,seen_classes,SeenBatches,accuracy,learn": (
        "unit/stages/test_continual",
    ),
}
SWAPS: dict[type[Any], type[Any]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Mod: ast.Add,
    ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
SPEED = {"fused", "non_blocking", "set_to_none", "memory_format"}  # keywords that change no result
MESSAGES = {"log", "ConfigError", "ArtifactError", "DataError", "ValueError"}


class Mutant(NamedTuple):
    """A change of the bytes from `start` to `end` of a file."""

    file: str
    line: int
    start: int
    end: int
    after: str


def swaps(node: ast.AST) -> Iterator[ast.AST]:
    """The node with another operator."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        yield ast.Compare(node.left, [SWAPS[type(node.ops[0])](), *node.ops[1:]], node.comparators)
    elif isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in SWAPS:
        fields = dict(ast.iter_fields(node)) | {"op": SWAPS[type(node.op)]()}
        yield type(node)(**fields)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)


def edits(node: ast.AST) -> Iterator[ast.AST]:
    """Changed copies of a node."""
    yield from swaps(node)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()
    elif isinstance(node, ast.Call):
        for gone in (one for one in node.keywords if one.arg not in SPEED):
            yield ast.Call(node.func, node.args, [one for one in node.keywords if one is not gone])
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Constant) and isinstance(node.value, float):
        yield ast.Constant(node.value * 1.5 or 1.0)


def nodes(node: ast.AST) -> Iterator[ast.AST]:
    """A node and those below it that compute: no annotations, assertions, messages and strings."""
    if isinstance(node, ast.Assert | ast.Raise | ast.JoinedStr):
        return
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in MESSAGES:
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.keyword) and node.arg in SPEED:
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list"):
            for below in value if isinstance(value, list) else [value]:
                if isinstance(below, ast.AST):
                    yield from nodes(below)


def python_mutants(file: str, source: bytes, chosen: set[str]) -> Iterator[Mutant]:
    """Mutants of a module, or of its functions and classes of the names `chosen`."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    tree: ast.AST = ast.parse(source)
    tops = [one for one in ast.walk(tree) if getattr(one, "name", "") in chosen] or [tree]
    for node in (below for top in tops for below in nodes(top)):
        for edit in edits(node):
            at: Any = node
            start, end = starts[at.lineno - 1] + at.col_offset, at.end_col_offset
            text = ast.unparse(ast.fix_missing_locations(edit))
            text = text if isinstance(edit, ast.stmt) else f"({text})"
            yield Mutant(file, at.lineno, start, starts[at.end_lineno - 1] + end, text)


def yaml_mutants(file: str, source: bytes) -> Iterator[Mutant]:
    """Numbers and switches of a recipe changed, other values removed with their keys."""
    for found in re.finditer(rb"^ +\w+: +([^#\n]*[^#\s]) .*\n", source, re.MULTILINE):
        line, text = source[: found.start()].count(b"\n") + 1, found[1].decode()
        after = {"true": "false", "false": "true", "0": "1", "0.0": "0.5", "null": None}.get(text)
        if after is None and re.fullmatch(r"[\d.e-]+", text):
            after = f"{float(text) / 2}" if re.search(r"[.e]", text) else f"{int(text) + 1}"
        start, end = found.span(1) if after else found.span()
        yield Mutant(file, line, start, end, after or "")


def all_mutants(tree: Path) -> list[Mutant]:
    """Every mutant of the files of TESTS, in a fixed order."""
    found: list[Mutant] = []
    for place in TESTS:
        path, _, chosen = place.partition(":")
        folder = tree / path
        for file in sorted(folder.glob("*.*")) if folder.is_dir() else [folder]:
            name, source = str(file.relative_to(tree)), file.read_bytes()
            if file.suffix == ".yaml":
                found += yaml_mutants(name, source)
            else:
                found += python_mutants(name, source, set(filter(None, chosen.split(","))))
    return found


def run_tests(tree: Path, file: str) -> tuple[str, str]:
    """(survived, killed or timeout, the first test that failed) of the tests for `file`."""
    tests = next(tests for place, tests in TESTS.items() if file.startswith(place.split(":")[0]))
    log = tree.with_name("tests.log")
    child = os.fork()
    if child == 0:
        os.setsid()
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.chdir(tree)
        sys.path[:0] = [str(tree / "src"), str(tree)]
        options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not compiler and not slow"]
        files = [f"tests/{name}.py" for name in tests]
        os._exit(int(importlib.import_module("pytest").main([*options, *files])))
    end = time.monotonic() + SECONDS
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "timeout", ""
        time.sleep(0.05)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", log.read_text(errors="replace"), re.MULTILINE)
    return ("survived" if done[1] == 0 else "killed"), failed[1] if failed else ""


def summarise(rows: list[dict[str, Any]]) -> None:
    """Print killed of all mutants by file, and the survivors."""
    for file in sorted({row["file"] for row in rows}):
        own = collections.Counter(row["result"] for row in rows if row["file"] == file)
        print(f"{file}: {sum(own.values()) - own['survived']} of {sum(own.values())} killed")
    left = [row for row in rows if row["result"] == "survived"]
    print(f"{len(rows) - len(left)} of {len(rows)} killed")
    for row in left:
        print(f"{row['file']}:{row['line']}: {row['before']!r} -> {row['after']!r}")


def copy_tree(tree: Path) -> None:
    """Copy the committed files to `tree`."""
    tree.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", "HEAD"], check=True, capture_output=True)
    subprocess.run(["tar", "-x", "-C", tree], check=True, input=archive.stdout)
    subprocess.run(["git", "init", "-q", tree], check=True)


def test_mutant(tree: Path, mutant: Mutant) -> dict[str, Any]:
    """The tests' verdict on a mutant, which is undone again."""
    path, began = tree / mutant.file, time.monotonic()
    source = path.read_bytes()
    path.write_bytes(source[: mutant.start] + mutant.after.encode() + source[mutant.end :])
    try:
        result, test = run_tests(tree, mutant.file)
    finally:
        path.write_bytes(source)
    before = source[mutant.start : mutant.end].decode().strip()
    verdict = {"before": before, "result": result, "test": test}
    return mutant._asdict() | verdict | {"seconds": round(time.monotonic() - began, 1)}


def main() -> None:
    """Test the mutants that are left; then print the summary."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tree, results = options.folder.resolve() / "tree", options.folder / "results.jsonl"
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(tree / "src")}
    sys.dont_write_bytecode = True
    for name in LIBRARIES.split():
        importlib.import_module(name)
    if not tree.exists():
        copy_tree(tree)
        for place in TESTS:
            verdict = run_tests(tree, place)
            assert verdict[0] == "survived", f"{place}: {verdict} without a mutation"
    rows = [json.loads(line) for line in results.open()] if results.exists() else []
    done = [[row[name] for name in Mutant._fields] for row in rows]
    for mutant in random.Random(options.seed).sample(all_mutants(tree), options.count):
        if list(mutant) not in done:
            rows.append(test_mutant(tree, mutant))
            with results.open("a") as file:
                file.write(json.dumps(rows[-1], ensure_ascii=False) + "\n")
    summarise(rows)


if __name__ == "__main__":
    main()
