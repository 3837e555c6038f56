"""On a GPU: recovery compiled and recorded, against eager fp32."""

from __future__ import annotations

import pytest
import torch

from cda.config.recipe import Architecture, Recover
from cda.config.settings import Dataset, Runtime
from cda.engine.blocks import Block
from cda.engine.device import Device, open_device
from cda.engine.graphs import WARM_UP, Graphed
from cda.engine.memory import measure_memory
from cda.engine.objective import Objective
from cda.engine.recovery import Recovery
from cda.method import networks

pytestmark = pytest.mark.gpu

DATA = Dataset(
    name="toy", layout="digits", classes=10, resolution=32, mean=(0.5,) * 3,
    std=(0.25,) * 3, get="made up",
)  # fmt: skip
RECIPE = Recover(mode="curriculum", block_size=10, jitter=4, iterations=100)
STEPS = WARM_UP + 4


def device(compile: str, precision: str = "fp32") -> Device:
    return open_device(Runtime(device="cuda", precision=precision, compile=compile))


def begun(on: Device, blocks: int = 2) -> Recovery:
    torch.manual_seed(0)
    model = networks.build("resnet18", 10, 32, Architecture(stem="small", width=0.25))
    objective = Objective(on.freeze(model), blocks, RECIPE, on, RECIPE.iterations)
    return Recovery(objective, [Block(shard, 0, 10) for shard in range(blocks)], RECIPE, DATA)


def losses(on: Device) -> list[list[float]]:
    recovery, found = begun(on), []
    for _ in range(STEPS):
        recovery.step()
        entropy, distance = recovery.losses()
        found.append([*entropy, *distance])
    recovery.objective.close()
    return found


@pytest.mark.parametrize(("precision", "rel"), [("fp32", 0.01), ("tf32", 0.02), ("bf16", 0.1)])
def test_recorded_steps_have_the_losses_of_eager_fp32(capsys, precision, rel):
    plain, fast = losses(device("never")), losses(device("always", precision))
    messages = capsys.readouterr().err
    assert "cannot" not in messages
    for one, other in zip(fast, plain, strict=True):
        assert one == pytest.approx(other, rel=rel)


def test_a_long_recovery_is_recorded():
    recovery = begun(device("always"))
    for _ in range(STEPS):
        recovery.step()
    step = recovery.iterate
    assert isinstance(step, Graphed)
    assert (step.recordable, step.calls) == (True, STEPS)


def test_a_closed_recovery_returns_its_memory():
    before = torch.cuda.memory_allocated()
    recovery = begun(device("always"))
    for _ in range(STEPS):
        recovery.step()
    recovery.objective.close()
    model = sum(p.numel() * 4 for p in recovery.objective.model.parameters())
    del recovery
    assert torch.cuda.memory_allocated() - before <= 2 * model


def test_measured_memory_bounds_what_packed_blocks_take():
    on = device("never")
    needed = measure_memory(lambda: begun(on, 1).step)
    torch.cuda.reset_peak_memory_stats()
    recovery = begun(on, 4)
    for _ in range(2):
        recovery.step()
    assert torch.cuda.max_memory_allocated() <= 1.15 * needed.of(4)
