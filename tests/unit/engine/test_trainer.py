"""The training loop: learning rates as torch's, decay of parameters, exact resumes, accuracy."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler as torchs

from cda import progress
from cda.config.recipe import Optimisation
from cda.config.settings import Dataset, Runtime
from cda.engine.batches import split_batch
from cda.engine.checkpoint import Checkpoint
from cda.engine.device import Device
from cda.engine.images import Images
from cda.engine.optimizers import build_optimizer, lr_at
from cda.engine.signals import Stop
from cda.engine.trainer import History, Trainer, fit
from cda.errors import ArtifactError, ConfigError, Interrupted

torch.set_num_threads(1)

MACHINE = Device(Runtime(device="cpu"), torch.device("cpu"), None)


def recipe(**values: Any) -> Optimisation:
    return Optimisation(**({"epochs": 4, "batch_size": 8, "lr": 0.1, "evaluate_every": 2} | values))


# Learning rates


def torch_rates(schedule: Any, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return rates


def sgd(lr: float) -> torch.optim.SGD:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


def warmed(then: Any, warm: int, factor: float) -> Any:
    optimizer = then.optimizer
    start = torchs.LinearLR(optimizer, start_factor=factor, total_iters=warm)
    return torchs.SequentialLR(optimizer, [start, then], [warm])


def test_cosine_with_warm_up_is_torchs_by_epoch():
    values = recipe(epochs=50, lr=0.2, warmup_epochs=5, warmup_factor=0.01)
    reference = torch_rates(warmed(torchs.CosineAnnealingLR(sgd(0.2), T_max=45), 5, 0.01), 50)
    for step in (0, 3, 9):  # an epoch has one rate
        assert [lr_at(values, epoch, step, 10) for epoch in range(50)] == pytest.approx(
            reference, abs=1e-12
        )


def test_cosine_with_warm_up_is_torchs_by_step():
    values = recipe(epochs=8, lr=0.2, warmup_epochs=2, warmup_factor=0.1, schedule_per="step")
    reference = torch_rates(
        warmed(torchs.CosineAnnealingLR(sgd(0.2), T_max=6 * 5), 2 * 5, 0.1), 8 * 5
    )
    own = [lr_at(values, epoch, step, 5) for epoch in range(8) for step in range(5)]
    assert own == pytest.approx(reference, abs=1e-12)


def test_cosine_worked_out_by_hand():
    by_epoch = [lr_at(recipe(lr=0.8), epoch, 3, 4) for epoch in range(4)]
    assert by_epoch == pytest.approx(
        [0.8, 0.4 * (1 + math.sqrt(0.5)), 0.4, 0.4 * (1 - math.sqrt(0.5))]
    )
    by_step = recipe(lr=0.8, schedule_per="step")
    assert lr_at(by_step, 0, 0, 4) == 0.8
    assert lr_at(by_step, 1, 2, 4) == pytest.approx(0.4 * (1 + math.cos(math.pi * 6 / 16)))
    assert lr_at(by_step, 3, 3, 4) == pytest.approx(0.4 * (1 + math.cos(math.pi * 15 / 16)))


@pytest.mark.parametrize("warm", [0, 3])
def test_step_schedule_is_torchs(warm):
    values = recipe(
        epochs=20,
        schedule="step",
        step_epochs=5,
        step_factor=0.3,
        warmup_epochs=warm,
        warmup_factor=0.2,
    )
    then = torchs.StepLR(sgd(0.1), step_size=5, gamma=0.3)
    reference = torch_rates(warmed(then, warm, 0.2) if warm else then, 20)
    assert [lr_at(values, epoch, 1, 2) for epoch in range(20)] == pytest.approx(
        reference, abs=1e-12
    )


def test_constant_schedule_stays():
    assert {
        lr_at(recipe(schedule="constant"), epoch, step, 3)
        for epoch in range(4)
        for step in range(3)
    } == {0.1}


# Optimisers


class Mixed(nn.Module):
    """A convolution, BN, dropout and a linear layer.

    Every kind of parameter, and one that is frozen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.4)
        self.fc, self.frozen = nn.Linear(4, 6), nn.Parameter(torch.ones(2, 2), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(torch.relu(self.bn(self.conv(x))).mean(dim=(2, 3))))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("vectors", [True, False])
def test_one_step_without_gradient_shrinks_the_decayed_parameters_alone(optimizer, vectors):
    model = Mixed()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(2.0)
    own = build_optimizer(
        model, recipe(optimizer=optimizer, lr=0.5, weight_decay=0.1, decay_vectors=vectors)
    )
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    own.step()
    found = {
        name: parameter.detach().unique().item() for name, parameter in model.named_parameters()
    }
    assert len(found) == 7
    matrices = {"conv.weight", "fc.weight"}
    for name, value in found.items():
        decayed = name != "frozen" and (vectors or name in matrices)
        assert value == pytest.approx(1.9 if decayed else 2.0), name  # 2 · (1 − 0.5 · 0.1)


