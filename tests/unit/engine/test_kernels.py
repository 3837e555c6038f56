"""Recovery's own CPU kernels.

Equal to torch's operations up to rounding, on every shape, and never in the way.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cda.config.recipe import Architecture, Recover
from cda.config.settings import Runtime
from cda.engine import kernels
from cda.engine.device import Device
from cda.engine.kernels import batch_norm, winograd
from cda.engine.objective import Objective
from cda.method.bn_matching import BNMatching
from cda.method.networks import build
from cda.stages.models import accelerate

torch.set_num_threads(1)


def far(found: torch.Tensor, precise: torch.Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((found.double() - precise).abs().max() / precise.abs().max())


@pytest.fixture
def two_threads():
    yield
    torch.set_num_threads(1)


# Convolutions

SHAPES = [
    (1, 16, 16, 4, 4),
    (3, 32, 64, 7, 9),
    (2, 64, 32, 14, 14),
    (5, 16, 48, 1, 1),
    (2, 48, 16, 5, 2),
    (9, 128, 128, 8, 8),
]


@pytest.mark.compiler
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_and_its_gradient_are_torchs(shape, bias):
    count, ins, outs, height, width = shape
    torch.manual_seed(0)
    conv = nn.Conv2d(ins, outs, 3, padding=1, bias=bias).requires_grad_(False)
    x = torch.randn(count, ins, height, width, requires_grad=True)
    above = torch.randn(count, outs, height, width)
    assert winograd.suits(conv)
    found = winograd.Winograd(conv)(x)
    (gradient,) = torch.autograd.grad(found, x, above)
    x64 = x.detach().double().requires_grad_()
    precise = F.conv2d(
        x64, conv.weight.double(), None if conv.bias is None else conv.bias.double(), padding=1
    )
    (expected,) = torch.autograd.grad(precise, x64, above.double())
    assert found.shape == precise.shape
    assert far(found.detach(), precise.detach()) < 3e-5
    assert far(gradient, expected) < 3e-5


@pytest.mark.compiler
def test_threads_change_no_byte_of_a_convolution(two_threads):
    conv = nn.Conv2d(32, 64, 3, padding=1, bias=False).requires_grad_(False)
    x, layer = torch.randn(7, 32, 10, 10), winograd.Winograd(conv)
    alone = layer(x)
    torch.set_num_threads(2)
    assert torch.equal(layer(x), alone)


OTHERS = {
    "stride": nn.Conv2d(32, 32, 3, stride=2, padding=1),
    "kernel": nn.Conv2d(32, 32, 5, padding=2),
    "padding": nn.Conv2d(32, 32, 3),
    "padding mode": nn.Conv2d(32, 32, 3, padding=1, padding_mode="reflect"),
    "dilation": nn.Conv2d(32, 32, 3, padding=1, dilation=2),
    "groups": nn.Conv2d(32, 32, 3, padding=1, groups=2),
    "channels": nn.Conv2d(3, 32, 3, padding=1),
    "precision": nn.Conv2d(32, 32, 3, padding=1).double(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_convolutions_stay_torchs(name):
    assert not winograd.suits(OTHERS[name].requires_grad_(False))


def test_a_convolution_that_is_trained_stays_torchs():
    assert not winograd.suits(nn.Conv2d(32, 32, 3, padding=1))


# BN layers


def layer_of(channels: int, affine: bool = True) -> nn.BatchNorm2d:
    torch.manual_seed(1)
    layer = nn.BatchNorm2d(channels, affine=affine).eval()
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    if affine:
        layer.weight.data.uniform_(-1, 1)
        layer.bias.data.normal_()
    return layer.requires_grad_(False)


@pytest.mark.compiler
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("channels", "blocks", "size"), [(3, 1, 1), (16, 2, 9), (20, 3, 17), (64, 1, 32)]
)
def test_a_bn_layer_and_its_statistics_are_torchs(channels, blocks, size, affine):
    layer = layer_of(channels, affine)
    x = (3 + 2 * torch.randn(blocks * 4, channels, size, size)).requires_grad_()
    found = batch_norm.normalised(x, layer, blocks)
    above = [torch.randn_like(part) for part in found]
    (gradient,) = torch.autograd.grad(found, x, above)
    x64 = x.detach().double().requires_grad_()
    grouped = x64.view(blocks, 4, channels, -1)
    var, mean = torch.var_mean(grouped, dim=(1, 3), correction=0)
    precise = (layer.double()(x64), mean, var)
    (expected,) = torch.autograd.grad(precise, x64, [part.double() for part in above])
    for part, wanted in zip(found, precise, strict=True):
        assert part.shape == wanted.shape
        assert far(part.detach(), wanted.detach()) < 1e-5
    assert far(gradient, expected) < 1e-5


@pytest.mark.compiler
@pytest.mark.parametrize("added", [True, False])
def test_a_sum_and_a_relu_after_it_are_torchs(added):
    layer = layer_of(20)
    x = (3 + 2 * torch.randn(6, 20, 9, 9)).requires_grad_()
    plus = torch.randn(6, 20, 9, 9, requires_grad=True) if added else None
    found = batch_norm.rectified(x, plus, layer, 2)
    above = [torch.randn_like(part) for part in found]
    inputs = [x, plus] if added else [x]
    gradients = torch.autograd.grad(found, inputs, above)
    doubles = [value.detach().double().requires_grad_() for value in inputs]
    var, mean = torch.var_mean(doubles[0].view(2, 3, 20, -1), dim=(1, 3), correction=0)
    precise = (torch.relu(layer.double()(doubles[0]) + (doubles[1] if added else 0)), mean, var)
    expected = torch.autograd.grad(precise, doubles, [part.double() for part in above])
    for part, wanted in zip((*found, *gradients), (*precise, *expected), strict=True):
        assert part.shape == wanted.shape
        assert far(part.detach(), wanted.detach()) < 1e-5


@pytest.mark.compiler
@pytest.mark.parametrize("size", [1, 4, 8])
def test_a_gradient_in_another_memory_layout_is_copied_and_stays_alive(size):
    """Global pooling hands back one value for a whole map.

    The first image's was once read after it was freed.
    """
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(128).eval().requires_grad_(False)
    x = torch.randn(100, 128, size, size)
    weights = torch.randn(100, 128)

    def gradient(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad((y.mean(dim=(2, 3)) * weights.to(y)).sum(), x)[0]

    for _ in range(20):
        one = x.clone().requires_grad_()
        y, _, _ = batch_norm.rectified(one, None, layer, 1)
        precise = x.double().requires_grad_()
        expected = gradient(precise, layer.double()(precise).relu())
        layer.float()
        assert far(gradient(one, y), expected) < 1e-5


@pytest.mark.compiler
def test_a_variance_far_smaller_than_the_mean_is_precise():
    """Sums off the running mean do not cancel, where E[x²] − E[x]² in float32 would."""
    layer = layer_of(8)
    layer.running_mean.fill_(1000.0)
    x = 1000 + 0.1 * torch.randn(10, 8, 16, 16)
    _, _, var = batch_norm.normalised(x, layer, 1)
    assert far(var[0], x.double().var(dim=(0, 2, 3), correction=0)) < 1e-3


@pytest.mark.compiler
def test_threads_change_no_byte_of_the_statistics(two_threads):
    x, layer = torch.randn(8, 24, 23, 23), layer_of(24)
    alone = batch_norm.normalised(x, layer, 2)
    torch.set_num_threads(2)
    assert all(
        torch.equal(a, b) for a, b in zip(batch_norm.normalised(x, layer, 2), alone, strict=True)
    )


@pytest.mark.parametrize(
    "layer",
    [layer_of(8).train(), layer_of(8).double(), nn.BatchNorm2d(8).eval(), nn.BatchNorm1d(8)],
)
def test_other_layers_keep_their_hooks(layer):
    assert not batch_norm.suits(layer)


# In a model


def network(name: str = "resnet18") -> nn.Module:
    torch.manual_seed(2)
    model = build(name, 10, 16, Architecture(stem="small", width=0.5)).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
    return model


def losses(objective: Objective, images: torch.Tensor) -> list[torch.Tensor]:
    """Both losses, and the gradient of their sum to the images."""
    uncropped = torch.tensor([[0, 0, images.shape[-1], images.shape[-1], 0]])
    views = uncropped.expand(objective.blocks, -1)
    entropy, distance = objective(images, views, torch.arange(len(images)) % 10)
    (gradient,) = torch.autograd.grad(entropy.sum() + distance.sum(), images)
    return [entropy.detach(), distance.detach(), gradient]


def device(compiling: str = "auto") -> Device:
    return Device(Runtime(device="cpu", compile=compiling), torch.device("cpu"), None)


def smooth() -> nn.Module:
    """A network without ReLUs, whose kinks make a gradient jump where rounding moves a value past
    zero.
    """
    torch.manual_seed(3)
    layers: list[nn.Module] = []
    for ins, outs in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(ins, outs, 3, padding=1), layer_of(outs), nn.Tanh()]
    return (
        nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(512, 10))
        .eval()
        .requires_grad_(False)
    )


@pytest.mark.parametrize("blocks", [1, 3])
def test_losses_and_gradient_are_the_references(blocks):
    model, images = smooth(), torch.randn(6, 3, 16, 16, requires_grad=True)
    recipe, found = Recover(mode="constant"), {}
    for compiling in ("never", "auto"):
        objective = Objective(model, blocks, recipe, device(compiling), 1)
        found[compiling] = losses(objective, images)
        objective.close()
    exact = Objective(model.double(), blocks, recipe, device("never"), 1)
    wanted = losses(exact, images.detach().double().requires_grad_())
    for fast, plain, precise in zip(found["auto"], found["never"], wanted, strict=True):
        assert far(plain, precise) < 1e-5
        assert far(fast, precise) < 1e-4


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_residual_network_has_the_references_losses(name):
    images, found = torch.randn(6, 3, 16, 16, requires_grad=True), {}
    for compiling in ("never", "auto"):
        objective = Objective(network(name), 2, Recover(mode="constant"), device(compiling), 1)
        found[compiling] = losses(objective, images)
        objective.close()
    for fast, plain in zip(found["auto"][:2], found["never"][:2], strict=True):
        assert far(fast, plain.double()) < 1e-4


@pytest.mark.compiler
def test_a_closed_objective_leaves_the_model_as_it_was():
    model = network()
    before = {name: type(module).forward for name, module in model.named_modules()}
    objective = Objective(model, 1, Recover(mode="constant"), device(), 1)
    assert (
        sum("forward" in vars(module) for module in model.modules()) == 20 + 13
    )  # BN layers; 3×3 of stride 1
    assert sum("rectified" in vars(module) for module in model.modules()) == 20
    objective.close()
    left = [module for module in model.modules() if {"forward", "rectified"} & set(vars(module))]
    assert not left
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert {name: type(module).forward for name, module in model.named_modules()} == before


def test_the_reference_uses_plain_torch():
    objective = Objective(network(), 1, Recover(mode="constant"), device("never"), 1)
    assert not any("forward" in vars(module) for module in objective.model.modules())
    objective.close()


@pytest.mark.compiler
@pytest.mark.parametrize(("compiling", "replaced"), [("auto", 13), ("never", 0)])
def test_a_relabel_model_takes_the_kernels_where_it_may(compiling, replaced):
    model, images, own = network(), torch.randn(5, 3, 16, 16), device(compiling)
    with torch.inference_mode():
        wanted = model(images).double()
        found = accelerate(model, own, 1, 4)(images)
    assert sum("forward" in vars(module) for module in model.modules()) == replaced
    assert own.compiles == bool(replaced)
    assert far(found, wanted) < 1e-4


# The compiler


@pytest.fixture
def afresh(monkeypatch, tmp_path):
    """No library is loaded, and the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels.library.cache_clear()
    yield tmp_path / "cda"
    kernels.library.cache_clear()


