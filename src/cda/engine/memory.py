"""How many class blocks go through the network together: on a CPU one, on a GPU what memory holds.

Memory grows linearly with the number of blocks, so that two steps of one block give the need of any
number. The number is recorded in the work folder: a job that is started again packs the same blocks
and can use its checkpoint, whatever memory is free by then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from cda.errors import ConfigError
from cda.files import read_json, write_json
from cda.progress import log

# share of the free memory that is used: our estimate may be 15 % too low (not measured on a GPU)
FILLED = 0.85


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

    The first step does not count, because it compiles and chooses algorithms.
    """
    torch.cuda.empty_cache()
    base = torch.cuda.memory_allocated()
    step = begin()
    step()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return Memory(base, torch.cuda.max_memory_allocated() - base)


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
    device: str  # type of the torch device

    def choose(self, measure: Callable[[], Memory]) -> int:
        """The setting; else 1 on a CPU, the recorded number, or what fits by `measure()`.

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
        except torch.OutOfMemoryError:
            return self.halve(1)
        count = min(self.blocks, needed.most(free_bytes()))
        log(f"{self.label}: {count} class blocks together, {needed.of(count) / 1e9:.1f} GB")
        write_json(record, {"together": count})
        return count

    def halve(self, count: int) -> int:
        """Half of `count`, recorded; raises ConfigError if a single block did not fit."""
        if self.device == "cuda":
            torch.cuda.empty_cache()
        if count == 1:
            raise ConfigError(
                f"{self.label}: a class block of {self.block_size} does not fit into memory; "
                f"lower recover.block_size or use a {self.device} with more"
            )
        fewer = count // 2
        log(f"{self.label}: {count} class blocks do not fit into memory; going on with {fewer}")
        write_json(self.work / "packed.json", {"together": fewer})
        return fewer
