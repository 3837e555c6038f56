"""The machine a job runs on: device, precision, threads; and what a result should tell about where it came from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from cda.config import Runtime
from cda.errors import ConfigError
from cda.method.augment import generator
from cda.progress import say

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Machine:
    """Device and precision of this job."""

    runtime: Runtime
    device: torch.device
    half: torch.dtype | None  # what autocast lowers to, None for fp32 throughout
    started: float = field(default_factory=time.monotonic)

    def autocast(self) -> AbstractContextManager[None]:
        """Matrix units in `half`; statistics and losses stay fp32."""
        return torch.autocast(self.device.type, dtype=self.half or torch.bfloat16, enabled=self.half is not None)

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, channels last."""
        placed: nn.Module = model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return placed

    def compiled(self, function: F) -> F:
        """`function` compiled where the settings ask for it and a C++ compiler is there; as it is otherwise."""
        if not self.runtime.compile:
            return function
        if self.device.type == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
            say("no C++ compiler found: running without compilation (same results, slower)")
            return function
        return torch.compile(function, dynamic=False)  # type: ignore[return-value]

    def provenance(self) -> dict[str, Any]:
        """Where, with what and how long; nothing in it changes a result on the same kind of machine."""
        cuda = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "host": socket.gethostname(),
            "device": torch.cuda.get_device_name() if cuda else _cpu(),
            "precision": "bf16" if self.half else "fp32",
            "cpu_threads": self.runtime.cpu_threads,
            "seconds": round(time.monotonic() - self.started, 2),
            "peak_memory_bytes": peak,
            "python": platform.python_version(),
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "numpy", "pillow")},
            "code": code_digest(),
        }


def start(runtime: Runtime) -> Machine:
    """Set threads and numerics for this process; raises ConfigError if the GPU that was asked for is not there."""
    torch.set_num_threads(runtime.cpu_threads)
    available = torch.cuda.is_available()
    if runtime.device == "cuda" and not available:
        raise ConfigError("config key runtime.device: cuda, but torch sees no GPU; use auto or cpu, or mend the driver")
    device = torch.device("cuda" if available and runtime.device != "cpu" else "cpu")
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return Machine(runtime, device, _half(runtime, device))


def _half(runtime: Runtime, device: torch.device) -> torch.dtype | None:
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # without it a training step took 13 times as long
    if runtime.precision == "bf16" and not able:
        say(f"this {device.type} has no bf16: running in fp32")
    wanted = runtime.precision == "bf16" or (runtime.precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if wanted and able else None


def seed_everything(*purpose: object) -> None:
    """Seed torch's own generators (weights, dropout) for `purpose`."""
    torch.manual_seed(int(generator(*purpose).integers(2**63)))


@cache
def code_digest() -> str:
    """SHA-256 of the package's source, first 16 hex digits: tells which code made a result, and invalidates nothing."""
    sha = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        sha.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()[:16]


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return f"{names[0] if names else platform.machine()} ({os.cpu_count()} logical cores)"
