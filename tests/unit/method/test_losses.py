"""Post-training's losses against their formulas in numpy, and their gradients against the closed
forms.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cda.method.losses import kd_loss, mixed_ce

torch.set_num_threads(1)


def logits(seed: int, count: int = 6, classes: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, classes)).astype(np.float32) * 4


def softmax(row: np.ndarray) -> np.ndarray:
    grown = np.exp(row.astype(np.float64) - row.max())
    return grown / grown.sum()


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0, 30.0])
def test_kd_loss_is_the_divergence_from_teacher_to_student(temperature, squared):
    student, teacher = logits(0), logits(1)
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        p, q = softmax(t / temperature), softmax(s / temperature)
        total += sum(p[k] * (math.log(p[k]) - math.log(q[k])) for k in range(len(p)))
    expected = total / len(student) * (temperature**2 if squared else 1)
    found = kd_loss(torch.from_numpy(student), torch.from_numpy(teacher), temperature, squared)
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_kd_loss_worked_out_by_hand():
    """Teacher (3/4, 1/4) and student (1/2, 1/2) at temperature 2.

    Ln 2 minus the entropy of (3/4, 1/4).
    """
    teacher = torch.tensor([[2 * math.log(3.0), 0.0]])
    expected = math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert kd_loss(torch.zeros(1, 2), teacher, 2.0).item() == pytest.approx(expected, rel=1e-6)
    assert kd_loss(torch.zeros(1, 2), teacher, 2.0, squared=True).item() == pytest.approx(
        4 * expected, rel=1e-6
    )


@pytest.mark.parametrize("squared", [False, True])
def test_kd_loss_spreads_a_share_of_the_teacher_over_all_classes(squared):
    """At temperature T, as the other terms; the share goes to the classes in equal parts."""
    student, teacher, temperature, smoothing = logits(9), logits(10), 4.0, 0.2
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        q, plain = softmax(s / temperature), softmax(t / temperature)
        p = [0.8 * value + 0.2 / len(plain) for value in plain]
        assert sum(p) == pytest.approx(1)
        total += sum(p[k] * (math.log(p[k]) - math.log(q[k])) for k in range(len(p)))
    expected = total / len(student) * (temperature**2 if squared else 1)
    tensors = (torch.from_numpy(student), torch.from_numpy(teacher))
    found = kd_loss(*tensors, temperature, squared, smoothing)
    assert found.item() == pytest.approx(expected, rel=1e-4)
    assert kd_loss(*tensors, temperature, squared).item() != pytest.approx(expected, rel=1e-2)


def test_kd_loss_of_equal_logits_is_zero_whatever_their_offset():
    one = torch.from_numpy(logits(2))
    assert kd_loss(one + 7, one, 20.0, squared=True).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("squared", [False, True])
def test_kd_gradient_is_the_difference_of_the_softmaxes(squared):
    temperature, (s, t) = 4.0, (logits(3), logits(4))
    student = torch.from_numpy(s).requires_grad_()
    kd_loss(student, torch.from_numpy(t), temperature, squared).backward()
    factor = (temperature if squared else 1 / temperature) / len(s)
    expected = [
        factor * (softmax(a / temperature) - softmax(b / temperature))
        for a, b in zip(s, t, strict=True)
    ]
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-4, atol=1e-7)


def test_kd_loss_of_half_precision_logits_is_float32():
    student, teacher = torch.from_numpy(logits(5)).bfloat16(), torch.from_numpy(logits(6)).half()
    found = kd_loss(student, teacher, 20.0)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(
        kd_loss(student.float(), teacher.float(), 20.0).item(), rel=1e-6
    )


def test_mixed_ce_weighs_both_classes_by_the_share():
    student, own, partner = logits(7), np.array([0, 1, 2, 3, 4, 0]), np.array([1, 1, 0, 4, 2, 3])
    share = np.array([1.0, 0.3, 0.0, 0.5, 0.75, 0.9], dtype=np.float32)
    total = 0.0
    for row, a, b, r in zip(student, own, partner, share, strict=True):
        p = softmax(row)
        total -= float(r) * math.log(p[a]) + (1 - float(r)) * math.log(p[b])
    tensors = [torch.from_numpy(values) for values in (student, own, partner, share)]
    assert mixed_ce(*tensors).item() == pytest.approx(total / 6, rel=1e-5)


def test_mixed_ce_spreads_a_share_of_both_classes_over_all():
    student, own, partner = logits(11), np.array([0, 1, 2, 3, 4, 0]), np.array([1, 1, 0, 4, 2, 3])
    share = np.array([1.0, 0.3, 0.0, 0.5, 0.75, 0.9], dtype=np.float32)
    total = 0.0
    for row, a, b, r in zip(student, own, partner, share, strict=True):
        target = np.full(5, 0.2 / 5)
        target[a] += 0.8 * r
        target[b] += 0.8 * (1 - r)
        total -= target @ np.log(softmax(row))
    tensors = [torch.from_numpy(values) for values in (student, own, partner, share)]
    assert mixed_ce(*tensors, 0.2).item() == pytest.approx(total / 6, rel=1e-5)
    assert mixed_ce(*tensors).item() != pytest.approx(total / 6, rel=1e-2)


def test_mixed_ce_gradient_is_softmax_less_the_mixed_label():
    student = torch.from_numpy(logits(8, count=3)).requires_grad_()
    own, partner, share = (
        torch.tensor([0, 2, 4]),
        torch.tensor([1, 2, 0]),
        torch.tensor([0.25, 0.6, 1.0]),
    )
    mixed_ce(student, own, partner, share).backward()
    labels = np.array([[0.25, 0.75, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1]])
    expected = [
        (softmax(row) - label) / 3
        for row, label in zip(student.detach().numpy(), labels, strict=True)
    ]
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-4, atol=1e-6)
