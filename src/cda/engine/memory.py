"""How many class blocks go through the network together: as many as a GPU's memory holds, on a CPU
one.

Memory grows linearly with the blocks, so that one block's step on the device tells what any number
will need.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cda.config.recipe import Recover
from cda.config.settings import Dataset
from cda.engine.recovery import Block, Objective, Recovery

# of the free memory: a prediction may be wrong by 15 % (what we aim at; not measured on a GPU yet)
FILLED = 0.85


@dataclass(frozen=True)
class Memory:
    """What recovery needs of a GPU, in bytes.

    `base` for the model, `block` for each class block.
    """

    base: int
    block: int

    def of(self, blocks: int) -> int:
        """Peak memory with `blocks` packed."""
        return self.base + blocks * self.block

    def most(self, free_bytes: int) -> int:
        """The largest number of blocks that `room` bytes hold with some to spare; one at least.

        >>> Memory(base=10, block=100).most(1000)
        8
        """
        return max(1, int((FILLED * free_bytes - self.base) // self.block))


def measure_memory(objective: Objective, block: Block, recipe: Recover, data: Dataset) -> Memory:
    """What one block needs on this GPU.

    The first step, which compiles and chooses algorithms, does not count.
    """
    torch.cuda.empty_cache()
    base = torch.cuda.memory_allocated()
    recovery = Recovery(objective, [block], recipe, data)
    recovery.step()
    torch.cuda.reset_peak_memory_stats()
    recovery.step()
    torch.cuda.synchronize()
    return Memory(base, torch.cuda.max_memory_allocated() - base)


def free_bytes() -> int:
    """Bytes that this process may have on its GPU: those it has and those that nobody has."""
    return torch.cuda.memory_allocated() + torch.cuda.mem_get_info()[0]
