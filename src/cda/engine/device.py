"""The machine a job runs on: device, precision, threads, and the other processes of the job.

Under torchrun (RANK and WORLD_SIZE in the environment) a job is several equal processes, its ranks.
They share every batch; rank 0 leads: it alone holds the lease, writes and tells. What they have to
agree on goes through `Machine`.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch._functorch.config
import torch._inductor.config
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from cda.config.settings import Runtime
from cda.engine.kernels import library
from cda.engine.provenance import cpu_name, software
from cda.errors import ConfigError
from cda.progress import log
from cda.rng import generator

F = TypeVar("F", bound=Callable[..., Any])
Index = TypeVar("Index", NDArray[np.int64], Tensor)
# steps: compiling takes as long as hundreds of them, and the compiler's cache serves the next job
PAYS = 1000
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
PATIENCE = timedelta(
    hours=2
)  # how long a rank waits for the others: one of them may be slow to list a data set


@dataclass
class Device:
    """Device and precision of this process, and its place among the job's `world` processes."""

    runtime: Runtime
    torch_device: torch.device
    half: torch.dtype | None  # what autocast lowers to, None for fp32 throughout
    started: float = field(default_factory=time.monotonic)
    rank: int = 0
    world: int = 1
    control: dist.ProcessGroup | None = (
        None  # of the ranks' CPUs: agreeing must not wait for the GPUs
    )
    compiles: bool = False  # whether a step of the job was compiled

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def native(self) -> bool:
        """Whether frozen networks may and can use the kernels of `cda.engine.kernels`.

        In float32 on a CPU.
        """
        plain = self.torch_device.type == "cpu" and self.half is None
        return plain and self.runtime.compile != "never" and library() is not None

    def share(self, batch: Index) -> Index:
        """What this rank sees of a global `batch` [B] of image indices.

        A rank's share has two images at least, since batch statistics need them; where there are
        too few for all, the last ranks see images of others with weight 0.
        """
        takers = _takers(len(batch), self.world)
        return batch[self.rank :: takers] if self.rank < takers else batch[:2]

    def weight(self, size: int) -> float:
        """What a rank's mean loss counts in the ranks' average, so that it is the mean over a batch
        of `size`.
        """
        if self.world == 1:
            return 1.0
        takers = _takers(size, self.world)
        own = len(range(self.rank, size, takers)) if self.rank < takers else 0
        return own * self.world / size

    def agree(self, value: int) -> int:
        """The largest `value` of any rank; waits for all of them."""
        if self.world == 1:
            return value
        largest = torch.tensor(value)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.control)
        return int(largest)

    def total(self, values: Tensor) -> Tensor:
        """The sum of the ranks' `values`, which lie on the device."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def parallel(self, model: nn.Module) -> nn.Module:
        """`model` with its gradients averaged over the ranks, all of which start from rank 0's
        weights and buffers.

        From then on buffers are each rank's own: running BN statistics are of the images that the
        rank saw.
        """
        if self.world == 1:
            return model
        index = None if self.torch_device.type == "cpu" else [self.torch_device.index]
        return nn.parallel.DistributedDataParallel(
            model, device_ids=index, forward_sync_buffers=False
        )

    def take_buffers(self, model: nn.Module) -> None:
        """Give every rank rank 0's buffers, to evaluate one and the same network."""
        for buffer in model.buffers() if self.world > 1 else ():
            dist.broadcast(buffer, 0)

    def leave(self) -> None:
        """Part from the other ranks: the job is done."""
        if self.world > 1:
            self.agree(0)
            dist.destroy_process_group()

    def autocast(self) -> AbstractContextManager[None]:
        """Matrix units in `half`; statistics and losses stay fp32."""
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
        """`function` compiled where that pays in a job that calls it `steps` times; as it is
        otherwise.

        A compiled function differs in rounding alone, on a GPU also in what dropout draws. `auto`
        decides by the whole job's `steps`, so that bytes on a CPU depend on nothing that happened
        meanwhile. With `length`, calls with a first argument of another length, such as the last
        batch of an epoch, are not worth a compilation of their own.

        `graphs` replays a GPU's kernels as one launch, for small batches: what the function
        returns, and the gradients, are overwritten by its next call.
        """
        compiling = self.runtime.compile
        if compiling == "never" or (compiling == "auto" and steps < PAYS):
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
        """Let go of what was compiled, and of the GPU memory that its graphs hold.

        The next model is another.
        """
        if self.compiles:
            torch.compiler.reset()

    def provenance(self) -> dict[str, Any]:
        """Where, with what and how long.

        Nothing in it changes a result on the same kind of machine.
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


def _takers(size: int, world: int) -> int:
    """How many ranks have a share of a batch of `size`."""
    return max(1, min(world, size // 2))


def world_size() -> int:
    """How many processes torchrun started for this job; 1 without it."""
    return int(os.environ.get("WORLD_SIZE") or 1) if "RANK" in os.environ else 1


def open_device(runtime: Runtime) -> Device:
    """Set threads and numerics for this process, and join the job's others.

    Raises ConfigError if the GPU that was asked for is not there, or fewer GPUs than processes.
    """
    torch.set_num_threads(runtime.cpu_threads)
    available = torch.cuda.is_available()
    if runtime.device == "cuda" and not available:
        raise ConfigError(
            "config key runtime.device: cuda, but torch sees no GPU; use auto or cpu, or mend "
            "the driver"
        )
    device = torch.device("cuda" if available and runtime.device != "cpu" else "cpu")
    if device.type == "cpu":
        _keep_memory()
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    world = world_size()
    if world == 1:
        return Device(runtime, device, _half(runtime, device))
    return _joined(runtime, device, world)


def _keep_memory() -> None:
    """Let glibc keep what a step freed for the next, which would otherwise fault the same pages in
    again.
    """
    with suppress(AttributeError, OSError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most it takes
        allocator.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _joined(runtime: Runtime, device: torch.device, world: int) -> Device:
    """This process among the `world` that torchrun started, on a GPU of its own or on the CPU."""
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK") or 0)
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            found = (
                f"process {local} of this node has no GPU of its own, there are "
                f"{torch.cuda.device_count()}"
            )
            raise ConfigError(
                f"torchrun --nproc-per-node: {found}; start as many processes as there are GPUs"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    control = dist.new_group(backend="gloo", timeout=PATIENCE)
    return Device(runtime, device, _half(runtime, device), rank=rank, world=world, control=control)


def _half(runtime: Runtime, device: torch.device) -> torch.dtype | None:
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = bool(
            torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )  # without it a training step took 13 times as long
    if runtime.precision == "bf16" and not able:
        log(f"this {device.type} has no bf16: running in fp32")
    wanted = runtime.precision == "bf16" or (runtime.precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if wanted and able else None


@contextmanager
def enough_memory(problem: Callable[[], str]) -> Iterator[None]:
    """Raises ConfigError with `problem()` where the device, or the host, has no memory left."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise ConfigError(problem()) from None


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that there is no memory left.

    Torch has a class for a GPU's and none for the host's.
    """
    return isinstance(
        error, torch.OutOfMemoryError | MemoryError
    ) or "can't allocate memory" in str(error)


def seed_everything(*purpose: object) -> None:
    """Seed torch's own generators (weights, dropout) for `purpose`."""
    torch.manual_seed(int(generator(*purpose).integers(2**63)))


