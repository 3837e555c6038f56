"""Functions compiled by torch, with their plain twins beside them for whatever the compiler cannot take."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any

import torch
import torch._functorch.config
import torch._inductor.config
from torch._dynamo.exc import TorchDynamoException

from cda.progress import say

Function = Callable[..., Any]


class Compiled:
    """`plain`, compiled for first arguments of `length` (None: of any) and called as it is for others.

    What the compiler cannot take is said once and runs as it is. Each function has its own allowance of recompilations,
    so that the models of one job do not use up each other's.
    """

    def __init__(self, plain: Function, length: int | None, cuda: bool, graphs: bool, threads: int) -> None:
        torch._inductor.config.compile_threads = threads
        torch._functorch.config.force_non_lazy_backward_lowering = True  # a backward pass fails now or not at all
        options = {"triton.cudagraphs": graphs} if cuda else {"fallback_random": True}  # dropout's own masks on a CPU
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
            say(f"torch cannot compile here ({reason}): running without compilation (same results, slower)")
        return self.plain(*arguments)
