"""A frozen BN layer, its input's statistics and the ReLU after it, in one pass over the features.

Another pass computes the gradients.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from cda.engine.kernels import address, library

CHUNK = 256  # rows of a partial sum, as in batch_norm.c


class _Normalised(torch.autograd.Function):
    """Output, and mean and biased variance [K, C] of the K blocks of the input [K·B, C, H, W].

    The kernel sums deviations from the running mean, which is near the batch's mean: one pass is
    then as precise as two.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        plus: Tensor | None,
        layer: nn.BatchNorm2d,
        blocks: int,
        rectified: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, plus = _last(x), None if plus is None else _last(plus)
        scale, shift, centre = _affine(layer)
        channels, rows = x.shape[1], x.numel() // x.shape[1] // blocks
        partial = torch.empty(blocks, -(-rows // CHUNK), 2, channels)
        y = torch.empty_like(x)
        kernels, threads = library(), torch.get_num_threads()
        assert kernels is not None
        where = map(address, (x, plus, scale, shift, centre, y, partial))
        kernels.bn_forward(*where, *_sizes(blocks, rows, channels), rectified, threads)
        first, second = (partial.double().sum(dim=1) / rows).unbind(dim=1)
        mean, var = (first + centre).float(), (second - first.square()).clamp(min=0).float()
        ctx.save_for_backward(x, scale, mean, y if rectified else None)
        ctx.blocks, ctx.rows, ctx.added = blocks, rows, plus is not None
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, mean, y = ctx.saved_tensors
        onward, to_mean, to_var = _last(above[0]), above[1], above[2]  # alive during the call
        offset, slope = to_mean / ctx.rows, 2 * to_var / ctx.rows
        gradient, to_plus = torch.empty_like(x), torch.empty_like(x) if ctx.added else None
        kernels, sizes = library(), _sizes(ctx.blocks, ctx.rows, x.shape[1])
        assert kernels is not None
        where = map(address, (onward, y, x, scale, offset, slope, mean, gradient, to_plus))
        kernels.bn_backward(*where, *sizes, torch.get_num_threads())
        return gradient, to_plus, None, None, None


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _affine(layer: nn.BatchNorm2d) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and shift [C] that the layer applies in evaluation, and its running mean [C]."""
    mean, var = layer.running_mean, layer.running_var
    assert mean is not None
    assert var is not None
    scale = torch.rsqrt(var.double() + layer.eps) * (
        1 if layer.weight is None else layer.weight.double()
    )
    shift = (0 if layer.bias is None else layer.bias.double()) - mean.double() * scale
    return scale.float().contiguous(), shift.float().contiguous(), mean.contiguous()


def _sizes(*values: int) -> tuple[Any, ...]:
    return tuple(ctypes.c_long(value) for value in values)


def normalised(x: Tensor, layer: nn.BatchNorm2d, blocks: int) -> tuple[Tensor, Tensor, Tensor]:
    """layer(x) of x [K·B, C, H, W], and mean and biased variance [K, C] of each of x's blocks."""
    return _Normalised.apply(x, None, layer, blocks, False)


def rectified(
    x: Tensor, plus: Tensor | None, layer: nn.BatchNorm2d, blocks: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `normalised`, with relu(layer(x) + plus) instead of layer(x)."""
    return _Normalised.apply(x, plus, layer, blocks, True)


def suits(module: nn.Module) -> bool:
    """Whether a module is a frozen float32 BN layer in evaluation mode."""
    if type(module) is not nn.BatchNorm2d or module.training or module.running_mean is None:
        return False
    frozen = module.weight is None or not module.weight.requires_grad
    return frozen and module.running_mean.dtype == torch.float32 and library() is not None
