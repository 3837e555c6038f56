"""The BN loss of a network of two BN layers, computed again in numpy from its weights.

Blocks, precision, hooks.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cda.errors import ConfigError
from cda.method.bn_matching import BNMatching, Moments, bn_distance, bn_layers

torch.set_num_threads(1)


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Convolution, BN, ReLU, convolution, BN, mean, linear, with running statistics and weights of
    their own.
    """
    conv = [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)]
    layers = [
        conv[0],
        nn.BatchNorm2d(4),
        nn.ReLU(),
        conv[1],
        nn.BatchNorm2d(5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    model = nn.Sequential(*layers, nn.Linear(5, 2)).to(dtype).eval()
    draws = np.random.default_rng(0)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.from_numpy(draws.uniform(0.5, 2.0, tensor.shape)))
        elif tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(draws.standard_normal(tensor.shape) * 0.5))
    return model


def images(count: int, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, 3, 6, 6)))


def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """A 3×3 convolution with one pixel of zeros around."""
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)]), (3, 3), axis=(2, 3)
    )
    return np.einsum("nchwij,ocij->nohw", windows, weight) + bias[:, None, None]


def distance(features: np.ndarray, mean: np.ndarray, var: np.ndarray) -> float:
    """The two L2 norms of one layer, by plain sums over images and pixels."""
    squares = [0.0, 0.0]
    for channel in range(features.shape[1]):
        values = features[:, channel].ravel()
        middle = values.sum() / len(values)
        spread = ((values - middle) ** 2).sum() / len(values)
        squares[0] += (spread - var[channel]) ** 2
        squares[1] += (middle - mean[channel]) ** 2
    return float(np.sqrt(squares[0]) + np.sqrt(squares[1]))


def by_hand(model: nn.Sequential, x: np.ndarray, first: float = 10.0) -> float:
    w = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    one = convolved(x, w["0.weight"], w["0.bias"])
    total = first * distance(one, w["1.running_mean"], w["1.running_var"])
    scale = w["1.weight"] / np.sqrt(w["1.running_var"] + 1e-5)
    normal = (one - w["1.running_mean"][:, None, None]) * scale[:, None, None] + w["1.bias"][
        :, None, None
    ]
    two = convolved(np.maximum(normal, 0), w["3.weight"], w["3.bias"])
    return total + distance(two, w["4.running_mean"], w["4.running_var"])


def loss(model: nn.Module, x: torch.Tensor, blocks: int = 1, **values: float) -> torch.Tensor:
    matching = BNMatching(model, blocks, **values)
    try:
        model(x)
        return matching.loss()
    finally:
        matching.remove()


@pytest.mark.parametrize("first", [10.0, 1.0, 0.0])
def test_loss_is_that_of_the_layers_inputs_by_hand(first):
    model, x = network(), images(7)
    found = loss(model, x, first_multiplier=first)
    assert found.shape == (1,)
    assert found.item() == pytest.approx(by_hand(model, x.numpy(), first), rel=1e-12)


def test_the_first_layer_counts_ten_times_by_default():
    model, x = network(), images(4)
    assert loss(model, x).item() == pytest.approx(by_hand(model, x.numpy(), 10.0), rel=1e-12)


def test_blocks_together_are_each_matched_alone():
    model, x = network(), images(12)
    together = loss(model, x, blocks=3)
    assert together.tolist() == pytest.approx(
        [by_hand(model, block.numpy()) for block in x.split(4)], rel=1e-12
    )
    assert together.tolist() == pytest.approx(
        [loss(model, block).item() for block in x.split(4)], rel=1e-12
    )
    assert together.mean().item() != pytest.approx(loss(model, x).item(), rel=1e-3)


def test_gradient_is_the_slope_of_the_loss_and_stays_in_its_block():
    model, x = network(), images(6).requires_grad_()
    (slope,) = torch.autograd.grad(loss(model, x, blocks=2)[0], x)
    assert (slope[3:] == 0).all()
    plain = x.detach().numpy()
    for at in [(0, 0, 0, 0), (1, 2, 3, 4), (2, 1, 5, 5)]:
        up, down = plain.copy(), plain.copy()
        up[at] += 1e-6
        down[at] -= 1e-6
        rise = (by_hand(model, up[:3]) - by_hand(model, down[:3])) / 2e-6
        assert slope[at].item() == pytest.approx(rise, rel=1e-5, abs=1e-7)


