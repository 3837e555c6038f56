"""Functions compiled by torch.compile, which fall back to plain torch where they cannot be.

`torch._dynamo` and `torch._inductor` take a second or two to import, so that they are imported when
something is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any

import torch

from cda.progress import log

Function = Callable[..., Any]


class Compiled:
    """`plain`, compiled for first arguments of `length` (None: any length).

    Arguments of another length go to `plain` itself. A function that the compiler refuses is
    reported once and runs as it is. Each function has its own limit of recompilations, so that the
    models of one job do not exhaust one another's. On a GPU `graphs` replays the function's kernels
    as one launch.
    """

    def __init__(
        self, plain: Function, length: int | None, cuda: bool, graphs: bool, threads: int
    ) -> None:
        import torch._functorch.config
        import torch._inductor.config
        from torch._dynamo.exc import TorchDynamoException

        torch._inductor.config.compile_threads = threads
        # a backward pass that cannot be compiled fails at the first call, not later
        torch._functorch.config.force_non_lazy_backward_lowering = True
        # on a CPU dropout draws the masks that it draws uncompiled
        options = {"triton.cudagraphs": graphs} if cuda else {"fallback_random": True}
        self.plain, self.length, self.graphs = plain, length, graphs
        self.fast: Function | None = torch.compile(  # type: ignore[call-overload]
            plain, dynamic=False, options=options, isolate_recompiles=True
        )
        self._failure = TorchDynamoException

    def __call__(self, *arguments: Sized) -> Any:
        """What `plain` returns, up to rounding."""
        if self.fast is None or (self.length is not None and len(arguments[0]) != self.length):
            return self.plain(*arguments)
        try:
            if self.graphs:
                torch.compiler.cudagraph_mark_step_begin()
            return self.fast(*arguments)
        except self._failure as error:
            self.fast = None
            reason = " ".join(str(error).split("\n")[:2])  # the first line alone has no cause
            log(
                f"torch cannot compile here ({reason}): running without compilation (same "
                "results, slower)"
            )
        return self.plain(*arguments)
