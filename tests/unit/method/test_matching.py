"""Distances of the matching methods, by hand."""

from __future__ import annotations

import pytest
import torch

from cda.method.matching import EPSILON, embedding_distance, gradient_distance


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
