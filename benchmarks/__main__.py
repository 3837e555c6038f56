"""`python -m benchmarks`: measure, and write `results/benchmarks.csv` and the page beside it."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks import table
from benchmarks.harness import Case, Row, Setting, grown, measure, peak_elsewhere, peak_flops, rows
from cda.progress import Progress, log

HOST = ("label_store", "dag")  # benchmarks that use no GPU
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = table.BENCHMARKS
    only = f"some of {', '.join(names)}"
    parser.add_argument(
        "--only", nargs="+", choices=names, default=list(names), metavar="NAME", help=only
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto: the GPU if there is one",
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: does it run? Its rates mean nothing"
    )
    parser.add_argument(
        "--out", type=Path, help="the CSV (results/benchmarks.csv; with --quick none)"
    )
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the requested benchmarks, and write each one's rows when it is done."""
    options = parse_arguments(arguments)
    present = "cuda" if torch.cuda.is_available() else "cpu"
    setting = Setting(present if options.device == "auto" else options.device, options.quick)
    if options.peak:
        name, what, index = options.peak
        print(_peak(name, what, int(index), setting))
        return
    out = options.out or (None if options.quick else Path("results/benchmarks.csv"))
    found = table.read(out) if out else []
    with nullcontext() if options.quick else _empty_caches():
        for name in options.only:
            machine = _machine(Setting("cpu", options.quick) if name in HOST else setting)
            new = [machine | row for row in _rows(name, setting)]
            found = table.merged(found, new, machine["device"], [name])
            if out:
                table.write(out, found)
    print(f"{out} and {out.with_suffix('.md')} are written" if out else table.markdown(found))


@contextmanager
def _empty_caches() -> Iterator[None]:
    """Give compilers empty caches, so that start-up times are those of a first start."""
    before = {name: os.environ.get(name) for name in CACHES}
    with tempfile.TemporaryDirectory(prefix="cda-compiled-") as folder:
        os.environ.update(dict.fromkeys(CACHES, folder))
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                os.environ.update({} if value is None else {name: value})


def _machine(setting: Setting) -> Row:
    """A row's columns for the machine: device, threads, code and versions."""
    provenance = setting.open_device().provenance()
    versions = {"python": platform.python_version()} | provenance["versions"]
    return {
        "device": provenance["device"],
        "threads": provenance["cpu_threads"],
        "code": provenance["code"],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def _rows(name: str, setting: Setting) -> list[Row]:
    """The rows of one benchmark."""
    if name == "label_store":
        return _label_store(setting)
    cases: list[Case] = importlib.import_module(f"benchmarks.{name}").cases(setting)
    in_processes = not setting.cuda and not setting.quick  # memory, a fresh process a side
    total = sum(
        (case.rounds + 1 + (in_processes and case.memory)) * len(case.sides) for case in cases
    )
    progress = Progress(total, f"benchmark {name}", "measurements")
    found: list[Row] = []
    for case in cases:
        progress.note = case.what
        torch.compiler.reset()  # else torch stops compiling a function that it has compiled often
        timed = measure(case, setting, progress.update)
        if in_processes and case.memory:
            for index, one in enumerate(timed):
                one.peak = peak_elsewhere(case, index, setting)
                progress.update()
        found += rows(case, timed, peak_flops(setting))
    progress.close()
    return found


def _peak(name: str, what: str, index: int, setting: Setting) -> int:
    """Memory of one side of one case, by their names, in this fresh process."""
    cases: list[Case] = importlib.import_module(f"benchmarks.{name}").cases(setting)
    case = next(case for case in cases if case.what == what)
    return grown(case.sides[index], case.warm_calls)


def _label_store(setting: Setting) -> list[Row]:
    """The rows of `benchmarks/label_store.py`, which has no tiny sizes."""
    if setting.quick or importlib.util.find_spec("benchmarks.label_store") is None:
        log("benchmark label_store: skipped")
        return []
    log("benchmark label_store: codecs, then a store of 4 GB; a minute or two")
    measured: list[dict[str, Any]] = importlib.import_module("benchmarks.label_store").run()
    return [{"benchmark": "label_store", "side": "ours", **row} for row in measured]


if __name__ == "__main__":
    main()
