"""The regulariser of recovery: BN statistics of the images match those of the real data.

Paper Eq. 7 sums, over the recovery model's BN layers, the L2 distances of channel means and
variances to the running ones. As in the authors' code the statistics are of the layer's INPUT, the
variance is biased, and the first layer counts ten times (fidelity 5). They are taken per class
block: a batch may hold several blocks in a row, each matched by itself. On a CPU in float32,
kernels that the caller passes compute the statistics and the layer's output in one pass; hooks and
torch are the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cda.errors import ConfigError
from cda.method.losses import precise

BatchNorm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def bn_layers(model: nn.Module) -> Sequence[nn.Module]:
    """The model's BN layers with running statistics, in module order.

    Raises ConfigError if there is none.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, BatchNorm) and module.running_mean is not None
    ]
    if not layers:
        raise ConfigError(
            f"recovery model {type(model).__name__} has no BN layers to match; choose one "
            "that has, such as resnet18"
        )
    return layers


class Moments(torch.autograd.Function):
    """Biased variance and mean [K, C] of x [K, B, C, …] per block, in float32 or better.

    torch's own backward pass of `var_mean` reduces x a second time, and holds a float32 copy of it.
    This one holds x and the mean.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, over: list[int]) -> tuple[Tensor, Tensor]:
        """Variance and mean over the dimensions `over`: all but those of blocks and channels."""
        var, mean = torch.var_mean(precise(x), dim=over, correction=0)
        ctx.save_for_backward(x, mean)
        return var, mean

    @staticmethod
    def backward(ctx: Any, d_var: Tensor, d_mean: Tensor) -> tuple[Tensor, None]:
        """(d_mean + 2 d_var (x − mean)) / n, in x's precision."""
        x, mean = ctx.saved_tensors
        count, shape = x.numel() // mean.numel(), (len(x), 1, -1, *[1] * (x.ndim - 3))
        mean, d_var, d_mean = (part.view(shape) for part in (mean, d_var, d_mean))
        return ((d_mean + 2 * d_var * (x.to(mean.dtype) - mean)) / count).to(x.dtype), None


def bn_distance(features: Tensor, mean: Tensor, var: Tensor, blocks: int) -> Tensor:
    """‖var − RV‖₂ + ‖mean − RM‖₂ of each block [blocks] for features [blocks·B, C, …].

    Computed in float32 or better; `mean` and `var` [C] are the running statistics RM and RV.
    """
    grouped = features.reshape(blocks, -1, *features.shape[1:])
    over = [1, *range(3, grouped.ndim)]
    if features.is_cuda:
        block_var, block_mean = Moments.apply(grouped, over)
    else:
        block_var, block_mean = torch.var_mean(precise(grouped), dim=over, correction=0)
    return _distance(block_mean, block_var, mean, var)


def _distance(block_mean: Tensor, block_var: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm
    return norm(block_var - var, dim=1) + norm(block_mean - mean, dim=1)


class Kernels(Protocol):
    """Compute a frozen BN layer with its input's mean and biased variance [blocks, C]."""

    def suits(self, module: nn.Module) -> bool:
        """Whether the kernels take a layer of this shape and dtype."""

    def normalised(
        self, x: Tensor, layer: nn.BatchNorm2d, blocks: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """layer(x), means and variances."""

    def rectified(
        self, x: Tensor, plus: Tensor | None, layer: nn.BatchNorm2d, blocks: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """relu(layer(x) + plus), means and variances."""


class BNMatching:
    """Observes a model's BN layers: after a forward pass, `loss` sums their distances per block.

    A batch holds `blocks` class blocks in a row. `kernels` (`cda.engine.kernels.batch_norm`)
    replace the layers that they suit; with None torch computes all.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: int,
        first_multiplier: float = 10.0,
        kernels: Kernels | None = None,
    ) -> None:
        layers = bn_layers(model)
        self.blocks = blocks
        self.multipliers = [first_multiplier] + [1.0] * (len(layers) - 1)
        self._distances: dict[int, Tensor] = {}
        self._undo: list[Callable[[], None]] = []
        for index, layer in enumerate(layers):
            if kernels and isinstance(layer, nn.BatchNorm2d) and kernels.suits(layer):
                layer.forward = partial(self._forward, index, kernels, layer)  # type: ignore[method-assign]
                layer.rectified = partial(self._rectified, index, kernels, layer)  # type: ignore[assignment]
                self._undo += [partial(delattr, layer, name) for name in ("forward", "rectified")]
            else:
                self._undo.append(layer.register_forward_pre_hook(self._hook(index)).remove)

    def _forward(self, index: int, kernels: Kernels, layer: nn.BatchNorm2d, x: Tensor) -> Tensor:
        return self._record(index, layer, kernels.normalised(x, layer, self.blocks))

    def _rectified(
        self, index: int, kernels: Kernels, layer: nn.BatchNorm2d, x: Tensor, plus: Tensor | None
    ) -> Tensor:
        return self._record(index, layer, kernels.rectified(x, plus, layer, self.blocks))

    def _record(
        self, index: int, layer: nn.BatchNorm2d, computed: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        y, mean, var = computed
        assert layer.running_mean is not None
        assert layer.running_var is not None
        self._distances[index] = _distance(mean, var, layer.running_mean, layer.running_var)
        return y

    def _hook(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            mean, var = layer.running_mean, layer.running_var
            assert isinstance(mean, Tensor)
            assert isinstance(var, Tensor)
            with torch.autocast(inputs[0].device.type, enabled=False):
                self._distances[index] = bn_distance(inputs[0], mean, var, self.blocks)

        return record

    def loss(self) -> Tensor:
        """Σ_k m_k · distance_k of each block [blocks], over the layers of the last forward pass."""
        terms = [self.multipliers[k] * self._distances[k] for k in sorted(self._distances)]
        self._distances.clear()
        return torch.stack(terms).sum(dim=0)

    def remove(self) -> None:
        """Restore the model."""
        for undo in self._undo:
            undo()
        self._undo.clear()
        self._distances.clear()
