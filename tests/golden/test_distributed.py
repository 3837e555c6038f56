"""Squeeze in two processes: the training of one process on the same batches, and the same again
after any end.

Both read images from a folder with RandAugment, cutout and label smoothing, on the CPU (gloo).
Without batch statistics the two trainings differ in the order of sums alone; with them each
process's are of its half of a batch, and the trainings are two of the same kind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from cda.experiments.runs import decode_run
from cda.stages import decode

pytestmark = pytest.mark.slow
EPOCHS, TRAIN = 5, 13  # images of each of the ten classes


@pytest.fixture
def streamed(tree):
    """Digits in folders as a streamed data set.

    `streamed(model, batch)` is the run that squeezes `model`.
    """
    tree.few_images(TRAIN, 4)
    tree.edit("datasets/digits.yaml", "shards_per_job: 2", "shards_per_job: 2\nstream: true")
    tree.edit("config.yaml", "  cpu_threads: 1", "  cpu_threads: 1\n  workers: 0")
    added = (
        "  label_smoothing: 0.2 # our choice\n  cutout: 0.5 # our choice\n"
        "  randaugment: 2 # our choice\n  evaluate_every: 1 # our choice\n"
    )
    tree.edit(
        "recipes/digits.yaml",
        "  epochs: 2              # paper Table 10a\n",
        f"  epochs: {EPOCHS} # our choice\n{added}",
    )

    def run(model: str, batch: int, lr: float) -> Any:
        tree.edit("recipes/digits.yaml", "batch_size: 256 ", f"batch_size: {batch} ")
        tree.edit("recipes/digits.yaml", "lr: 0.1  ", f"lr: {lr}  ")
        tree.experiment("tiny", {"methods": ["random"], "recovery_models": [model]})
        squeeze = tree.runs("random")["squeeze"]
        decoded = tree.context(decode_run(squeeze.data, squeeze.recipe))
        decode.run(decoded, Path(decoded.layout.decoded(decoded.run)))
        return squeeze

    return run


def started(run: Any, out: str, processes: int = 2, *config: str) -> subprocess.Popen[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    torchrun += ["-m", "--"]  # without the dashes torchrun takes --run for one of its own
    command = ["cda", "squeeze", "--run", run.id, "--out", f"{out}/model.safetensors"]
    command += ["--config", "runtime.checkpoint_seconds=0", *config]
    return subprocess.Popen(
        [sys.executable, *(torchrun if processes > 1 else ["-m"]), *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def finished(run: Any, out: str, processes: int = 2) -> dict[str, Any]:
    """The description of the squeeze of `run` by so many processes."""
    job = started(run, out, processes)
    log, _ = job.communicate(timeout=300)
    assert job.returncode == 0, log
    assert not Path(work_of(run)).exists()
    return json.loads(Path(out, "squeeze.json").read_text())


def work_of(run: Any) -> Path:
    return Path("artifacts/work/squeeze/digits", run.id, "model")


def ended_by(
    run: Any, out: str, number: int, after: int, processes: int = 2, *config: str
) -> tuple[int, str]:
    """Start, send `number` after that many steps: SIGTERM to torchrun alone, else to all.

    Where it then is, its log.
    """
    job, state = started(run, out, processes, *config), work_of(run) / "state.safetensors"
    while at_of(state) < after:
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.005)
    if number == signal.SIGTERM and processes > 1:
        job.send_signal(number)
    else:
        os.killpg(job.pid, number)
    log, _ = job.communicate(timeout=120)
    assert job.returncode != 0, log
    return at_of(state), log


def at_of(state: Path) -> int:
    """Steps that a checkpoint holds; an epoch here has four."""
    if not state.is_file():
        return 0
    with safe_open(state, framework="pt") as file:
        epoch, step = dict(json.loads(file.metadata()["state"])["dict"])["at"]
    return 4 * epoch + step


def losses(record: dict[str, Any]) -> np.ndarray:
    return np.array([row["loss"] for row in record["curve"]])


def assert_same(one: str, other: str) -> None:
    record = [json.loads(Path(out, "squeeze.json").read_text()) for out in (one, other)]
    assert record[0]["curve"] == record[1]["curve"]
    assert (
        Path(one, "model.safetensors").read_bytes() == Path(other, "model.safetensors").read_bytes()
    )


def test_two_processes_are_one_without_batch_statistics(streamed):
    """130 images in batches of 43.

    The last batch is one image, of which the second process has no share.
    """
    run = streamed("convnet2", 43, 0.05)
    one, two = finished(run, "one", 1), finished(run, "two")
    assert (one["provenance"].get("processes"), two["provenance"]["processes"]) == (None, 2)
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)  # measured: 2e-7
    assert losses(one)[-1] < losses(one)[0] - 0.05
    weights = [load_file(f"{out}/model.safetensors") for out in ("one", "two")]
    for name, weight in weights[0].items():
        np.testing.assert_allclose(
            weights[1][name], weight, rtol=2**-10, atol=1e-5, err_msg=name
        )  # stored as fp16


def test_with_batch_statistics_they_are_nearly_one_and_go_on_after_any_end(streamed):
    run = streamed("resnet18", 36, 0.02)
    one, two = finished(run, "one", 1), finished(run, "two")
    np.testing.assert_allclose(losses(two), losses(one), rtol=0.06)  # measured: 0.026
    assert losses(two)[-1] < losses(two)[0] - 0.05
    at, log = ended_by(run, "often", signal.SIGTERM, 2)
    assert 2 <= at < 4 * EPOCHS - 1
    assert log.count("stopped by SIGTERM; what is done is saved") == 2
    assert not (work_of(run) / "lease.json").exists()
    later, _ = ended_by(run, "often", signal.SIGKILL, at + 2)
    assert later < 4 * EPOCHS
    finished(run, "often")
    assert_same("two", "often")


def test_a_signal_to_a_job_and_its_workers_ends_it_saved(streamed):
    """As a cluster's scheduler sends it: to every process."""
    run = streamed("resnet18", 36, 0.02)
    at, log = ended_by(run, "one", signal.SIGTERM, 1, 1, "runtime.workers=2")
    assert at >= 1
    assert "Traceback" not in log
    assert log.rstrip().endswith(
        "stopped by SIGTERM; what is done is saved, start it again to go on"
    )
