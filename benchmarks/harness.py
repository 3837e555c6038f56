"""Ways of doing the same work, measured in one process and in turn.

In turn, so that a noisy machine slows all of them. A row has the median of some rounds, and as
spread (max − min) / median. Building a side, and its first calls (compilation, the choice of
kernels), are start-up and no part of a round.
"""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cda.config.load import CONFIG
from cda.config.settings import Runtime
from cda.engine.device import Device, open_device
from cda.pipeline.rates import read_devices

Work = Callable[[], float]  # does the work of a call; returns its number of units
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """The device to measure on; `quick` has tiny sizes, which only show that a benchmark runs."""

    device: str
    quick: bool = False

    @property
    def cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.device == "cuda"

    def open_device(self, **runtime: Any) -> Device:
        """The device under the default runtime, or with these values of it."""
        quick = {"compile": "never", "cpu_threads": 1} if self.quick else {}
        values = {"device": self.device, **quick, **runtime}
        return open_device(Runtime.model_validate(values))

    def reference(self) -> Device:
        """The device without the fast path: fp32, nothing compiled, block by block."""
        return self.open_device(precision="fp32", compile="never", blocks=1)

    def bf16(self) -> Device:
        """The device with bf16 matrix units, which the authors' runs did not use."""
        return self.open_device(precision="bf16")

    def synchronise(self) -> None:
        """Wait until the device has finished its queue."""
        if self.cuda:
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Side:
    """One way of doing a case's work: `plain`, or one of the engine's, compared with it."""

    name: str
    build: Callable[[], Work]
    parameters: Mapping[str, object] = field(default_factory=dict)
    operations: float = 0.0  # of a unit, for its share of the device's peak


@dataclass(frozen=True)
class Case:
    """A piece of work and its sides; `what` is its name within the benchmark."""

    benchmark: str
    what: str
    unit: str  # such as images/s; of s, seconds a unit, fewer are better
    sides: tuple[Side, ...]
    parameters: Mapping[str, object] = field(default_factory=dict)
    rounds: int = 5
    seconds: float = 1.0  # a round lasts at least so long
    warm_calls: int = 1
    memory: bool = True


@dataclass
class Timed:
    """A side's measurements: a rate a round, start-up, memory."""

    side: Side
    rates: list[float] = field(default_factory=list)
    started: float = 0.0  # seconds of building and first calls, less those of such calls later
    work: float = 0.0  # units of a call
    peak: int | None = None  # bytes

    @property
    def rate(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rates)

    @property
    def spread(self) -> float:
        """(max − min) / median of the rounds."""
        return (max(self.rates) - min(self.rates)) / self.rate


def measure(
    case: Case,
    setting: Setting,
    on_call: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timed]:
    """Build and warm up every side of `case`, then measure them in turn.

    `on_call` runs after each start-up and each round.
    """
    found, works, begun = [], [], []
    for side in case.sides:
        timed, before = Timed(side), _allocated(setting)
        began = clock()
        work = side.build()
        for _ in range(case.warm_calls):
            timed.work = work()
        setting.synchronise()
        begun.append(clock() - began)
        timed.peak = (
            torch.cuda.max_memory_allocated() - before if setting.cuda and case.memory else None
        )
        found.append(timed)
        works.append(work)
        on_call()
    for _ in range(case.rounds):
        for timed, work in zip(found, works, strict=True):
            timed.rates.append(_rate(work, case, setting, clock))
            on_call()
    for timed, seconds in zip(found, begun, strict=True):
        call = timed.work * timed.rate if case.unit == "s" else timed.work / timed.rate
        timed.started = max(0.0, seconds - case.warm_calls * call)
    return found


def _allocated(setting: Setting) -> int:
    """Bytes of GPU memory that live tensors hold; resets the peak."""
    gc.collect()
    if not setting.cuda:
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _rate(work: Work, case: Case, setting: Setting, clock: Callable[[], float]) -> float:
    """Units a second (or seconds a unit) of at least one call and `case.seconds`."""
    setting.synchronise()
    units, began, now = 0.0, clock(), -1.0
    while now < 0 or now - began < case.seconds:
        units += work()
        setting.synchronise()
        now = clock()
    return (now - began) / units if case.unit == "s" else units / (now - began)


def ratio(case: Case, found: list[Timed], timed: Timed) -> float | None:
    """How many times as fast as `plain` a side's median is; None without a plain side."""
    plain = next((other for other in found if other.side.name == "plain"), None)
    if plain is None:
        return None
    return plain.rate / timed.rate if case.unit == "s" else timed.rate / plain.rate


def rows(case: Case, found: list[Timed], peak_flops: float | None = None) -> list[Row]:
    """The table's rows of a measured case; `peak_flops` is the device's peak a second."""
    return [
        {
            "benchmark": case.benchmark,
            "what": case.what,
            "side": timed.side.name,
            "parameters": " ".join(
                f"{k}={v}" for k, v in {**case.parameters, **timed.side.parameters}.items()
            ),
            "rate": timed.rate,
            "unit": case.unit,
            "ratio": ratio(case, found, timed),
            "spread": timed.spread,
            "repeats": len(timed.rates),
            "work": timed.work,
            "start_seconds": timed.started,
            "peak_memory_mb": timed.peak / 1e6 if timed.peak is not None else None,
            "peak_share": timed.side.operations * timed.rate / peak_flops if peak_flops else None,
        }
        for timed in found
    ]


def peak_flops(setting: Setting) -> float | None:
    """The GPU's bf16 operations a second by its data sheet; None for a CPU or an unknown GPU."""
    if not setting.cuda:
        return None
    name = torch.cuda.get_device_name().lower()
    known = [
        device
        for device in read_devices(CONFIG).devices.values()
        if any(n.lower() in name for n in device.names)
    ]
    return known[0].tflops * 1e12 if known else None


# The kernel never forgets a process's peak of memory, so every side has a process of its own.


def grown(side: Side, calls: int) -> int:
    """Peak growth of this process in bytes while it builds a side and calls it."""
    gc.collect()
    before = _status("VmRSS")
    work = side.build()
    for _ in range(calls):
        work()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    """A value of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1]) * 1024


def peak_elsewhere(case: Case, index: int, setting: Setting) -> int:
    """`grown` of a case's side in a fresh process, which finds the case by its names."""
    command = [sys.executable, "-m", "benchmarks", "--peak", case.benchmark, case.what, str(index)]
    command += ["--device", setting.device, *(["--quick"] if setting.quick else [])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-1])
