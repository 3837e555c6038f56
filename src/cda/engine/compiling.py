"""Functions compiled by torch.compile, which fall back to plain torch where they cannot be.

`torch._dynamo` and `torch._inductor` take a second or two to import, so that they are imported when
something is compiled.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sized
from typing import Any

from cda.engine.memory import out_of_memory
from cda.progress import log

Function = Callable[..., Any]
RECOMPILATIONS = 64  # of all functions of a job together, where torch cannot count them apart


def supported(function: Function, **options: Any) -> dict[str, Any]:
    """Those of `options` that this version of torch knows as parameters of `function`."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in known}


class Compiled:
    """`plain`, compiled for first arguments of `length` (None: any length).

    Arguments of another length go to `plain` itself. A function that the compiler refuses is
    reported once and runs as it is. Each function has its own limit of recompilations, so that the
    models of one job do not exhaust one another's. Raises torch's error where memory runs out.
    """

    def __init__(self, plain: Function, length: int | None, cuda: bool, threads: int) -> None:
        import torch._dynamo.config
        import torch._functorch.config
        import torch._inductor.config
        from torch._dynamo.exc import TorchDynamoException

        torch._inductor.config.compile_threads = threads
        # a backward pass that cannot be compiled fails at the first call, not later
        torch._functorch.config.force_non_lazy_backward_lowering = True
        apart = supported(torch.compile, isolate_recompiles=True)
        if not apart:
            torch._dynamo.config.recompile_limit = RECOMPILATIONS
        # On a GPU small kernels, such as those that count a BN layer's batches, are launched
        # together. On a CPU dropout draws the masks that it draws uncompiled.
        options: dict[str, Any] = {"combo_kernels": True} if cuda else {"fallback_random": True}
        self.plain, self.length = plain, length
        self.fast: Function | None = torch.compile(plain, dynamic=False, options=options, **apart)
        self._failure = TorchDynamoException

    def __call__(self, *arguments: Sized) -> Any:
        """What `plain` returns, up to rounding."""
        if self.fast is None or (self.length is not None and len(arguments[0]) != self.length):
            return self.plain(*arguments)
        try:
            return self.fast(*arguments)
        except self._failure as error:
            if out_of_memory(error):
                raise
            self.fast = None
            reason = " ".join(str(error).split("\n")[:2])  # the first line alone has no cause
            log(
                f"torch cannot compile here ({reason}): running without compilation (same "
                "results, slower)"
            )
        return self.plain(*arguments)