def test_a_new_forward_pass_replaces_the_last_one():
    model = network()
    matching = BNMatching(model, 1)
    model(images(5, seed=2))
    matching.loss()
    model(images(5, seed=3))
    assert matching.loss().item() == pytest.approx(
        by_hand(model, images(5, seed=3).numpy()), rel=1e-12
    )
    matching.remove()


class AnyLayer:
    """Stands in for kernels: they suit every layer, and none is called here."""

    def suits(self, _module: nn.Module) -> bool:
        return True


def test_removing_twice_leaves_the_model_as_it_was():
    model = network()
    matching = BNMatching(model, 1, kernels=AnyLayer())  # type: ignore[arg-type]
    for _ in range(2):
        matching.remove()
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 7), (6, 5, 3, 4), (6, 5, 2, 3, 4)])
def test_statistics_are_over_everything_but_the_channel(shape):
    draws = np.random.default_rng(3)
    x, mean, var = draws.standard_normal(shape), draws.standard_normal(5), draws.uniform(0.5, 2, 5)
    found = bn_distance(torch.from_numpy(x), torch.from_numpy(mean), torch.from_numpy(var), 2)
    assert found.tolist() == pytest.approx(
        [distance(x[:3], mean, var), distance(x[3:], mean, var)], rel=1e-12
    )


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 7), (6, 5, 3, 4)])
def test_moments_and_their_gradient_are_torchs(shape):
    draws = np.random.default_rng(5)
    x = torch.from_numpy(draws.standard_normal((2, 3, *shape[1:]))).requires_grad_()
    over = [1, *range(3, x.ndim)]
    found = Moments.apply(x, over)
    expected = torch.var_mean(x, dim=over, correction=0)
    weights = [torch.from_numpy(draws.standard_normal((2, 5))) for _ in range(2)]
    gradients = [
        torch.autograd.grad(
            sum((w * part).sum() for w, part in zip(weights, parts, strict=True)), x
        )[0]
        for parts in (found, expected)
    ]
    for one, other in zip([*found, gradients[0]], [*expected, gradients[1]], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)


def test_moments_of_half_precision_have_a_gradient_in_it():
    x = torch.linspace(-1, 1, 60).view(1, 6, 5, 2).bfloat16().requires_grad_()
    var, mean = Moments.apply(x, [1, 3])
    assert var.dtype == mean.dtype == torch.float32
    (3 * var + mean).sum().backward()
    exact = (1 + 6 * (x.double() - x.double().mean((1, 3), keepdim=True))) / 12
    torch.testing.assert_close(x.grad, exact.bfloat16(), rtol=1e-2, atol=1e-4)


def test_half_precision_inputs_have_float32_statistics():
    draws = np.random.default_rng(4)
    x = torch.from_numpy(draws.standard_normal((64, 5, 16, 16)) + 30).bfloat16()
    mean, var = (
        draws.standard_normal(5).astype(np.float32),
        draws.uniform(0.5, 2, 5).astype(np.float32),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = bn_distance(x, torch.from_numpy(mean), torch.from_numpy(var), 1)
    assert found.dtype == torch.float32
    exact = distance(x.double().numpy(), mean.astype(np.float64), var.astype(np.float64))
    assert found.item() == pytest.approx(exact, rel=1e-5)


def test_under_autocast_the_loss_stays_float32():
    model, x = network(torch.float32), images(8).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(model, x)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(loss(model, x).item(), rel=0.02)


def test_matching_leaves_the_model_as_it_was():
    model, x = network(), images(5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    output = model(x)
    matching = BNMatching(model, 1)
    assert torch.equal(model(x), output)
    assert [len(layer._forward_pre_hooks) for layer in bn_layers(model)] == [1, 1]
    matching.remove()
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(4, 4)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    ],
)
def test_a_model_without_running_statistics_is_refused_in_one_line(model):
    with pytest.raises(ConfigError, match="no BN layers") as caught:
        BNMatching(model, 1)
    assert "\n" not in str(caught.value)
    assert not any(module._forward_pre_hooks for module in model.modules())


class WithUnusedHead(nn.Module):
    """As GoogLeNet and Inception: a BN layer that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x)) if self.training else self.body(x)


def test_layers_that_the_forward_pass_skips_do_not_count():
    x = images(4).float()
    expected = 10 * distance(x.double().numpy(), np.zeros(3), np.ones(3))
    assert loss(WithUnusedHead().eval(), x).item() == pytest.approx(expected, rel=1e-5)
