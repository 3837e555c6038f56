"""A CUDA device without data: torch's fake tensors, an autograd that runs on them, and a count.

Every operation checks devices, shapes and dtypes, and there are no values: where the host reads
one, it gets 1. `Census` counts the host's waits for the device and its copies to it. All of it
patches torch for good, so that it runs in a process of its own, `python -m tests.fake_gpu.eager`.
"""

from __future__ import annotations

import ctypes
import functools
import operator
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._C import DispatchKey
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GUARD = Path(__file__).with_name("guard.cpp")
H100 = SimpleNamespace(
    name="fake H100", major=9, minor=0, total_memory=80 << 30, multi_processor_count=132,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, regs_per_multiprocessor=65536,
    shared_memory_per_block=49152, shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472, warp_size=32, L2_cache_size=50 << 20,
    is_integrated=0, is_multi_gpu_board=0, gcnArchName="", uuid="GPU-0", type="cuda", index=0,
    clock_rate=1980000, memory_clock_rate=2619000, memory_bus_width=5120,
)  # fmt: skip


def build(folder: Path) -> Path:
    """The shared library of guard.cpp, compiled for this torch in `folder`."""
    torch_folder, library = Path(torch.__file__).parent, folder / "guard.so"
    command = ["g++", "-std=c++20", "-shared", "-fPIC", str(GUARD), "-o", str(library)]
    command += [f"-I{torch_folder}/include", f"-L{torch_folder}/lib", "-lc10", "-ltorch_cpu"]
    subprocess.run(command, check=True)
    return library


@functools.cache
def install() -> None:
    """Patch this process: from now on torch sees one H100, whose tensors must be fake."""
    torch._C._ensureCUDADeviceGuardSet = lambda: None
    with tempfile.TemporaryDirectory() as folder:
        ctypes.CDLL(str(build(Path(folder)))).install()
    FakeTensorMode.avoid_device_init = property(lambda _: True)
    fake_tensor.init_gpu_context = lambda _: None
    for name in ("_fused_sgd_", "_fused_adam_", "_fused_adamw_"):
        _define_meta(name)
    _patch_cuda()
    _patch_reads()
    nn.Module.to = _move


def _define_meta(name: str) -> None:
    """Let the fused optimiser `name` run on fake tensors, where torch has no rule of its own."""
    for overload in getattr(torch.ops.aten, name).overloads():
        key = f"aten::{name}" + ("" if overload == "default" else f".{overload}")
        if not torch._C._dispatch_has_kernel_for_dispatch_key(key, "Meta"):
            torch.library.impl(key, "Meta")(lambda *_lists, **_values: None)


def _patch_cuda() -> None:
    """Replace what asks the driver; Dynamo wants a function of its own for each name."""
    nothing = (
        "reset_peak_memory_stats", "empty_cache", "init", "_lazy_init", "set_device",
        "set_rng_state",
    )  # fmt: skip
    values: dict[str, Any] = dict.fromkeys(nothing) | {
        "is_available": True, "is_initialized": True, "is_bf16_supported": True, "device_count": 1,
        "current_device": 0, "_exchange_device": 0, "_maybe_exchange_device": 0,
        "get_device_name": H100.name, "get_device_capability": (9, 0),
        "get_device_properties": H100, "_get_device_properties": H100,
        "mem_get_info": (70 << 30, 80 << 30), "memory_allocated": 0,
        "max_memory_allocated": 1 << 30,
    }  # fmt: skip
    for name, value in values.items():
        setattr(torch.cuda, name, lambda *_, value=value, **__: value)
    torch.cuda.synchronize = lambda *_: Census.wait("synchronize")
    torch.cuda.Event, torch.cuda.Stream, torch.cuda.CUDAGraph = _Event, _Stream, _Graph
    torch.cuda.current_stream = lambda *_: _Stream()
    torch.cuda.stream, torch.cuda.graph = lambda _: nullcontext(), _record
    torch.cuda.get_rng_state = lambda *_: torch.zeros(16, dtype=torch.uint8)
    torch.get_rng_state = lambda: torch.zeros(16, dtype=torch.uint8)
    torch.set_rng_state = lambda _: None


class _Event:
    def synchronize(self) -> None:
        Census.wait("event")


class _Stream:
    def record_event(self) -> _Event:
        return _Event()

    def wait_stream(self, other: _Stream) -> None:
        """The host does not wait."""


class _Graph:
    def replay(self) -> None:
        Census.launch("replay")


@contextmanager
def _record(_graph: _Graph, **_options: Any) -> Iterator[None]:
    """`torch.cuda.graph`: what the host does here happens once, and it must not wait."""
    assert Census.present is not None
    before, Census.recording = Census.present.take(), True
    try:
        yield
    finally:
        Census.recording, Census.present.counts = False, before


