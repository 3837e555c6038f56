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
from benchmarks.harness import Case, Row, Setting, grown, measure, peak_elsewhere, rows
from cda.config.load import CONFIG
from cda.pipeline.rates import read_devices
from cda.progress import Progress, log

HOST = ("label_store", "dag")  # what no GPU has a part in
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=table.BENCHMARKS, default=list(table.BENCHMARKS), metavar="NAME",
                        help=f"some of {', '.join(table.BENCHMARKS)}")  # fmt: skip
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
    """Measure what was asked for; each benchmark is written when it is done."""
    asked = parsed(arguments)
    device = (
        asked.device if asked.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    )
    setting = Setting(device, asked.quick)
    if asked.peak:
        name, what, index = asked.peak
        print(_peak(name, what, int(index), setting))
        return
    out = asked.out or (None if asked.quick else Path("results/benchmarks.csv"))
    found = table.read(out) if out else []
    with nullcontext() if asked.quick else _nothing_compiled():
        for name in asked.only:
            told = _told(Setting("cpu", asked.quick) if name in HOST else setting)
            found = table.merged(
                found, [told | row for row in _rows(name, setting)], told["device"], [name]
            )
            if out:
                table.write(out, found)
    print(f"{out} and {out.with_suffix('.md')} are written" if out else table.markdown(found))


@contextmanager
def _nothing_compiled() -> Iterator[None]:
    """Give compilers empty caches, so that start-up is that of a first start."""
    before = {name: os.environ.get(name) for name in CACHES}
    with tempfile.TemporaryDirectory(prefix="cda-compiled-") as folder:
        os.environ.update(dict.fromkeys(CACHES, folder))
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                os.environ.update({} if value is None else {name: value})


def _told(setting: Setting) -> Row:
    """What a row says of the machine."""
    told = setting.open_device().provenance()
    versions = {"python": platform.python_version()} | told["versions"]
    return {
        "device": told["device"], "threads": told["cpu_threads"], "code": told["code"],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }  # fmt: skip


def _rows(name: str, setting: Setting) -> list[Row]:
    """The rows of one benchmark."""
    if name == "label_store":
        return _label_store(setting)
    cases: list[Case] = importlib.import_module(f"benchmarks.{name}").cases(setting)
    apart = not setting.cuda and not setting.quick
    total = sum((case.rounds + 1 + (apart and case.memory)) * len(case.sides) for case in cases)
    progress = Progress(total, f"benchmark {name}", "measurements")
    found: list[Row] = []
    for case in cases:
        progress.note = case.what
        torch.compiler.reset()  # else torch soon says that it compiled one function often enough
        timed = measure(case, setting, progress.update)
        if apart and case.memory:
            for index, one in enumerate(timed):
                one.peak = peak_elsewhere(case, index, setting)
                progress.update()
        found += rows(case, timed, _peak_flops(setting))
    progress.close()
    return found


def _peak(name: str, what: str, index: int, setting: Setting) -> int:
    """Memory of one side of one case, by their names, in this fresh process."""
    cases: list[Case] = importlib.import_module(f"benchmarks.{name}").cases(setting)
    case = next(case for case in cases if case.what == what)
    return grown(case.sides[index], case.warm_calls)


def _peak_flops(setting: Setting) -> float | None:
    """What the GPU's data sheet says of bf16, in operations a second.

    None for a CPU and a GPU without an entry.
    """
    if not setting.cuda:
        return None
    name = torch.cuda.get_device_name().lower()
    known = [
        device
        for device in read_devices(CONFIG).devices.values()
        if any(n.lower() in name for n in device.names)
    ]
    return known[0].tflops * 1e12 if known else None


def _label_store(setting: Setting) -> list[Row]:
    """What `benchmarks/label_store.py` measures; it has no tiny sizes."""
    if setting.quick or importlib.util.find_spec("benchmarks.label_store") is None:
        log("benchmark label_store: left out")
        return []
    log("benchmark label_store: codecs, then a store of 4 GB; a minute or two")
    measured: list[dict[str, Any]] = importlib.import_module("benchmarks.label_store").run()
    return [{"benchmark": "label_store", "side": "ours", **row} for row in measured]


if __name__ == "__main__":
    main()