def test_without_a_compiler_one_line_is_logged_and_torch_does_the_work(afresh, monkeypatch, capsys):
    monkeypatch.setattr(kernels.shutil, "which", lambda _name: None)
    own = device()
    objective = Objective(network(), 1, Recover(mode="constant"), own, 1)
    assert capsys.readouterr().err.count("\n") == 1
    assert not own.compiles
    assert not any("forward" in vars(module) for module in objective.model.modules())
    objective.close()
    assert not BNMatching(network(), 1, kernels=batch_norm)._distances


@pytest.mark.compiler
def test_a_compiler_that_fails_is_reported_in_one_line(afresh, monkeypatch, capsys):
    monkeypatch.setattr(kernels, "FLAGS", ("--no-such-flag",))
    assert kernels.library() is None
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "no-such-flag" in line


@pytest.mark.compiler
def test_the_kernels_are_compiled_once(afresh, monkeypatch):
    assert kernels.library() is not None
    (made,) = afresh.iterdir()
    written = made.stat().st_mtime_ns
    kernels.library.cache_clear()
    assert kernels.library() is not None
    assert made.stat().st_mtime_ns == written
    monkeypatch.setattr(kernels, "FLAGS", (*kernels.FLAGS, "-DOTHER"))
    kernels.library.cache_clear()
    assert kernels.library() is not None
    assert len(list(afresh.iterdir())) == 2