class Scaled(nn.Module):
    """Parameters of several dimensions without `weight` in their name, as networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.layer_scale = (
            nn.Conv2d(3, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.Parameter(torch.rand(4, 1, 1)),
        )
        self.token, self.mixed_weights = (
            nn.Parameter(torch.rand(1, 1, 4)),
            nn.Parameter(torch.rand(2, 4)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = (self.norm(self.conv(x)) * self.layer_scale).mean(dim=(2, 3))
        return (x + self.token[0]) @ self.mixed_weights.mT


@pytest.mark.parametrize("names", ["all", "weight"])
@pytest.mark.parametrize("vectors", [True, False])
def test_decay_by_name_is_that_of_the_public_script(names, vectors):
    """Its groups, `weight` in the name and more than one dimension, in torch's own AdamW."""
    torch.manual_seed(0)
    own, plain, x = Scaled(), Scaled(), torch.randn(5, 3, 6, 6)
    plain.load_state_dict(own.state_dict())
    decayed = [
        name
        for name, parameter in plain.named_parameters()
        if (names == "all" or name.find("weight") >= 0) and (vectors or len(parameter.size()) > 1)
    ]
    if (names, vectors) == ("weight", False):
        assert decayed == ["mixed_weights", "conv.weight"]
    groups = [
        {"params": [p for n, p in plain.named_parameters() if n in decayed]},
        {"params": [p for n, p in plain.named_parameters() if n not in decayed]},
    ]
    groups[1] |= {"weight_decay": 0.0}
    values = recipe(
        optimizer="adamw", lr=0.05, weight_decay=0.3, decay_names=names, decay_vectors=vectors
    )
    mine = build_optimizer(own, values)
    torchs_own = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=0.05, weight_decay=0.3, foreach=False
    )
    for _ in range(3):
        for model, optimizer in ((own, mine), (plain, torchs_own)):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for (name, one), other in zip(own.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", ["sgd", "adamw", "adam"])
def test_steps_are_those_of_torchs_plain_optimiser(name):
    torch.manual_seed(0)
    own, reference, x, y = nn.Linear(5, 3), nn.Linear(5, 3), torch.randn(9, 5), torch.randn(9, 3)
    reference.load_state_dict(own.state_dict())
    mine = build_optimizer(own, recipe(optimizer=name, lr=0.05, momentum=0.8, weight_decay=0.1))
    plain = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, weight_decay=0.1, foreach=False),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1, foreach=False),
        "adam": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.1, foreach=False),
    }[name](reference.parameters())
    for _ in range(5):
        for model, optimizer in ((own, mine), (reference, plain)):
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
    torch.testing.assert_close(own.weight, reference.weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(own.bias, reference.bias, rtol=0, atol=1e-6)


# Fitting


class Toy:
    """Twenty random images in batches of six; sets `stop` after `stop_after` batches."""

    steps, images, number = 4, 20, signal.SIGTERM

    def __init__(self, stop: Stop | None = None, stop_after: int = -1) -> None:
        self.stop, self.stop_after, self.yielded = stop, stop_after, 0

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Any]]:
        draws = np.random.default_rng(epoch)
        x, order = draws.standard_normal((20, 3, 8, 8)).astype(np.float32), draws.permutation(20)
        for step in range(first_step, self.steps):
            chosen = order[step * 6 : (step + 1) * 6]
            self.yielded += 1
            if self.stop is not None and self.yielded == self.stop_after:
                self.stop.signal = self.number
            yield torch.from_numpy(x[chosen]), torch.from_numpy(chosen % 6)


def measure(model: nn.Module) -> dict[str, float]:
    """Something that depends on every bit of the weights."""
    model.eval()
    with torch.no_grad():
        return {"top1": float(model(torch.ones(1, 3, 8, 8)).sum()), "top5": 0.0}


def train(
    folder: Path,
    values: Optimisation,
    *,
    start: int = 0,
    stop_after: int = -1,
    every: float = 1e9,
    loss: Any = F.cross_entropy,
    device: Device = MACHINE,
) -> Trainer:
    """A training in `folder` as a new process would start it.

    `start` seeds what torch drew before.
    """
    torch.manual_seed(start)
    trainer = Trainer(Mixed(), values, device, ("toy", 0))
    if start == 0:
        with torch.no_grad():
            trainer.model.frozen.fill_(3.0)  # state that only the checkpoint can bring back
    stop = Stop()
    checkpoint = Checkpoint(folder / "state.safetensors", "toy", every)
    fit(trainer, Toy(stop, stop_after), loss, measure, checkpoint, stop, "toy")
    return trainer


