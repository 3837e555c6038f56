"""Memory that runs out, and how many class blocks it holds: on a CPU one, on a GPU what fits.

Memory grows linearly with the number of blocks, so that two steps of one block give the need of any
number. The number is recorded in the work folder: a job that is started again packs the same blocks
and can use its checkpoint, whatever memory is free by then.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from cda.errors import ConfigError
from cda.files import read_json, write_json
from cda.progress import log

# share of the free memory that is used: our estimate may be 15 % too low (not measured on a GPU)
FILLED = 0.85
# images and optimiser state of packed blocks: a checkpoint copies them to the host and to the disk
STATE_BYTES = 1.5e9
# torch has classes of its own for a few of these; the compiler wraps them in others
EXHAUSTED = re.compile(
    r"can't allocate memory|out of memory|(CUBLAS|CUDNN)_STATUS_\w*ALLOC\w*_FAILED"
)


def out_of_memory(error: BaseException) -> bool:
    """Whether the error means that the memory of the device or of the host ran out."""
    named = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return named or EXHAUSTED.search(str(error)) is not None


@contextmanager
def enough_memory(problem: Callable[[], str]) -> Iterator[None]:
    """Raise ConfigError with `problem()` where the device or the host runs out of memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise ConfigError(problem()) from None


def release_memory() -> None:
    """Free what nothing refers to any more, cycles included, and return a GPU's cached memory."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Memory:
    """Bytes of GPU memory that recovery needs: `base` for the model, `block` for each block."""

    base: int
    block: int

    def of(self, blocks: int) -> int:
        """Peak memory with `blocks` packed."""
        return self.base + blocks * self.block

    def most(self, free: int) -> int:
        """The largest number of blocks that fit into `free` bytes with a reserve; at least one.

        >>> Memory(base=10, block=100).most(1000)
        8
        """
        return max(1, int((FILLED * free - self.base) // self.block))


def measure_memory(begin: Callable[[], Callable[[], None]]) -> Memory:
    """Memory of one block on this GPU, where `begin()` returns the function that makes a step.

    The first step does not count, because it chooses algorithms.
    """
    release_memory()
    base = torch.cuda.memory_allocated()
    step = begin()
    step()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    needed = Memory(base, torch.cuda.max_memory_allocated() - base)
    del step
    release_memory()
    return needed


def free_bytes() -> int:
    """Bytes of GPU memory that this process has, plus those that are free."""
    return torch.cuda.memory_allocated() + torch.cuda.mem_get_info()[0]


@dataclass
class Packing:
    """The number of blocks that are packed, and its record `packed.json` in the work folder."""

    work: Path
    label: str  # the job, for messages
    setting: int | Literal["auto"]  # runtime.blocks
    blocks: int  # of the part
    block_size: int
    state: int  # bytes of a block's images and optimiser state
    device: str  # type of the torch device

    def choose(self, measure: Callable[[], Memory]) -> int:
        """The setting; else 1 on a CPU, the recorded number, or what fits by `measure()`.

        As many groups as it takes are of equal size, so that the step is compiled once for all.
        Raises ConfigError if not even one block fits.
        """
        record = self.work / "packed.json"
        if self.setting != "auto":
            return self.setting
        if self.device == "cpu":
            return 1
        if record.is_file():
            return int(read_json(record, "the number of packed blocks")["together"])
        try:
            needed = measure()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return self.halve(1)
        most = min(needed.most(free_bytes()), max(1, int(STATE_BYTES // self.state)))
        groups = -(-self.blocks // most)
        count = -(-self.blocks // groups)
        log(f"{self.label}: {count} class blocks together, {needed.of(count) / 1e9:.1f} GB")
        write_json(record, {"together": count})
        return count

    def halve(self, count: int) -> int:
        """Half of `count`, recorded; raises ConfigError if a single block did not fit."""
        release_memory()
        if count == 1:
            raise ConfigError(
                f"{self.label}: a class block of {self.block_size} does not fit into memory; "
                f"lower recover.block_size or use a {self.device} with more"
            )
        fewer = count // 2
        log(f"{self.label}: {count} class blocks do not fit into memory; going on with {fewer}")
        write_json(self.work / "packed.json", {"together": fewer})
        return fewer
