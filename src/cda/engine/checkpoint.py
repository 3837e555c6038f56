"""Checkpoints and model weights on disk: safetensors files, never pickles.

A checkpoint is one safetensors file. Its tensors are stored as they are; the header has the rest of
the state as JSON, and the key of the work that the state belongs to.
"""

from __future__ import annotations

import errno
import json
import stat
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cda.errors import ArtifactError
from cda.files import atomic_write
from cda.progress import log

SPACING = 20  # seconds between two saves, for each second that the last one took


def split_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON; its tensors move to `tensors`, and the JSON has their names."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        host = torch.empty(value.shape, dtype=value.dtype)  # one copy, whatever the layout
        tensors[name] = host.copy_(value.detach())
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, split_tensors(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [split_tensors(item, tensors) for item in value]
    return value


def join_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `split_tensors`, but that tuples become lists."""
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: join_tensors(item, tensors) for key, item in value["dict"]}
    return [join_tensors(item, tensors) for item in value] if isinstance(value, list) else value


class Checkpoint:
    """The newest state of unfinished work; `load` ignores a state with another `key`.

    It is due every `every` seconds, more rarely if saving takes long. Of several processes that
    share the work, one `writes`.
    """

    def __init__(self, path: Path, key: str, every: float, writes: bool = True) -> None:
        self.path, self.key, self.every, self.writes = path, key, every, writes
        self._saved, self._took = time.monotonic(), 0.0

    def due(self) -> bool:
        """Whether it is time to save again: saving takes a job at most a twentieth of its time.

        With `every` 0 it always is.
        """
        wait = max(self.every, SPACING * self._took) if self.every else 0.0
        return time.monotonic() - self._saved >= wait

    def save(self, state: Any) -> None:
        """Write `state`, which consists of tensors, JSON values, dicts and lists.

        The file is replaced atomically.
        """
        began = time.monotonic()
        if self.writes:
            tensors: dict[str, Tensor] = {}
            header = {"key": self.key, "state": json.dumps(split_tensors(state, tensors))}
            with atomic_write(self.path) as temporary:
                write_tensors(tensors, temporary, header)
        self._saved = time.monotonic()
        self._took = self._saved - began

    def load(self) -> Any | None:
        """The saved state; None if there is none, it is damaged, or its key is another."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("key") != self.key:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                return join_tensors(json.loads(header["state"]), tensors)
        except (SafetensorError, OSError, ValueError, KeyError):
            log(f"{self.path}: damaged checkpoint, starting this piece again")
            return None

    def clear(self) -> None:
        """Delete the file: the work is done."""
        self.path.unlink(missing_ok=True)


def write_tensors(
    tensors: dict[str, Tensor], path: Path, header: dict[str, str] | None = None
) -> None:
    """Write a safetensors file with the umask's permissions; raises OSError.

    The library itself would let the owner alone read it.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    try:
        save_file(tensors, path, metadata=header)
        path.chmod(mode)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error)) from None


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load tensors from a file into `model`; raises torch's RuntimeError for another network's.

    A file has no versions of modules, without which torchvision's MNASNet refuses tensors, so that
    the model's own versions are used.
    """
    versioned = OrderedDict(state)
    versioned._metadata = getattr(model.state_dict(), "_metadata")  # type: ignore[attr-defined] # noqa: B009
    model.load_state_dict(versioned)


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Load the safetensors at `path` into `model` and return it.

    Raises ArtifactError if the file is missing, damaged or another network's.
    """
    try:
        load_state(model, load_file(path))
    except FileNotFoundError:
        raise ArtifactError(
            f"{path}: no such model; make it with `cda squeeze` or pull it"
        ) from None
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{path}: damaged model file ({error}); delete it and make or pull it again"
        ) from None
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise ArtifactError(
            f"{path}: weights of another network ({first}); check the recipe's model and "
            "architecture"
        ) from None
    return model