def _patch_reads() -> None:
    """Let the host read values of fake tensors: each is 1, and comparisons are those of 1."""

    def numpy(tensor: Tensor, *, force: bool = False) -> np.ndarray[Any, Any]:
        assert tensor.device.type == "cpu", "numpy() of a tensor on the device"
        return np.ones(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    def tolist(tensor: Tensor) -> Any:
        if tensor.device.type == "cuda":
            Census.wait("tolist")
        return np.full(tuple(tensor.shape), _one(tensor)).tolist()

    FakeTensor.numpy, FakeTensor.tolist = numpy, tolist
    FakeTensor.__deepcopy__ = lambda tensor, _: tensor.clone()


def _move(model: nn.Module, device: torch.device, memory_format: torch.memory_format) -> nn.Module:
    """`nn.Module.to`, which cannot change the device of fake parameters."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                layout = memory_format if parameter.ndim == 4 else torch.preserve_format
                moved = parameter.detach().to(device, memory_format=layout)
                module._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    return model


@dataclass
class Counts:
    """What the host did since the last count: names of operations, with their numbers."""

    waits: Counter[str] = field(default_factory=Counter)  # reads, copies, synchronisation
    copies: Counter[str] = field(default_factory=Counter)  # with pinned memory: nobody waits
    launches: Counter[str] = field(default_factory=Counter)  # operations that are no views


VIEWS = {
    "view", "_unsafe_view", "expand", "permute", "transpose", "t", "slice", "select", "unsqueeze",
    "squeeze", "detach", "split", "split_with_sizes", "as_strided", "alias", "unbind", "lift_fresh",
    "_reshape_alias", "empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided",
    "unsafe_split", "diagonal", "unfold", "device",
}  # fmt: skip


class Census(TorchDispatchMode):
    """Counts launches, copies and waits, and refuses operations on tensors of two devices."""

    present: Census | None = None
    recording = False  # whether a CUDA graph is being recorded

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()
        self._pinned: dict[int, Any] = {}  # storages, which must live as long as their addresses

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Whether compiled code runs beneath: under other modes torch.compile compiles nothing."""
        return True

    @classmethod
    def wait(cls, name: str) -> None:
        """Count a wait; while a graph is recorded it is CUDA's error."""
        if cls.recording:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        if cls.present is not None:
            cls.present.counts.waits[name] += 1

    @classmethod
    def launch(cls, name: str) -> None:
        """Count a launch."""
        if cls.present is not None:
            cls.present.counts.launches[name] += 1

    def take(self) -> Counts:
        """The counts since the last call."""
        taken, self.counts = self.counts, Counts()
        return taken

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        kwargs, name = kwargs or {}, function._schema.name.split("::")[1]
        composite = DispatchKey.CompositeImplicitAutograd
        if function.namespace == "aten" and function.has_kernel_for_dispatch_key(composite):
            with self:  # in inference mode operations arrive before they are taken apart
                result = function.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name == "is_pinned":
            return inputs[0].untyped_storage()._cdata in self._pinned
        if name in READS and inputs[0].device.type == "cuda":
            self.wait(name)
        if name in READS:
            return READS[name](inputs[0])
        pins = name == "_pin_memory"
        result = torch.empty_like(inputs[0]) if pins else function(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if name in COMPARISONS and not isinstance(args[1], Tensor):
            result.read = getattr(operator, name)(1, args[1])
        if pins or kwargs.get("pin_memory"):
            storage = outputs[0].untyped_storage()
            self._pinned[storage._cdata] = storage
        if any(tensor.device.type == "cuda" for tensor in (*inputs, *outputs)):
            self._count(function, name, inputs, outputs, args, kwargs)
        return result

    def _count(
        self, function: Any, name: str, inputs: list[Tensor], outputs: list[Tensor],
        args: tuple[Any, ...], kwargs: dict[str, Any],
    ) -> None:  # fmt: skip
        if name in ("_to_copy", "copy_"):
            source, target = inputs[-1], outputs[0]
            if source.device == target.device:
                self.launch(name)
                return
            free = kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))
            host = source if target.is_cuda else target
            pinned = host.untyped_storage()._cdata in self._pinned
            if free and (pinned or (source.is_cuda and name == "_to_copy")):  # torch pins the copy
                self.counts.copies[name] += 1
            else:
                self.wait(f"{name} {source.device.type} to {target.device.type}")
            return
        # a kernel takes a number on the host as its argument
        devices = {tensor.device.type for tensor in inputs if tensor.ndim or tensor.is_cuda}
        if len(devices) > 1:
            if "index" not in name or inputs[0].device.type != "cuda":
                raise RuntimeError(f"{function}: tensors on {sorted(devices)}")
            self.wait(f"{name} by a tensor on the host")
        if name not in VIEWS:
            self.launch(name)


def _one(tensor: Tensor) -> bool | int | float:
    """The value that the host reads from any fake tensor, in its type."""
    if tensor.dtype == torch.bool:
        return bool(getattr(tensor, "read", True))
    return 1.0 if tensor.is_floating_point() else 1


COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
# Operations that the host waits for, whose results depend on values.
READS: dict[str, Callable[[Tensor], Any]] = {
    "_local_scalar_dense": _one,
    "equal": lambda _: True,
    "nonzero": lambda mask: mask.new_empty((mask.numel(), mask.ndim), dtype=torch.long),
}


@contextmanager
def fake_cuda() -> Iterator[Census]:
    """Tensors made here are fake, and so is device cuda; yields the count."""
    install()
    with FakeTensorMode(allow_non_fake_inputs=False), Census() as census:
        Census.present = census
        try:
            yield census
        finally:
            Census.present = None
