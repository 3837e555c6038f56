"""Distances of the matching methods, by hand."""

from __future__ import annotations

import pytest
import torch

from cda.method.matching import (
    EPSILON,
    embedding_distance,
    gradient_distance,
    trajectory_distance,
    two_pass_gradients,
    unrolled_gradients,
)


def gradients(seed: int) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    shapes = [(4, 3, 3, 3), (4,), (5, 8), (5,)]
    return [torch.randn(shape, generator=draws, dtype=torch.float64) for shape in shapes]


def test_gradients_of_two_rows_worked_out_by_hand():
    """Rows (3, 4) and (1, 0) against (4, 3) and (0, 2): cosines 24/25 and 0."""
    own = [torch.tensor([[3.0, 4.0], [1.0, 0.0]], dtype=torch.float64)]
    other = [torch.tensor([[4.0, 3.0], [0.0, 2.0]], dtype=torch.float64)]
    expected = 1 - 24 / (25 + EPSILON) + 1
    assert gradient_distance(own, other).item() == pytest.approx(expected, abs=1e-12)


def test_equal_and_scaled_gradients_are_at_no_distance_and_opposite_ones_at_two_a_row():
    own = gradients(0)
    assert gradient_distance(own, own).item() == pytest.approx(0, abs=1e-5)
    assert gradient_distance(own, [7 * one for one in own]).item() == pytest.approx(0, abs=1e-5)
    rows = 4 + 5
    opposite = gradient_distance(own, [-one for one in own]).item()
    assert opposite == pytest.approx(2 * rows, abs=1e-5)


def test_biases_and_normalisation_do_not_count():
    own, other = gradients(0), gradients(1)
    changed = [one if one.dim() > 1 else one + 5 for one in other]
    assert torch.equal(gradient_distance(own, other), gradient_distance(own, changed))


def test_a_row_is_one_output_of_a_convolution():
    own, other = gradients(0)[:1], gradients(1)[:1]
    flat = gradient_distance([own[0].reshape(4, 27)], [other[0].reshape(4, 27)])
    assert torch.equal(gradient_distance(own, other), flat)


def test_gradients_of_another_network_are_a_mistake():
    with pytest.raises(ValueError, match="zip"):
        gradient_distance(gradients(0), gradients(0)[:2])


def test_a_vanished_gradient_has_a_distance_and_a_gradient():
    own = [torch.zeros(2, 3, requires_grad=True)]
    distance = gradient_distance(own, [torch.ones(2, 3)])
    distance.backward()
    assert distance.item() == 2
    assert torch.isfinite(own[0].grad).all()


def test_mean_embeddings_worked_out_by_hand():
    own = torch.tensor([[1.0, 2.0], [3.0, 6.0]])  # mean (2, 4)
    real = torch.tensor([[0.0, 1.0], [0.0, 1.0], [3.0, 1.0]])  # mean (1, 1)
    assert embedding_distance(own, real).item() == 1 + 9
    assert embedding_distance(own, own.flip(0)).item() == 0


def test_a_trajectory_worked_out_by_hand():
    """From (0, 0) to (3, 4), of length 5: (3, 0) is reached, 4 away."""
    start, target = torch.zeros(2), torch.tensor([3.0, 4.0])
    distance = trajectory_distance(torch.tensor([3.0, 0.0]), start, target)
    assert distance.item() == pytest.approx(16 / 25)
    assert trajectory_distance(target, start, target).item() == 0
    assert trajectory_distance(start, start, target).item() == 1


IMAGES, WEIGHTS = 6, 4


def step_gradient(images, steps):
    """Of ½ (tanh(x · θ) − 1)² summed over the images of a step: x is in it beside its square."""
    chosen = [torch.arange(step % 2, IMAGES, 2) for step in range(steps)]

    def gradient(step, weights, differentiable):
        own = (images if differentiable else images.detach())[chosen[step]]
        loss = ((own @ weights).tanh() - 1).square().sum() / 2
        return torch.autograd.grad(loss, weights, create_graph=differentiable)[0]

    return gradient


def problem(steps):
    draws = torch.Generator().manual_seed(steps)
    images = torch.randn(IMAGES, WEIGHTS, generator=draws, dtype=torch.float64).requires_grad_()
    start, target = torch.randn(2, WEIGHTS, generator=draws, dtype=torch.float64)
    step_size = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    return step_gradient(images, steps), start, target, images, step_size, steps


def test_one_step_in_two_passes_has_the_gradients_of_the_unrolled_one():
    pairs = zip(two_pass_gradients(*problem(1)), unrolled_gradients(*problem(1)), strict=True)
    for own, other in pairs:
        torch.testing.assert_close(own, other, rtol=0, atol=1e-12)


def test_two_passes_are_autograd_with_the_weights_between_steps_held_constant():
    gradient, start, target, images, step_size, steps = problem(5)
    weights, total = start.clone(), torch.zeros_like(start)
    for step in range(steps):
        own = gradient(step, weights.detach().requires_grad_(), True)
        total = total + own
        weights = (weights - step_size * own).detach()
    loss = (start - step_size * total - target).square().sum() / (start - target).square().sum()
    expected = torch.autograd.grad(loss, images)[0]
    found = two_pass_gradients(gradient, start, target, images, step_size, steps)
    torch.testing.assert_close(found.images, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.distance, loss.detach(), rtol=0, atol=1e-12)
    unrolled = unrolled_gradients(gradient, start, target, images, step_size, steps)
    torch.testing.assert_close(unrolled.distance, loss.detach(), rtol=0, atol=1e-12)
    assert (unrolled.images - expected).norm() > 0.01 * expected.norm()


def test_the_step_size_s_gradient_of_two_passes_holds_the_sum_of_gradients_constant():
    gradient, start, target, images, step_size, steps = problem(3)
    weights, total = start.clone(), torch.zeros_like(start)
    for step in range(steps):
        own = gradient(step, weights.requires_grad_(), False)
        total, weights = total + own, (weights - 0.1 * own).detach()
    loss = (start - step_size * total - target).square().sum() / (start - target).square().sum()
    expected = torch.autograd.grad(loss, step_size)[0]
    found = two_pass_gradients(gradient, start, target, images, step_size, steps)
    torch.testing.assert_close(found.step_size, expected, rtol=0, atol=1e-12)


def test_unrolled_gradients_are_differences_of_the_distance():
    gradient, start, target, images, step_size, steps = problem(4)
    found = unrolled_gradients(gradient, start, target, images, step_size, steps)

    def distance(changed, size):
        weights, own = start, step_gradient(changed, steps)
        for step in range(steps):
            weights = weights - size * own(step, weights.detach().requires_grad_(), False)
        return trajectory_distance(weights, start, target)

    change = torch.zeros_like(images)
    change[2, 1] = 1e-6
    with_images = (distance(images + change, 0.1) - distance(images - change, 0.1)) / 2e-6
    assert found.images[2, 1].item() == pytest.approx(with_images.item(), rel=1e-6)
    with_size = (distance(images, 0.1 + 1e-6) - distance(images, 0.1 - 1e-6)) / 2e-6
    assert found.step_size.item() == pytest.approx(with_size.item(), rel=1e-6)
