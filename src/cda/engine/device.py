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
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from cda.config.settings import Runtime
from cda.engine.compiling import Compiled
from cda.engine.kernels import library
from cda.engine.provenance import cpu_name, software
from cda.errors import ConfigError
from cda.progress import log
from cda.rng import generator

F = TypeVar("F", bound=Callable[..., Any])
Index = TypeVar("Index", NDArray[np.int64], Tensor)
# steps from which `compile: auto` compiles: compiling takes as long as hundreds of steps
COMPILED_STEPS = 1000
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
# how long a rank waits for the others, of which one may be slow to list a data set
RANK_TIMEOUT = timedelta(hours=2)


@dataclass
class Device:
    """Device and precision of this process, and its place among the job's `world` processes."""

    runtime: Runtime
    torch_device: torch.device
    half: torch.dtype | None  # autocast's lower precision; None: fp32 throughout
    started: float = field(default_factory=time.monotonic)
    rank: int = 0
    world: int = 1
    control: dist.ProcessGroup | None = None  # of CPUs: `agree` must not wait for GPUs
    compiles: bool = False  # whether a step of the job is compiled or uses our kernels

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
        index = None if self.torch_device.type == "cpu" else [self.torch_device.index]
        return nn.parallel.DistributedDataParallel(
            model, device_ids=index, forward_sync_buffers=False
        )

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

    def compiled(
        self, function: F, steps: int, *, length: int | None = None, graphs: bool = False
    ) -> F:
        """`function`, compiled if that pays in a job that calls it `steps` times.

        Compiling changes rounding alone, and on a GPU the draws of dropout. `auto` decides by the
        `steps` of the complete job, so that a killed and resumed job has the same bytes on a CPU.
        With `length`, a first argument of another length (the last batch of an epoch) goes to the
        plain function instead of a compilation of its own.

        `graphs` replays a GPU's kernels as one launch, which small batches need; the next call
        overwrites the function's result and the gradients.
        """
        compiling = self.runtime.compile
        if compiling == "never" or (compiling == "auto" and steps < COMPILED_STEPS):
            return function
        if self.torch_device.type == "cpu" and not any(
            shutil.which(name) for name in ("c++", "g++", "clang++")
        ):
            log("no C++ compiler found: running without compilation (same results, slower)")
            return function

        self.compiles, cuda = True, self.torch_device.type == "cuda"
        graphs = graphs and cuda and self.world == 1
        return Compiled(function, length, cuda, graphs, self.runtime.cpu_threads)  # type: ignore[return-value]

    def forget(self) -> None:
        """Drop compiled functions and the GPU memory of their graphs, before another model."""
        if self.compiles:
            torch.compiler.reset()

    def provenance(self) -> dict[str, Any]:
        """Host, device, time, memory, versions and code (`cda.engine.provenance`) of this process.

        Run ids depend on none of it.
        """
        cuda = self.torch_device.type == "cuda"
        peak = (
            torch.cuda.max_memory_allocated()
            if cuda
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        return {
            "host": socket.gethostname(),
            "device": torch.cuda.get_device_name() if cuda else cpu_name(),
            "precision": "bf16" if self.half else "fp32",
            "compiled": self.compiles,
            "cpu_threads": self.runtime.cpu_threads,
            **({"processes": self.world} if self.world > 1 else {}),
            "seconds": round(time.monotonic() - self.started, 2),
            "peak_memory_bytes": peak,
            "threads": torch.get_num_threads(),
            **software(cuda),
        }


def _sharing_ranks(size: int, world: int) -> int:
    """How many ranks have a share of a batch of `size`."""
    return max(1, min(world, size // 2))


def world_size() -> int:
    """Number of processes that torchrun started for this job; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE") or 1) if "RANK" in os.environ else 1


def open_device(runtime: Runtime) -> Device:
    """Set threads and numerics of this process, and join the job's other processes.

    Raises ConfigError if `runtime.device` is cuda and there is no GPU, or if there are fewer GPUs
    than processes.
    """
    torch.set_num_threads(runtime.cpu_threads)
    available = torch.cuda.is_available()
    if runtime.device == "cuda" and not available:
        raise ConfigError(
            "config key runtime.device: cuda, but torch sees no GPU; use auto or cpu, or fix "
            "the driver"
        )
    device = torch.device("cuda" if available and runtime.device != "cpu" else "cpu")
    if device.type == "cpu":
        _reuse_freed_memory()
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    world = world_size()
    if world == 1:
        return Device(runtime, device, half_precision(runtime, device))
    return _join_ranks(runtime, device, world)


def _reuse_freed_memory() -> None:
    """Make glibc retain freed memory: else every step faults the same pages in again."""
    with suppress(AttributeError, OSError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest value that glibc accepts
        allocator.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _join_ranks(runtime: Runtime, device: torch.device, world: int) -> Device:
    """The device of this process, one of `world`: a GPU of its own, or the CPU."""
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
    return Device(
        runtime, device, half_precision(runtime, device), rank=rank, world=world, control=control
    )


def half_precision(runtime: Runtime, device: torch.device) -> torch.dtype | None:
    """bf16 where `runtime.precision` wants it and the device has units for it; else None."""
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # without bf16 units a training step took 13 times as long
        able = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if runtime.precision == "bf16" and not able:
        log(f"this {device.type} has no bf16: running in fp32")
    wanted = runtime.precision == "bf16" or (runtime.precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if wanted and able else None


@contextmanager
def enough_memory(problem: Callable[[], str]) -> Iterator[None]:
    """Raise ConfigError with `problem()` where the device or the host runs out of memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise ConfigError(problem()) from None


def out_of_memory(error: BaseException) -> bool:
    """Whether the error means that memory ran out; torch has no class of its own for the host."""
    named = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return named or "can't allocate memory" in str(error)


def seed_everything(*purpose: object) -> None:
    """Seed torch's own generators (weights, dropout) for `purpose`."""
    torch.manual_seed(int(generator(*purpose).integers(2**63)))
