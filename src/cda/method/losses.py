"""Losses of post-training, for soft labels (FKD; fidelity 11, 13, 15) and for hard labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def precise(values: Tensor) -> Tensor:
    """Numbers in float32 or better, as losses and statistics of half-precision ones need."""
    return values if values.dtype == torch.float64 else values.float()


def kd_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    squared: bool = False,
    smoothing: float = 0.0,
) -> Tensor:
    """KL(softmax(teacher/T) ‖ softmax(student/T)), mean over the batch, for logits [N, C].

    `squared` multiplies it by T². `smoothing` spreads that share of the teacher's softmax over all
    classes (fidelity 16).
    """
    target = F.log_softmax(precise(teacher) / temperature, dim=1)
    if smoothing:
        target = torch.log((1 - smoothing) * target.exp() + smoothing / teacher.shape[1])
    loss = F.kl_div(
        F.log_softmax(precise(student) / temperature, dim=1),
        target,
        reduction="batchmean",
        log_target=True,
    )
    return loss * temperature**2 if squared else loss


def mixed_ce(
    student: Tensor, own: Tensor, partner: Tensor, share: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of mixed images with hard labels, mean over the batch, for logits [N, C].

    An image has the share [N] of its `own` class [N], the rest is its `partner`'s class [N].
    """
    student = precise(student)
    first = F.cross_entropy(student, own, reduction="none", label_smoothing=smoothing)
    second = F.cross_entropy(student, partner, reduction="none", label_smoothing=smoothing)
    return torch.mean(share * first + (1 - share) * second)
