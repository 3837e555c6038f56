"""The compiled steps on a CUDA device without data: what a GPU would be given, by Inductor's code.

The real Dynamo, AOTAutograd and Inductor compile for an H100; Triton kernels are counted instead of
compiled. A row is a step before it is recorded as a CUDA graph; `recorded` says whether it could
be. What launches no Triton kernel is named on stderr. One torch's internals are patched, so that
this is no part of the tests.

Usage: python -m tests.fake_gpu.compiled [STAGE …]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch._functorch.config
import torch._inductor.config
from tests.fake_gpu import eager
from tests.fake_gpu.fake_cuda import fake_cuda
from torch._dynamo.utils import counters
from torch._inductor.async_compile import AsyncCompile
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

LAUNCHED: Counter[str] = Counter()  # Triton kernels
SEEN = 1  # the step that is counted, from 0: not yet recorded, and not an epoch's first


class Driver:
    """Triton's view of an H100."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_device_interface(self) -> Any:
        return torch.cuda

    def get_current_stream(self, _device: int = 0) -> int:
        return 0

    @staticmethod
    def is_active() -> bool:
        return True


class Kernel:
    """A Triton kernel that counts its launches."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, *_arguments: Any, **_options: Any) -> None:
        LAUNCHED[self.name] += 1


def install() -> None:
    """Let Inductor generate code for a GPU that is not there."""
    inductor = torch._inductor.config
    inductor.joint_graph_constant_folding = inductor.shape_padding = False  # both would compute
    inductor.force_disable_caches = True
    torch.accelerator.is_available = lambda: False
    torch.accelerator.current_accelerator = lambda *_, **__: None
    driver.set_active(Driver())
    torch._C._cuda_getCurrentRawStream = lambda _: 0
    guards = torch._C._dynamo.guards
    guards._empty_strided_cuda = lambda size, stride, dtype: torch.empty_strided(
        size, stride, dtype=dtype, device="cuda"
    )
    guards._reinterpret_tensor = lambda tensor, size, stride, offset=0: torch.as_strided(
        tensor, size, stride, tensor.storage_offset() + offset
    )
    AsyncCompile.triton = lambda _self, name, _source, **_options: Kernel(name)


full = partial(eager.resnet, width=1.0)
training = partial(eager.resnet, frozen=False, width=1.0)
STAGES: dict[str, Callable[[], eager.Phases]] = {
    "recover, ResNet-18, 1 block": partial(eager.recover, 1, network=full, steps=6),
    "recover, ResNet-18, 2 blocks": partial(eager.recover, 2, network=full, steps=6),
    "validate, ResNet-18, mixup": partial(eager.validate, training, 3, mixing="mixup"),
    "validate q4 top3": partial(eager.validate, epochs=3, bits=4, top_k=3, mixing="cutmix"),
    "validate online": partial(eager.validate, epochs=3, labels="online", mixing="none"),
    "squeeze": partial(eager.squeeze, "sgd", epochs=3),
}


def run(name: str) -> list[str]:
    """The row of a stage."""
    torch._dynamo.reset()
    counters.clear()
    LAUNCHED.clear()
    began, steps, recorded = time.monotonic(), [], False
    with fake_cuda() as census:
        for phase in STAGES[name]():
            counts, triton = census.take(), LAUNCHED.total()
            LAUNCHED.clear()
            if "relabel" not in phase and phase.endswith("step"):
                steps.append((counts, triton))
                recorded |= counts.launches["replay"] > 0
    counts, triton = steps[SEEN]
    print(f"{name}: {dict(counts.launches.most_common())}", file=sys.stderr)
    numbers = [triton, *(part.total() for part in reversed(vars(counts).values()))]
    breaks = sum(counters["graph_break"].values())
    seconds = round(time.monotonic() - began)
    return [name, *map(str, [*numbers, breaks]), "yes" if recorded else "no", str(seconds)]


def main() -> None:
    """Print the table."""
    eager.COMPILE = "always"
    install()
    heads = ["stage", "Triton launches", "other launches", "copies", "waits", "graph breaks"]
    heads += ["recorded", "seconds here"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    with tempfile.TemporaryDirectory() as tempfile.tempdir:
        for name in sys.argv[1:] or STAGES:
            print(f"| {' | '.join(run(name))} |", flush=True)


if __name__ == "__main__":
    main()
