"""C kernels for recovery in float32 on a CPU, where there are no matrix units for bf16.

`winograd.c` and `batch_norm.c` are compiled at their first use, for the processor at hand, into the
user's cache, or for the process alone where that cannot be written. Without a C compiler that has
OpenMP torch does the work, less than half as fast (results/benchmarks.md).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from torch import Tensor

from cda.progress import log

SOURCES = tuple(Path(__file__).with_name(name) for name in ("winograd.c", "batch_norm.c"))
FLAGS = ("-O3", "-fopenmp", "-shared", "-fPIC")


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None, with one line logged, if they cannot be compiled."""
    compiler = next(
        (found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None
    )
    if compiler is None:
        log(
            "no C compiler found: recovery without its own kernels (same results up to "
            "rounding, slower)"
        )
        return None
    try:
        return _compiled(compiler)
    except (OSError, subprocess.CalledProcessError) as error:
        lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
        log(
            f"{compiler} cannot compile recovery's kernels ({lines[0] if lines else error}): "
            "running without them"
        )
        return None


def _compiled(compiler: str) -> ctypes.CDLL:
    """The shared library, one for every state of sources, compiler and processor."""
    flags = [
        *FLAGS,
        "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native",
    ]
    if "avx512f" in _features():
        flags.append("-mprefer-vector-width=512")
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, check=True
    ).stdout
    sources = (source.read_text(encoding="utf-8") for source in SOURCES)
    parts = [*sources, *flags, version, _features()]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    cache, name = _cache(), f"kernels-{key}.so"
    if cache is not None and (cache / name).is_file():
        return ctypes.CDLL(str(cache / name))
    writable = cache is not None and os.access(cache, os.W_OK)
    with tempfile.TemporaryDirectory(dir=cache if writable else None) as temporary:
        made = Path(temporary) / name
        command = [compiler, *flags, "-o", str(made), *map(str, SOURCES)]
        subprocess.run(command, capture_output=True, text=True, check=True)
        loaded = ctypes.CDLL(str(made))
        if cache is not None and writable:
            made.rename(cache / name)
    return loaded


def _cache() -> Path | None:
    """The user's cache folder; None for a user without a home, or whose home is read-only."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cda"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder


def _features() -> str:
    """The processor's instruction sets on Linux; elsewhere its name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next(
        (line for line in lines if line.startswith(("flags", "Features"))), platform.processor()
    )


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    """Address of a tensor's first value, for a kernel; NULL for no tensor."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