Function = Callable[..., Any]


class Compiled:
    """`plain`, compiled for first arguments of `length` (None: of any) and called as it is for
    others.

    What the compiler cannot take is said once and runs as it is. Each function has its own
    allowance of recompilations, so that the models of one job do not use up each other's.
    """

    def __init__(
        self, plain: Function, length: int | None, cuda: bool, graphs: bool, threads: int
    ) -> None:
        torch._inductor.config.compile_threads = threads
        torch._functorch.config.force_non_lazy_backward_lowering = (
            True  # a backward pass fails now or not at all
        )
        options = (
            {"triton.cudagraphs": graphs} if cuda else {"fallback_random": True}
        )  # dropout's own masks on a CPU
        self.plain, self.length, self.graphs = plain, length, graphs
        self.fast: Function | None = torch.compile(  # type: ignore[call-overload]
            plain, dynamic=False, options=options, isolate_recompiles=True
        )

    def __call__(self, *arguments: Sized) -> Any:
        """What `plain` returns, up to rounding."""
        if self.fast is None or (self.length is not None and len(arguments[0]) != self.length):
            return self.plain(*arguments)
        try:
            if self.graphs:
                torch.compiler.cudagraph_mark_step_begin()
            return self.fast(*arguments)
        except TorchDynamoException as error:
            self.fast = None
            reason = " ".join(str(error).split("\n")[:2])  # the first line tells whose error it is
            log(
                f"torch cannot compile here ({reason}): running without compilation (same "
                "results, slower)"
            )
        return self.plain(*arguments)
