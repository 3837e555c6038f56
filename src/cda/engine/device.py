"""The device of a job: precision, threads, and the job's other processes.

Under torchrun (RANK and WORLD_SIZE in the environment) a job is several equal processes, its ranks.
They share every batch. Rank 0 leads: it alone holds the lease, writes files and prints. The ranks
agree with one another through `Device`.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import socket
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from cda.config.settings import Runtime
from cda.engine.compiling import Compiled, supported
from cda.engine.graphs import Graphed
from cda.engine.kernels import library
from cda.engine.memory import release_memory
from cda.engine.provenance import cpu_name, software
from cda.errors import ConfigError
from cda.progress import log
from cda.rng import generator

F = TypeVar("F", bound=Callable[..., Any])
Index = TypeVar("Index", NDArray[np.int64], Tensor)
# steps from which `compile: auto` compiles: compiling takes as long as hundreds of steps
COMPILED_STEPS = 1000
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes that getrusage counts memory in
# how long a rank waits for the others, of which one may be slow to list a data set
RANK_TIMEOUT = timedelta(hours=2)


@dataclass
class Device:
    """Device and precision of this process, and its place among the job's `world` processes."""

    runtime: Runtime
    torch_device: torch.device
    half: torch.dtype | None  # autocast's lower precision; None: float32 throughout
    tf32: bool = False  # whether a GPU's float32 convolutions multiply in TF32
    started: float = field(default_factory=time.monotonic)
    rank: int = 0
    world: int = 1
    control: dist.ProcessGroup | None = None  # of CPUs: `agree` must not wait for GPUs
    compiles: bool = False  # whether a step of the job is compiled or uses our kernels

    def use_precision(self) -> None:
        """Set torch's numerics, which are the process's, to this device's."""
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = self.tf32

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @property
    def native(self) -> bool:
        """Whether frozen networks use `cda.engine.kernels`: float32 on a CPU with a C compiler."""
        plain = self.torch_device.type == "cpu" and self.half is None
        return plain and self.runtime.compile != "never" and library() is not None

    def share(self, batch: Index) -> Index:
        """This rank's share of a global `batch` [B] of image indices.

        A share has at least two images, because batch statistics need them. If there are too few
        images for all ranks, the last ranks repeat two of them with weight 0.
        """
        sharing = _sharing_ranks(len(batch), self.world)
        return batch[self.rank :: sharing] if self.rank < sharing else batch[:2]

    def weight(self, size: int) -> float:
        """Weight of this rank's loss: the ranks' average is then the mean over the batch."""
        if self.world == 1:
            return 1.0
        sharing = _sharing_ranks(size, self.world)
        own = len(range(self.rank, size, sharing)) if self.rank < sharing else 0
        return own * self.world / size

    def agree(self, value: int) -> int:
        """The largest `value` of any rank; waits for all of them."""
        if self.world == 1:
            return value
        largest = torch.tensor(value)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.control)
        return int(largest)

    def total(self, values: Tensor) -> Tensor:
        """The sum of the ranks' `values`, which are on the device; in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def parallel(self, model: nn.Module) -> nn.Module:
        """`model` with gradients averaged over the ranks; all start from rank 0's weights.

        Buffers start equal too and are each rank's own from then on: a rank's running BN statistics
        come from its share of the images.
        """
        if self.world == 1:
            return model
        wrapper = nn.parallel.DistributedDataParallel
        index = None if self.torch_device.type == "cpu" else [self.torch_device.index]
        own = supported(wrapper, forward_sync_buffers=False) or {"broadcast_buffers": False}
        return wrapper(model, device_ids=index, **own)

    def take_buffers(self, model: nn.Module) -> None:
        """Copy rank 0's buffers to every rank, so that all evaluate the same network."""
        for buffer in model.buffers() if self.world > 1 else ():
            dist.broadcast(buffer, 0)

    def leave(self) -> None:
        """Wait for the other ranks and leave their group: the job is done."""
        if self.world > 1:
            self.agree(0)
            dist.destroy_process_group()

    def autocast(self) -> AbstractContextManager[None]:
        """Matrix products in `half`; statistics and losses stay fp32."""
        return torch.autocast(
            self.torch_device.type, dtype=self.half or torch.bfloat16, enabled=self.half is not None
        )

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, channels last."""
        placed: nn.Module = model.to(device=self.torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return placed

    def freeze(self, model: nn.Module) -> nn.Module:
        """The model on the device for forward passes alone.

        Under autocast a step would cast the weights of its matrix products each time; here they are
        cast once.
        """
        model = self.place(model).eval().requires_grad_(False)
        for module in model.modules() if self.half else ():
            if type(module) in (nn.Conv2d, nn.Linear):  # others may compute with their weights
                module.to(self.half)
        return model

    def _pays(self, steps: int) -> bool:
        """Whether a function that a job calls `steps` times is compiled.

        `auto` decides by the steps of the complete job, so that a killed and resumed job has the
        same bytes on a CPU.
        """
        compiling = self.runtime.compile
        return compiling == "always" or (compiling == "auto" and steps >= COMPILED_STEPS)

    def compiled(self, function: F, steps: int, *, length: int | None = None) -> F:
        """`function`, compiled if that pays in a job that calls it `steps` times.

        Compiling changes rounding alone, and on a GPU the draws of dropout. With `length`, a first
        argument of another length (the last batch of an epoch) goes to the plain function instead
        of a compilation of its own.
        """
        if not self._pays(steps):
            return function
        if self.torch_device.type == "cpu" and not any(
            shutil.which(name) for name in ("c++", "g++", "clang++")
        ):
            log("no C++ compiler found: running without compilation (same results, slower)")
            return function

        self.compiles, cuda = True, self.torch_device.type == "cuda"
        return Compiled(function, length, cuda, usable_cores())  # type: ignore[return-value]

    def graphed(self, step: F, steps: int, length: int) -> F:
        """`step`, whose kernels a GPU replays as one launch if it is called so often (`Graphed`).

        Several processes do not: each waits for the others within a step.
        """
        if self.torch_device.type != "cuda" or self.world > 1 or not self._pays(steps):
            return step
        return Graphed(step, length)  # type: ignore[return-value]

    def uncompiled(self) -> Device:
        """The same device for steps that are neither compiled nor recorded."""
        return replace(self, runtime=self.runtime.model_copy(update={"compile": "never"}))

    def forget(self) -> None:
        """Drop compiled functions, and free a GPU's memory, before another model."""
        if self.compiles:
            torch.compiler.reset()
        if self.torch_device.type == "cuda":
            release_memory()

    def provenance(self) -> dict[str, Any]:
        """Host, device, time, memory, versions and code (`cda.engine.provenance`) of this process.

        Run ids depend on none of it.
        """
        cuda = self.torch_device.type == "cuda"
        peak = (
            torch.cuda.max_memory_allocated()
            if cuda
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
        )
        return {
            "host": socket.gethostname(),
            "device": torch.cuda.get_device_name() if cuda else cpu_name(),
            "precision": "bf16" if self.half else "tf32" if self.tf32 else "fp32",
            "compiled": self.compiles,
            "cpu_threads": self.runtime.cpu_threads,
            **({"processes": self.world} if self.world > 1 else {}),
            "seconds": round(time.monotonic() - self.started, 2),
            "peak_memory_bytes": peak,
            "threads": torch.get_num_threads(),
            **software(cuda),
        }