def assert_same(one: Trainer, other: Trainer) -> None:
    assert one.history.curve == other.history.curve
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name]), name


SGD = recipe(lr=0.1, momentum=0.9, weight_decay=0.01, schedule_per="step", evaluate_every=1)
ADAMW = recipe(lr=0.01, optimizer="adamw", weight_decay=0.1, decay_vectors=False, warmup_epochs=1)


@pytest.mark.parametrize("values", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_stopped_at_any_step_it_goes_on_to_the_same_bits(tmp_path, values):
    undisturbed = train(tmp_path / "undisturbed", values)
    for stop_after in range(1, 17):  # 16 steps: within an epoch, at its end, at the very end
        with pytest.raises(Interrupted):
            train(tmp_path / str(stop_after), values, stop_after=stop_after)
        assert_same(train(tmp_path / str(stop_after), values, start=stop_after), undisturbed)


@pytest.mark.parametrize("values", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_stopped_again_and_again_it_ends_the_same(tmp_path, values):
    undisturbed, stop_after = train(tmp_path / "undisturbed", values), np.random.default_rng(1)
    for start in range(30):
        try:
            resumed = train(
                tmp_path / "often", values, start=start, stop_after=int(stop_after.integers(1, 4))
            )
            break
        except Interrupted:
            continue
    assert start > 3
    assert_same(resumed, undisturbed)


def test_killed_between_checkpoints_it_ends_the_same(tmp_path):
    undisturbed = train(tmp_path / "undisturbed", SGD)
    for survives in (1, 4, 5, 11):
        left = [survives]

        def dying(logits: Tensor, target: Tensor, left: list[int] = left) -> Tensor:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return F.cross_entropy(logits, target)

        folder = tmp_path / str(survives)
        with pytest.raises(KeyboardInterrupt):
            train(folder, SGD, every=0.0, loss=dying)
        assert_same(train(folder, SGD, start=9), undisturbed)


def test_dropout_does_draw_and_the_seed_alone_decides_what(tmp_path):
    one, other = train(tmp_path / "a", SGD), train(tmp_path / "b", SGD)
    assert_same(one, other)
    torch.manual_seed(0)
    reseeded = Trainer(Mixed(), SGD, MACHINE, ("toy", 1))
    fit(
        reseeded,
        Toy(),
        F.cross_entropy,
        measure,
        Checkpoint(tmp_path / "c", "toy", 1e9),
        Stop(),
        "toy",
    )
    assert reseeded.history.curve != one.history.curve


@pytest.mark.parametrize("per", ["epoch", "step"])
def test_a_training_is_the_plain_loop(tmp_path, per):
    values = recipe(lr=0.3, momentum=0.9, weight_decay=0.01, schedule_per=per)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 6))
    trainer = Trainer(nn.Sequential(nn.Flatten(), nn.Linear(192, 6)), values, MACHINE, ("toy", 0))
    trainer.model.load_state_dict(plain.state_dict())
    fit(
        trainer,
        Toy(),
        F.cross_entropy,
        measure,
        Checkpoint(tmp_path / "state", "toy", 1e9),
        Stop(),
        "toy",
    )
    weight, bias = (p.detach().double().clone().requires_grad_() for p in plain.parameters())
    speed, losses = [torch.zeros_like(weight), torch.zeros_like(bias)], []
    for epoch in range(4):
        for step, (images, target) in enumerate(Toy().epoch(epoch)):
            share = (epoch + (step / 4 if per == "step" else 0)) / 4
            loss = F.cross_entropy(images.double().flatten(1) @ weight.mT + bias, target)
            slopes = torch.autograd.grad(loss, [weight, bias])
            losses.append(loss.item())
            with torch.no_grad():
                for i, p in enumerate((weight, bias)):
                    speed[i] = 0.9 * speed[i] + slopes[i] + 0.01 * p
                    p -= 0.15 * (1 + math.cos(math.pi * share)) * speed[i]
    torch.testing.assert_close(trainer.model[1].weight.double(), weight, rtol=0, atol=1e-4)
    curve = trainer.history.curve
    assert [row["epoch"] for row in curve] == [2, 4]
    assert [row["loss"] for row in curve] == pytest.approx(
        [np.mean(losses[4:8]), np.mean(losses[12:])], abs=1e-4
    )


# Parts of a batch


def normalising() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 6)
    )


