"""A first look at a GPU: rates of validate and recover, and where the time of a step goes.

Prints, for each, milliseconds a step, images a second, the share of the card's peak, start-up and
memory; then kernels a step, how long the GPU is busy, what the host calls, and the longest kernels.
docs/gpu.md says what to expect. On a CPU the sizes are tiny, which only shows that it runs.

Usage: python -m tools.first_gpu [--device cpu] [--only recover] [--seconds 8]
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from benchmarks import recover, squeeze, validate
from benchmarks.harness import Setting, Work, peak_flops
from torch.profiler import ProfilerActivity, profile

STAGES = ("validate", "recover")
CALLS = (
    "cudaLaunch",
    "cudaGraphLaunch",
    "cudaMemcpy",
    "cudaStreamSync",
    "cudaDeviceSync",
    "cuLaunch",
)
LONGEST = 14  # kernels that are printed
WARM_CALLS = 2  # the first compiles, records and chooses kernels


@dataclass(frozen=True)
class Look:
    """A stage's step to look at; a call of the work makes `steps` of them."""

    name: str
    steps: int
    images: int  # of a step
    operations: float  # of an image
    work: partial[Work]  # builds it


def looks(setting: Setting, only: Sequence[str]) -> Iterator[Look]:
    """Post-training at batch 8, and recovery of one block and of ten, in TF32 and in bf16."""
    precisions = {"": setting.open_device, **({" in bf16": setting.bf16} if setting.cuda else {})}
    training = squeeze.Problem(images=800, batch_size=8, width=1.0)
    block = recover.Problem(32, steps=20)
    if not setting.cuda:
        training = squeeze.Problem(images=16, batch_size=8, resolution=16, classes=4, width=0.125)
        block = recover.Problem(16, width=0.125, images=4, classes=4, steps=2)
    for suffix, open_device in precisions.items():
        if "validate" in only:
            yield Look(
                f"validate, {training.resolution} px, batch 8{suffix}", training.images // 8, 8,
                training.operations, partial(validate.engine, training, open_device),
            )  # fmt: skip
        for blocks in (1, 10) if "recover" in only else ():
            yield Look(
                f"recover, {block.resolution} px, blocks packed: {blocks}{suffix}", block.steps,
                block.images * blocks, block.operations,
                partial(recover.engine, block, open_device, blocks),
            )  # fmt: skip


def measure(look: Look, setting: Setting, seconds: float) -> tuple[Work, float, float]:
    """A look's warm work, its seconds a step, and those of building and warming it up."""
    began = time.monotonic()
    work = look.work()
    for _ in range(WARM_CALLS):
        work()
    setting.synchronise()
    ready = time.monotonic()
    calls, spent = 0, 0.0
    while spent < seconds or not calls:
        work()
        setting.synchronise()
        calls, spent = calls + 1, time.monotonic() - ready
    return work, spent / calls / look.steps, ready - began


def report_kernels(look: Look, work: Work, setting: Setting, a_step: float) -> None:
    """Print what one profiled call launches and how long the GPU computes."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.cuda else [])]
    with profile(activities=activities) as seen:
        work()
        setting.synchronise()
    kernels, busy, calls = 0, 0.0, Counter[str]()
    for event in seen.events() or ():
        if event.device_type.name == "CUDA":
            kernels, busy = kernels + 1, busy + event.time_range.elapsed_us() / 1e6
        elif event.name.startswith(CALLS):
            calls[event.name] += 1
    busy /= look.steps
    print(f"   a step: {kernels / look.steps:.0f} kernels, the GPU computes {1e3 * busy:.3f} ms")
    print(f"   busy: {busy / a_step:.0%} of a step's time without the profiler")
    print(f"   the host's calls a step: { {k: n / look.steps for k, n in calls.most_common()} }")
    table = seen.key_averages().table(
        sort_by="self_device_time_total", row_limit=LONGEST, max_name_column_width=60
    )
    print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Look at the requested stages on the requested device."""
    parser = argparse.ArgumentParser(prog="python -m tools.first_gpu", description=__doc__)
    present = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=present)
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--seconds", type=float, default=8.0, help="of a measurement")
    options = parser.parse_args(arguments)
    setting = Setting(options.device, quick=options.device == "cpu")
    peak = peak_flops(setting)
    for look in looks(setting, options.only):
        if setting.cuda:
            torch.compiler.reset()
            torch.cuda.reset_peak_memory_stats()
        work, a_step, start = measure(look, setting, options.seconds)
        rate = look.images / a_step
        share = f", {look.operations * rate / peak:.1%} of the bf16 peak" if peak else ""
        print(f"\n{look.name}: {1e3 * a_step:.3f} ms a step, {rate:,.0f} images/s{share}")
        print(f"   start-up {start:.0f} s")
        if setting.cuda:
            print(f"   memory {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")
            report_kernels(look, work, setting, a_step)


if __name__ == "__main__":
    main()
