"""Label stores: rows a second written and read by codec, bytes a row, and memory of writing 4 GB.

Logits are synthetic, of 1,000 classes; writing encodes and reading decodes on the CPU. `plain` is
fp16, the paper's. Stores are written below `artifacts/`, on the disk of real ones; they stay in its
cache, so that rates are those of the program and not of the disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Case, Setting, Side, Work, measure, rows
from cda.data.label_codec import Codec
from cda.data.label_store import LabelWriter
from cda.data.label_store import logits_file as file_of

CLASSES, IMAGES, EPOCHS = 1000, 10_000, 200  # 4 GB of fp16
CODECS = ((16, 0), (8, 0), (4, 0), (8, 50), (8, 10), (4, 10))  # bits, top_k
WRITTEN, READ = 256, 128  # images a batch: relabel's, and post-training's on ImageNet-1K


def synthetic(count: int, classes: int = CLASSES) -> Tensor:
    """Logits [count, classes] like a trained network's: a few classes of each row are large."""
    draws = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, classes, generator=draws)
    return logits + 10 * torch.rand(count, classes, generator=draws) ** 50


def codec_name(codec: Codec) -> str:
    """A codec's short name, such as top10-q8."""
    parts = [f"top{codec.top_k}"] if codec.top_k else []
    return "-".join([*parts, f"q{codec.bits}" if codec.bits < 16 else "fp16"])


def anonymous_memory() -> int:
    """Bytes of this process's memory that no file backs: pages of a memory map do not count."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon:")).split()[1])


def streamed(folder: Path, epochs: int = EPOCHS, images: int = IMAGES) -> tuple[int, int]:
    """Write an fp16 store; returns its bytes, and the peak growth of anonymous memory."""
    logits = synthetic(WRITTEN)
    before = most = anonymous_memory()
    writer = LabelWriter(folder, Codec(CLASSES), epochs, images)
    for epoch in range(epochs):
        for start in range(0, images, WRITTEN):
            chosen = np.arange(start, min(start + WRITTEN, images))
            writer.write(epoch, chosen, logits[: len(chosen)] + epoch / epochs)
        most = max(most, anonymous_memory())
    writer.mark(epochs)
    size = writer.path.stat().st_size
    return size, most - before


def writing(codec: Codec, folder: Path) -> Work:
    """Encode batches and write them into epoch after epoch of a store of 40 batches an epoch."""
    epochs, count, logits, done = 4, 40 * WRITTEN, synthetic(WRITTEN), [0]
    writer = LabelWriter(folder / f"write-{codec_name(codec)}", codec, epochs, count)

    def work() -> float:
        for start in range(0, count, WRITTEN):
            writer.write(done[0] % epochs, np.arange(start, start + WRITTEN), logits)
        done[0] += 1
        return count

    return work


def reading(codec: Codec, folder: Path) -> Work:
    """Read batches of random images of random epochs and decode them."""
    epochs, count, draws = 4, 40 * WRITTEN, np.random.default_rng(0)
    path = folder / f"read-{codec_name(codec)}"
    writer, logits = LabelWriter(path, codec, epochs, count), synthetic(WRITTEN)
    for epoch in range(epochs):
        for start in range(0, count, WRITTEN):
            writer.write(epoch, np.arange(start, start + WRITTEN), logits)
    writer.mark(epochs)
    store = np.load(file_of(path), mmap_mode="r")

    def work() -> float:
        order = draws.permutation(count)
        epoch = int(draws.integers(epochs))
        for start in range(0, count, READ):
            codec.decode(torch.from_numpy(store[epoch, order[start : start + READ]]))
        return count

    return work


def cases(folder: Path) -> list[Case]:
    """Writing and reading, every codec beside fp16."""

    def sides(build: Callable[[Codec, Path], Work]) -> tuple[Side, ...]:
        codecs = [Codec(CLASSES, bits, top_k, 20.0) for bits, top_k in CODECS]
        return tuple(
            Side(
                "plain" if codec.plain else "ours",
                lambda codec=codec: build(codec, folder),  # type: ignore[misc]
                {"codec": codec_name(codec), "bytes": codec.parts.bytes},
            )
            for codec in codecs
        )

    parameters = {"classes": CLASSES}
    return [
        Case("label_store", "write", "rows/s", sides(writing), parameters, rounds=3),
        Case("label_store", "read", "rows/s", sides(reading), parameters, rounds=3),
    ]


def sizes() -> list[dict[str, Any]]:
    """Bytes a row of each codec, and fp16's bytes over them."""
    plain, found = Codec(CLASSES).parts.bytes, []
    for codec in (Codec(CLASSES, bits, top_k) for bits, top_k in CODECS):
        size = codec.parts.bytes
        found.append(
            {
                "what": "size of a row",
                "side": "plain" if codec.plain else "ours",
                "parameters": f"classes={CLASSES} codec={codec_name(codec)}",
                "rate": size,
                "unit": "bytes",
                "ratio": plain / size,
            }
        )
    return found


def run() -> list[dict[str, Any]]:
    """The measured rows, with some columns of `benchmarks.table`."""
    artifacts = Path("artifacts")
    artifacts.mkdir(exist_ok=True)
    found = sizes()
    with tempfile.TemporaryDirectory(prefix="label-store-", dir=artifacts) as folder:
        setting = Setting("cpu")
        for case in cases(Path(folder)):
            found += rows(case, measure(case, setting))
        size, grown = streamed(Path(folder) / "large")
        found.append(
            {
                "what": "anonymous memory while a store is written",
                "side": "ours",
                "parameters": f"classes={CLASSES} codec=fp16 bytes={size}",
                "rate": grown / 1e6,
                "unit": "MB",
                "peak_memory_mb": grown / 1e6,
                "repeats": 1,
            }
        )
    return found


if __name__ == "__main__":
    for row in run():
        texts = {
            key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()
        }
        print(*(f"{key}: {value}" for key, value in texts.items() if value is not None), sep=", ")