@pytest.mark.parametrize("batches", [(6, 6), (6, 5), (6, 2)], ids=str)
def test_parts_of_a_batch_accumulate_as_in_the_public_script(batches):
    """Two parts, each with BN statistics of its own, each divided by two (fidelity 27).

    The script divides a last batch of a single part by two as well, which is a fault of its own.
    """
    values = recipe(batch_size=6, lr=0.2, momentum=0.9)
    trainer, plain = Trainer(normalising(), values, MACHINE, ("toy", 0), 2), normalising()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.2, momentum=0.9)
    draws, total = torch.Generator().manual_seed(1), 0.0
    trainer.model.train()
    for size in batches:
        images = torch.randn(size, 3, 8, 8, generator=draws)
        target = torch.randint(6, (size,), generator=draws)
        trainer.step(images, target, F.cross_entropy, 0.2)
        optimizer.zero_grad()
        accumulated = math.ceil(size / 3)
        for part in range(accumulated):
            own = slice(part * 3, (part + 1) * 3)
            loss = F.cross_entropy(plain(images[own]), target[own]) / accumulated
            loss.backward()
            total += loss.item()
        optimizer.step()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], tensor, msg=name)
    assert trainer.model[1].num_batches_tracked == sum(math.ceil(size / 3) for size in batches)
    assert trainer.loss_sum.item() == pytest.approx(total, rel=1e-5)


def test_a_batch_in_one_part_is_the_batch_itself():
    def trained(*parts: int) -> dict[str, Tensor]:
        # a batch larger than the recipe's, which only several parts divide
        trainer = Trainer(normalising(), recipe(batch_size=4), MACHINE, ("toy", 0), *parts)
        trainer.model.train()
        images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        trainer.step(images, torch.arange(6), F.cross_entropy, 0.2)
        return trainer.model.state_dict()

    usual, one, two = trained(), trained(1), trained(2)
    assert all(torch.equal(tensor, one[name]) for name, tensor in usual.items())
    counts = [state["1.num_batches_tracked"].item() for state in (usual, one, two)]
    assert counts == [1, 1, 3]


def test_targets_of_several_tensors_are_divided_with_their_images():
    images, own, share = torch.arange(5.0)[:, None], torch.arange(5), torch.rand(5)
    parts = split_batch(images, (own, share), 2)
    assert [part.flatten().tolist() for part, _ in parts] == [[0, 1], [2, 3], [4]]
    assert [target[0].tolist() for _, target in parts] == [[0, 1], [2, 3], [4]]
    assert torch.equal(torch.cat([target[1] for _, target in parts]), share)
    assert [target.tolist() for _, target in split_batch(images, own, 3)] == [[0, 1, 2], [3, 4]]
    assert [target.tolist() for _, target in split_batch(images, own, 2, 2)] == [[0, 1], [2, 3, 4]]
    assert [target.tolist() for _, target in split_batch(images, own, 4, 2)] == [[0, 1, 2, 3, 4]]
    assert [target.tolist() for _, target in split_batch(images, own, 5, 2)] == [[0, 1, 2, 3, 4]]


