"""A frozen BN layer and the statistics of its input in one pass over the features, and one back."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from cda.native import at, library

CHUNK = 256  # rows of a partial sum, as in batch_norm.c


class _Normalised(torch.autograd.Function):
    """(layer's output, mean [K, C], biased variance [K, C]) of each of K blocks of the input [K·B, C, H, W].

    Sums are taken off the running mean, near which the batch's mean lies: one pass is then as precise as two.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.BatchNorm2d, blocks: int) -> tuple[Tensor, Tensor, Tensor]:
        x = x.contiguous(memory_format=torch.channels_last)
        scale, shift, centre = _affine(layer)
        channels, rows = x.shape[1], x.numel() // x.shape[1] // blocks
        partial = torch.empty(blocks, -(-rows // CHUNK), 2, channels)
        y = torch.empty_like(x)
        kernels, threads = library(), torch.get_num_threads()
        assert kernels is not None
        kernels.bn_forward(*map(at, (x, scale, shift, centre, y, partial)), *_sizes(blocks, rows, channels), threads)
        first, second = (partial.double().sum(dim=1) / rows).unbind(dim=1)
        mean, var = (first + centre).float(), (second - first.square()).clamp(min=0).float()
        ctx.save_for_backward(x, scale, mean)
        ctx.blocks, ctx.rows = blocks, rows
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, None, None]:
        x, scale, mean = ctx.saved_tensors
        onward, to_mean, to_var = above
        offset, slope = to_mean / ctx.rows, 2 * to_var / ctx.rows
        gradient, onward = torch.empty_like(x), onward.contiguous(memory_format=torch.channels_last)
        kernels, sizes = library(), _sizes(ctx.blocks, ctx.rows, x.shape[1])
        assert kernels is not None
        kernels.bn_backward(
            *map(at, (onward, x, scale, offset, slope, mean, gradient)), *sizes, torch.get_num_threads()
        )
        return gradient, None, None


def _affine(layer: nn.BatchNorm2d) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and shift [C] that the layer is in evaluation, and its running mean."""
    mean, var = layer.running_mean, layer.running_var
    assert mean is not None
    assert var is not None
    scale = torch.rsqrt(var.double() + layer.eps) * (1 if layer.weight is None else layer.weight.double())
    shift = (0 if layer.bias is None else layer.bias.double()) - mean.double() * scale
    return scale.float().contiguous(), shift.float().contiguous(), mean.contiguous()


def _sizes(*values: int) -> tuple[Any, ...]:
    return tuple(ctypes.c_long(value) for value in values)


def normalised(x: Tensor, layer: nn.BatchNorm2d, blocks: int) -> tuple[Tensor, Tensor, Tensor]:
    """What `layer` makes of x [K·B, C, H, W], and mean and biased variance [K, C] of each of x's K blocks."""
    return _Normalised.apply(x, layer, blocks)


def suits(module: nn.Module) -> bool:
    """Whether a module is a frozen float32 BN layer in evaluation."""
    if type(module) is not nn.BatchNorm2d or module.training or module.running_mean is None:
        return False
    frozen = module.weight is None or not module.weight.requires_grad
    return frozen and module.running_mean.dtype == torch.float32 and library() is not None
