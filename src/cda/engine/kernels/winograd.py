"""Frozen 3×3 convolutions by Winograd's F(4×4, 3×3): a quarter of the multiplications.

Recovery spends most of its time in convolutions with frozen weights, so that the weights'
transforms (Lavin and Gray 2016, arXiv:1509.09308) are computed once. The gradient to the images is
such a convolution too, with rotated kernels. The result differs from the direct convolution by
rounding: about 1e-5 of the largest output in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cda.engine.kernels import address, library

# input × output channels up to which transformed weights (144 bytes each) fit a core's cache
CACHED = 2**16

# G of F(4, 3), which maps the three weights of a row or a column to six factors
FACTORS = torch.tensor(
    [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
     [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]], dtype=torch.float64,
)  # fmt: skip


def transformed(weight: Tensor) -> Tensor:
    """Weights [outs, ins, 3, 3] as 36 matrices [36, outs/t, ins, t], t output channels together."""
    outs, ins = weight.shape[:2]
    kernels = library()
    assert kernels is not None
    together = kernels.together(ins, outs)
    turned = torch.einsum("ai,bj,ocij->abco", FACTORS, FACTORS, weight.double())
    return (
        turned.reshape(36, ins, outs // together, together)
        .transpose(1, 2)
        .to(torch.float32)
        .contiguous()
    )


def convolved(images: Tensor, weights: Tensor) -> Tensor:
    """Convolve images [N, ins, H, W] with `transformed` weights to [N, outs, H, W], channels last.

    Raises MemoryError.
    """
    ins, outs = weights.shape[2], weights.shape[1] * weights.shape[3]
    count, _, height, width = images.shape
    images = images.contiguous(memory_format=torch.channels_last)
    made = torch.empty((count, height, width, outs))
    threads = torch.get_num_threads()
    tiles, usual = count * -(-height // 4) * -(-width // 4), 24 if ins * outs <= CACHED else 60
    share = -(-tiles // (threads * -(-tiles // (threads * usual))))  # equal work for every thread
    kernels = library()
    assert kernels is not None
    if kernels.convolve(
        address(images),
        address(weights),
        address(made),
        count,
        height,
        width,
        ins,
        outs,
        share,
        threads,
    ):
        raise MemoryError(f"no memory for a convolution of {ins} to {outs} channels")
    return made.permute(0, 3, 1, 2)


class _Convolution(torch.autograd.Function):
    """A convolution whose gradient goes to the images only."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, onward: Tensor, back: Tensor) -> Tensor:
        ctx.back = back
        return convolved(images, onward)

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, None, None]:
        return convolved(above[0], ctx.back), None, None


class Winograd:
    """A frozen convolution that `suits` the kernel, with transformed weights."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self.onward = transformed(conv.weight)
        self.back = transformed(conv.weight.flip(2, 3).transpose(0, 1))
        self.bias = conv.bias

    def __call__(self, x: Tensor) -> Tensor:
        """[N, ins, H, W] to [N, outs, H, W]."""
        y: Tensor = _Convolution.apply(x, self.onward, self.back)
        return y if self.bias is None else y + self.bias.view(1, -1, 1, 1)


def suits(module: nn.Module) -> bool:
    """Whether a module is a frozen float32 convolution with a shape that the kernel computes."""
    if (
        type(module) is not nn.Conv2d
        or module.weight.requires_grad
        or module.weight.dtype != torch.float32
    ):
        return False
    shape = (
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
        module.padding_mode,
    )
    if shape != ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros"):
        return False
    kernels, ins, outs = library(), module.in_channels, module.out_channels
    return kernels is not None and bool(kernels.together(ins, outs) and kernels.together(outs, ins))


class Convolutions:
    """Replaces convolutions of a frozen model by Winograd's, until `remove`."""

    def __init__(self, model: nn.Module) -> None:
        self.replaced = [module for module in model.modules() if suits(module)]
        for conv in self.replaced:
            assert isinstance(conv, nn.Conv2d)
            conv.forward = Winograd(conv)  # type: ignore[method-assign, assignment]

    def remove(self) -> None:
        """Restore the model's own convolutions."""
        for conv in self.replaced:
            del conv.forward
        self.replaced.clear()