@pytest.mark.compiler
def test_the_kernels_compile_without_a_warning(tmp_path):
    command = [
        "cc",
        *kernels.FLAGS,
        "-Wno-psabi",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-o",
        str(tmp_path / "k.so"),
        *map(str, kernels.SOURCES),
    ]
    subprocess.run(command, check=True)


# The cache of the compiled kernels

LOAD = "from cda.engine.kernels import library; print(library() is not None)"
BARE = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}


def loaded(**environment: str) -> str:
    """Whether a new process has the kernels; it must log nothing."""
    command = [sys.executable, "-c", LOAD]
    environment |= BARE
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout.strip()


@pytest.mark.compiler
def test_without_a_home_that_can_be_written_the_kernels_are_the_process_s_own(tmp_path):
    (tmp_path / "file").write_text("")
    assert loaded(HOME=str(tmp_path / "file"), TMPDIR=str(tmp_path)) == "True"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    assert loaded(XDG_CACHE_HOME=str(tmp_path)) == "True"
    (cached,) = (tmp_path / "cda").iterdir()
    before = cached.stat().st_mtime_ns
    assert loaded(XDG_CACHE_HOME=str(tmp_path)) == "True"
    assert cached.stat().st_mtime_ns == before


@pytest.mark.compiler
def test_a_user_whom_the_system_does_not_know_has_the_kernels(tmp_path):
    unknown = ["unshare", "--user", "--map-user=12345"]
    tried = shutil.which("unshare") and subprocess.run([*unknown, "true"], check=False)
    if not tried or tried.returncode:
        pytest.skip("needs unshare and user namespaces")
    script = "import os; assert os.getuid() == 12345; " + LOAD
    command = [*unknown, sys.executable, "-c", script]
    done = subprocess.run(
        command, env=BARE, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("True", "")
    assert not list(tmp_path.iterdir())