@pytest.mark.slow
@pytest.mark.compiler
def test_compiled_parts_differ_in_rounding_alone(tmp_path, capsys):
    values, trained = SGD.model_copy(update={"batch_size": 6, "epochs": 2}), []
    for name, device in (("plain", MACHINE), ("compiled", COMPILED)):
        trainer = Trainer(device.place(normalising()), values, device, ("toy", 0), 2)
        checkpoint = Checkpoint(tmp_path / name, "toy", 1e9)
        fit(trainer, Toy(), F.cross_entropy, measure, checkpoint, Stop(), "toy")
        trained.append(trainer.model.state_dict())
    assert "cannot compile" not in capsys.readouterr().err
    for name, tensor in trained[0].items():
        torch.testing.assert_close(trained[1][name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_the_last_epoch_is_always_evaluated_and_others_as_the_recipe_wants(tmp_path):
    curve = train(tmp_path, recipe(epochs=7, evaluate_every=3)).history.curve
    assert [row["epoch"] for row in curve] == [3, 6, 7]


def test_another_runs_checkpoint_is_not_taken(tmp_path):
    undisturbed = train(tmp_path / "undisturbed", SGD)
    with pytest.raises(Interrupted):
        train(tmp_path, SGD, stop_after=3)
    torch.manual_seed(0)
    trainer = Trainer(Mixed(), SGD, MACHINE, ("toy", 0))
    checkpoint = Checkpoint(tmp_path / "state.safetensors", "another", 1e9)
    fit(trainer, Toy(), F.cross_entropy, measure, checkpoint, Stop(), "toy")
    assert trainer.history.curve == undisturbed.history.curve
    assert trainer.model.frozen.unique().tolist() == [1.0]


def test_best_is_the_first_of_the_highest_and_last_the_last():
    rows = [{"epoch": float(i), "top1": top1} for i, top1 in enumerate([1.0, 5.0, 5.0, 3.0])]
    assert (History(rows).best, History(rows).last) == (rows[1], rows[3])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_in_one_line(tmp_path, bad):
    with pytest.raises(
        ArtifactError, match=r"toy: the loss is .* in epoch 0; lower the recipe's lr"
    ) as caught:
        train(tmp_path, SGD, loss=lambda logits, target: F.cross_entropy(logits, target) * bad)
    assert "\n" not in str(caught.value)


def test_a_corrected_start_does_not_continue_a_diverged_checkpoint(tmp_path):
    """The message says to use fp32, which changes no run's id: the checkpoint's key is the same."""
    undisturbed = train(tmp_path / "undisturbed", SGD)
    with pytest.raises(ArtifactError):
        train(
            tmp_path,
            SGD,
            every=0.0,
            loss=lambda logits, target: F.cross_entropy(logits, target) * math.nan,
        )
    assert_same(train(tmp_path, SGD), undisturbed)


def test_no_memory_left_is_one_line_with_the_key_to_lower(tmp_path):
    def hungry(logits: Tensor, target: Tensor) -> Tensor:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 GiB.\nSee documentation"
        )

    with pytest.raises(
        ConfigError,
        match=r"toy: no memory left in epoch 0, step 0; lower optimisation\.batch_size \(8",
    ):
        train(tmp_path, SGD, loss=hungry)


def test_another_error_of_a_step_is_not_taken_for_that(tmp_path):
    def broken(logits: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        train(tmp_path, SGD, loss=broken)


# Several trainings of one trainer


def toy_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Mixed()


def fitted(trainer: Trainer, folder: Path, loss: Any = F.cross_entropy) -> Trainer:
    checkpoint = Checkpoint(folder / "state.safetensors", "toy", 1e9)
    fit(trainer, Toy(), loss, measure, checkpoint, Stop(), "toy")
    return trainer


@pytest.mark.parametrize("values", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_a_restarted_training_has_the_bits_of_a_fresh_one(tmp_path, values):
    trainer = fitted(Trainer(toy_model(1), values, MACHINE, ("toy", 1)), tmp_path / "1")
    first = trainer.history
    for seed in (2, 3):
        alone = fitted(Trainer(toy_model(seed), values, MACHINE, ("toy", seed)), tmp_path / "alone")
        trainer.restart(toy_model(seed), ("toy", seed))
        assert_same(fitted(trainer, tmp_path / str(seed)), alone)
    assert first.curve != trainer.history.curve


def test_a_diverged_training_leaves_nothing_to_the_next(tmp_path):
    trainer = Trainer(toy_model(1), ADAMW, MACHINE, ("toy", 1))
    with pytest.raises(ArtifactError):
        fitted(trainer, tmp_path / "1", lambda logits, y: F.cross_entropy(logits, y) * math.nan)
    trainer.restart(toy_model(2), ("toy", 2))
    alone = fitted(Trainer(toy_model(2), ADAMW, MACHINE, ("toy", 2)), tmp_path / "alone")
    assert_same(fitted(trainer, tmp_path / "2"), alone)


def test_a_restart_writes_into_the_tensors_of_the_training_before(tmp_path):
    """A CUDA graph reads and writes these addresses."""
    trainer = fitted(Trainer(toy_model(1), SGD, MACHINE, ("toy", 1)), tmp_path / "1")

    def addresses() -> list[int]:
        states = trainer.optimizer.state.values()
        momenta = [value for state in states for value in state.values()]
        tensors = [*trainer.model.state_dict().values(), *momenta, trainer.loss_sum]
        return [tensor.data_ptr() for tensor in tensors]

    before = addresses()
    trainer.restart(toy_model(2), ("toy", 2))
    assert addresses() == before
    fitted(trainer, tmp_path / "2")
    assert addresses() == before


# Compiled


FULL_BATCHES = SGD.model_copy(
    update={"batch_size": 6}
)  # the toy's: three full batches an epoch and a smaller one
COMPILED = Device(Runtime(device="cpu", compile="always", cpu_threads=1), torch.device("cpu"), None)
SCALE = torch.ones(
    ()
)  # a tensor, so that a loss that is no number is the same program, and compiled once


def scaled(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target) * SCALE


@pytest.mark.slow
@pytest.mark.compiler
def test_a_compiled_training_differs_in_rounding_alone_and_goes_on_to_the_same_bits(
    tmp_path, capsys
):
    """Dropout too: on a CPU the compiled step draws what the plain one draws."""
    plain = train(tmp_path / "plain", FULL_BATCHES)
    compiled = train(tmp_path / "compiled", FULL_BATCHES, device=COMPILED, loss=scaled)
    assert "cannot compile" not in capsys.readouterr().err
    for name, tensor in plain.model.state_dict().items():
        torch.testing.assert_close(
            compiled.model.state_dict()[name], tensor, rtol=1e-4, atol=1e-5, msg=name
        )
    for one, other in zip(compiled.history.curve, plain.history.curve, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-4)
    for start in (0, 2):  # it ends within an epoch, and at its end
        with pytest.raises(Interrupted):
            train(
                tmp_path / "often",
                FULL_BATCHES,
                start=start,
                stop_after=2,
                device=COMPILED,
                loss=scaled,
            )
    assert_same(
        train(tmp_path / "often", FULL_BATCHES, start=4, device=COMPILED, loss=scaled), compiled
    )


@pytest.mark.slow
@pytest.mark.compiler
def test_a_restarted_training_compiles_nothing_and_has_the_bits_of_a_fresh_one(tmp_path):
    from torch._dynamo.utils import counters

    trainer = Trainer(toy_model(1), FULL_BATCHES, COMPILED, ("toy", 1))
    fitted(trainer, tmp_path / "1", scaled)
    compiled = counters["stats"]["unique_graphs"]
    assert compiled > 0
    trainer.restart(toy_model(2), ("toy", 2))
    fitted(trainer, tmp_path / "2", scaled)
    assert counters["stats"]["unique_graphs"] == compiled
    alone = Trainer(toy_model(2), FULL_BATCHES, COMPILED, ("toy", 2))
    assert_same(trainer, fitted(alone, tmp_path / "alone", scaled))


@pytest.mark.slow
@pytest.mark.compiler
def test_a_compiled_loss_that_is_no_number_ends_in_one_line_and_leaves_the_last_good_checkpoint(
    tmp_path, monkeypatch
):
    with pytest.raises(Interrupted):
        train(tmp_path, FULL_BATCHES, stop_after=6)
    left = (tmp_path / "state.safetensors").read_bytes()
    monkeypatch.setitem(globals(), "SCALE", torch.tensor(math.nan))
    with pytest.raises(
        ArtifactError, match=r"toy: the loss is nan in epoch 1; lower the recipe's lr"
    ):
        train(tmp_path, FULL_BATCHES, every=0.0, device=COMPILED, loss=scaled)
    assert (tmp_path / "state.safetensors").read_bytes() == left


# Accuracy


class Table(nn.Module):
    """A model that knows every image by its first pixel and answers from a table [N, classes]."""

    def __init__(self, answers: np.ndarray, mean: float, std: float) -> None:
        super().__init__()
        self.answers, self.mean, self.std = torch.from_numpy(answers), mean, std

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        return self.answers[((x[:, 0, 0, 0] * self.std + self.mean) * 255).round().long()]


@pytest.mark.parametrize(("classes", "batch"), [(10, 512), (10, 7), (3, 50)])
def test_accuracy_is_counted_as_by_hand(classes, batch):
    draws = np.random.default_rng(classes)
    answers, labels = (
        draws.standard_normal((50, classes)).astype(np.float32),
        draws.integers(0, classes, 50),
    )
    pixels = np.zeros((50, 8, 8, 3), dtype=np.uint8)
    pixels[:, 0, 0, 0] = np.arange(50)
    data = Dataset(
        name="toy", layout="digits", classes=classes, resolution=8, mean=(0.3,) * 3,
        std=(0.2,) * 3, get="x",
    )  # fmt: skip
    found = Images(pixels, labels, data, MACHINE).evaluate(Table(answers, 0.3, 0.2).train(), batch)
    first = fifth = 0
    for row, label in zip(answers.tolist(), labels.tolist(), strict=True):
        better = sum(value > row[label] for value in row)
        first += better == 0
        fifth += better < 5
    assert found == {"top1": pytest.approx(2.0 * first), "top5": pytest.approx(2.0 * fifth)}
    assert classes > 5 or found["top5"] == 100


@pytest.mark.parametrize(
    ("device", "count", "batch"),
    [("cuda", 10_000, 500), ("cuda", 512, 512), ("cuda", 521, 512), ("cpu", 10_000, 512)],
)
def test_a_gpu_evaluates_batches_of_equal_size(device, count, batch):
    """cuDNN would time its algorithms for the last batch too."""
    images = object.__new__(Images)
    images.torch_device, images.labels = torch.device(device), torch.zeros(count)
    assert images.even_batch() == batch


class Hungry(Table):
    """Has memory for so many images at a time."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 9:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(x)


def test_evaluation_without_memory_for_its_batch_takes_smaller_ones(capsys):
    pixels = np.zeros((50, 8, 8, 3), dtype=np.uint8)
    pixels[:, 0, 0, 0] = np.arange(50)
    answers, labels = np.eye(50, 10, dtype=np.float32), np.arange(50) % 10
    data = Dataset(
        name="toy", layout="digits", classes=10, resolution=8, mean=(0,) * 3, std=(1,) * 3, get="x"
    )
    images = Images(pixels, labels, data, MACHINE)
    assert images.evaluate(Hungry(answers, 0, 1), 40) == images.evaluate(Table(answers, 0, 1))
    assert (
        "no memory to evaluate 40 images at a time: going on with half as many"
        in capsys.readouterr().err
    )


# Several processes


@pytest.mark.parametrize("world", [2, 3, 8])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 17, 64])
def test_ranks_share_a_batch_and_their_mean_is_its_mean(world, size):
    """A rank has two images at least (batch statistics need them), or some that do not count."""
    batch, values = (
        np.random.default_rng(0).permutation(100)[:size],
        np.random.default_rng(1).random(100),
    )
    ranks = [
        Device(Runtime(), torch.device("cpu"), None, rank=rank, world=world)
        for rank in range(world)
    ]
    shares, weights = [m.share(batch) for m in ranks], [m.weight(size) for m in ranks]
    assert sorted(np.concatenate([s for s, w in zip(shares, weights, strict=True) if w])) == sorted(
        batch
    )
    assert min(len(s) for s in shares) >= min(2, size)
    mean = sum(w * values[s].mean() for s, w in zip(shares, weights, strict=True)) / world
    assert mean == pytest.approx(values[batch].mean())


def test_the_saved_loss_is_the_mean_over_the_ranks(tmp_path, monkeypatch):
    """As if the other of two ranks always had a sum that is larger by one."""
    device, own = Device(Runtime(), torch.device("cpu"), None, rank=0, world=2), []

    def total(value: Tensor) -> Tensor:
        own.append(value.clone())
        return value.mul_(2).add_(1)

    for name, stand_in in [("total", total), ("agree", int), ("parallel", lambda model: model)]:
        monkeypatch.setattr(device, name, stand_in)
    with pytest.raises(Interrupted):
        train(tmp_path, SGD, stop_after=3, device=device)
    saved = Checkpoint(tmp_path / "state.safetensors", "toy", 1e9).load()["loss_sum"]
    assert saved.item() == pytest.approx(own[-1].item() + 0.5)


def test_a_ranks_loss_counts_by_its_weight():
    images, target = next(Toy().epoch(0))
    moved = []
    for weight in (1.0, 0.5):
        layer = nn.Linear(192, 6)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        trainer = Trainer(nn.Sequential(nn.Flatten(), layer), recipe(), MACHINE, ("toy", 0))
        trainer.step(images, target, F.cross_entropy, 0.1, weight)
        moved.append(layer.weight.detach())
    assert moved[0].abs().max() > 0
    torch.testing.assert_close(moved[1], moved[0] / 2)


def test_every_step_of_a_rank_is_seeded_and_its_buffers_are_shared_before_an_evaluation(
    tmp_path, monkeypatch
):
    device, seen = Device(Runtime(device="cpu"), torch.device("cpu"), None), []
    monkeypatch.setattr(Trainer, "seed_step", lambda _self, *at: seen.append(at))
    monkeypatch.setattr(device, "take_buffers", lambda _model: seen.append("buffers"))
    train(tmp_path, recipe(epochs=2, evaluate_every=1), device=device)
    first, second = ([(epoch, step) for step in range(Toy.steps)] for epoch in range(2))
    assert seen == [*first, "buffers", *second, "buffers"]


def test_a_training_that_goes_on_says_from_where(tmp_path, capsys):
    with pytest.raises(Interrupted):
        train(tmp_path, SGD, stop_after=6)
    capsys.readouterr()
    train(tmp_path, SGD)
    assert "toy: going on from epoch 1 of 4, step 2\n" in capsys.readouterr().err


@pytest.mark.parametrize("restart", [True, False])
def test_a_drop_may_begin_with_a_new_optimiser(tmp_path, restart):
    values = recipe(
        lr=0.1, momentum=0.9, schedule="step", step_epochs=2, restart=restart, evaluate_every=4
    )

    def layers() -> nn.Sequential:
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 6))

    trainer = fitted(Trainer(layers(), values, MACHINE, ("toy", 0)), tmp_path)
    model = layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(4):
        if epoch == 2:
            if restart:
                optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
            optimizer.param_groups[0]["lr"] = 0.1 * 0.1
        for images, target in Toy().epoch(epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(images), target).backward()
            optimizer.step()
    torch.testing.assert_close(trainer.model[1].weight, model[1].weight, rtol=0, atol=1e-6)


def test_one_process_has_the_complete_batch():
    batch = np.array([4, 2, 9])
    assert MACHINE.share(batch).tolist() == [4, 2, 9]
    assert (MACHINE.weight(3), MACHINE.agree(5), MACHINE.leads) == (1.0, 5, True)
    model = Mixed()
    assert MACHINE.parallel(model) is model


def test_the_seconds_are_those_of_all_starts(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path, SGD, stop_after=3)
    checkpoint = Checkpoint(tmp_path / "state.safetensors", "toy", 1e9)
    state = checkpoint.load()
    assert 0 < state["history"]["seconds"] < 100
    checkpoint.save(state | {"history": state["history"] | {"seconds": 1000.0}})
    assert 1000 < train(tmp_path, SGD).history.seconds < 1100


@pytest.mark.parametrize(
    ("number", "every"), [(signal.SIGHUP, 1e9), (signal.SIGTERM, 0.0)], ids=["first", "with save"]
)
def test_a_stop_names_its_signal(tmp_path, monkeypatch, number, every):
    """SIGHUP is 1; and a checkpoint may be due at the same step."""
    monkeypatch.setattr(Toy, "number", number)
    with pytest.raises(Interrupted) as caught:
        train(tmp_path, SGD, stop_after=3, every=every)
    assert caught.value.number == number


@pytest.mark.parametrize(("least", "steps"), [(1, 4), (2, 3)])
def test_a_last_batch_that_is_too_small_joins_the_one_before(tmp_path, least, steps):
    toy = Toy()
    toy.images = 19
    trainer = Trainer(Mixed(), SGD, MACHINE, ("toy", 0), least=least)
    checkpoint = Checkpoint(tmp_path / "state.safetensors", "toy", 1e9)
    fit(trainer, toy, F.cross_entropy, measure, checkpoint, Stop(), "toy")
    assert toy.steps == steps


def test_a_gpus_state_continues_on_a_cpu(monkeypatch):
    def fails(_state: Tensor) -> None:
        raise AssertionError("there is no GPU")

    monkeypatch.setattr(torch.cuda, "set_rng_state", fails)
    trainer = Trainer(Mixed(), SGD, MACHINE, ("toy", 0))
    state = trainer.state()
    assert state["cuda_rng"] is None
    trainer.restore(state | {"cuda_rng": torch.get_rng_state()})


def test_a_training_removes_its_bar(tmp_path, monkeypatch):
    closed: list[str] = []
    monkeypatch.setattr(progress.Progress, "close", lambda self: closed.append(self.label))
    train(tmp_path, recipe())
    assert closed == ["toy"]


def test_all_epochs_decide_whether_a_step_is_compiled(tmp_path, compiled_steps):
    values = recipe()
    trained = train(tmp_path, values)
    assert compiled_steps == [trained.job[0]] == [values.epochs * Toy.steps]


def test_ranks_draw_from_seeds_of_their_own_at_every_step():
    found = {}
    for world, rank in ((1, 0), (2, 0), (2, 1)):
        trainer = object.__new__(Trainer)
        trainer.seed = ("toy", 0)
        trainer.device = Device(
            Runtime(device="cpu"), torch.device("cpu"), None, world=world, rank=rank
        )
        torch.manual_seed(0)
        trainer.seed_step(1, 3)
        found[world, rank] = torch.rand(1).item()
    torch.manual_seed(0)
    assert found[1, 0] == torch.rand(1).item()
    assert len(set(found.values())) == 3


def test_a_step_is_built_once_for_a_loss_and_anew_for_another(monkeypatch):
    device, built = Device(Runtime(device="cpu"), torch.device("cpu"), None), []

    def compiled(function: Any, *_: Any, **__: Any) -> Any:
        built.append(function)
        return function

    monkeypatch.setattr(device, "compiled", compiled)
    trainer = Trainer(Mixed(), recipe(), device, ("toy", 0))

    def doubled(logits: Tensor, target: Tensor) -> Tensor:
        return 2 * F.cross_entropy(logits, target)

    trainer.model.drop.p = 0.0
    images, target = torch.ones(4, 3, 8, 8), torch.arange(4)
    sums = []
    for loss in (F.cross_entropy, F.cross_entropy, doubled):
        trainer.loss_sum.zero_()
        trainer.step(images, target, loss, 0.0)
        sums.append(trainer.loss_sum.item())
    assert len(built) == 2
    assert sums == pytest.approx([sums[0], sums[0], 2 * sums[0]])


def test_progress_counts_images(tmp_path, capsys):
    values = recipe(batch_size=6)
    train(tmp_path / "undisturbed", values)
    assert "toy: 80/80 images, " in capsys.readouterr().err
    with pytest.raises(Interrupted):
        train(tmp_path, values, stop_after=6)  # an epoch of 20 and two batches of 6
    train(tmp_path, values)
    assert "toy: 38/80 images, " in capsys.readouterr().err