def usable_cores() -> int:
    """Number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _sharing_ranks(size: int, world: int) -> int:
    """How many ranks have a share of a batch of `size`."""
    return max(1, min(world, size // 2))


def world_size() -> int:
    """Number of processes that torchrun started for this job; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE") or 1) if "RANK" in os.environ else 1


def open_device(runtime: Runtime, stage: str = "") -> Device:
    """Set threads and numerics of this process, and join the job's other processes.

    `stage` chooses among precisions that are configured by stage. Raises ConfigError if
    `runtime.device` is cuda and there is no GPU, or if there are fewer GPUs than processes.
    """
    torch.set_num_threads(runtime.cpu_threads)
    available = runtime.device != "cpu" and torch.cuda.is_available()
    if runtime.device == "cuda" and not available:
        raise ConfigError(
            "config key runtime.device: cuda, but torch sees no GPU; use auto or cpu, or fix "
            "the driver"
        )
    device = torch.device("cuda" if available else "cpu")
    if device.type == "cpu":
        _reuse_freed_memory()
    torch.backends.cudnn.benchmark = True
    half, tf32 = precision_on(device, runtime.precision_of(stage))
    opened = Device(runtime, device, half, tf32)
    if (world := world_size()) > 1:
        opened = _join_ranks(opened, world)
    opened.use_precision()
    return opened


def _reuse_freed_memory() -> None:
    """Make glibc retain freed memory: else every step faults the same pages in again."""
    with suppress(AttributeError, OSError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest value that glibc accepts
        allocator.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _join_ranks(opened: Device, world: int) -> Device:
    """The device of this process, one of `world`: a GPU of its own, or the CPU."""
    device = opened.torch_device
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK") or 0)
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"torchrun --nproc-per-node: process {local} of this node has no GPU of its own, "
                f"there are {torch.cuda.device_count()}; start as many processes as there are GPUs"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=RANK_TIMEOUT)
    control = dist.new_group(backend="gloo", timeout=RANK_TIMEOUT)
    return replace(opened, torch_device=device, rank=rank, world=world, control=control)


def precision_on(device: torch.device, precision: str) -> tuple[torch.dtype | None, bool]:
    """Autocast's lower precision (None: float32), and whether convolutions multiply in TF32.

    Logs if the device has no units for the `precision` that is configured, and runs in fp32.
    """
    cuda = device.type == "cuda"
    if precision == "bf16":
        # without bf16 units a training step on a CPU took 13 times as long
        able = (
            torch.cuda.is_bf16_supported(including_emulation=False)
            if cuda
            else bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        )
    else:
        able = cuda and torch.cuda.get_device_capability()[0] >= 8
    if precision in ("bf16", "tf32") and not able:
        log(f"this {device.type} has no {precision}: running in fp32")
    return (
        torch.bfloat16 if precision == "bf16" and able else None,
        precision in ("auto", "tf32") and able,
    )


def seed_everything(*purpose: object) -> None:
    """Seed torch's own generators (weights, dropout) for `purpose`."""
    torch.manual_seed(int(generator(*purpose).integers(2**63)))
