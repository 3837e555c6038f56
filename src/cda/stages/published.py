"""Published weights, to use as they are or to start from: `torchvision:<Weights.NAME>` or `timm:<pretrained tag>`.

They are read through their library's own model, since some lie on disk under names that only it knows how to turn into
today's (torchvision's DenseNets). Many are pickles, of which nothing but tensors is taken, whatever the library asks.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from cda.catalog import find
from cda.errors import ConfigError
from cda.files import write_json
from cda.models import load_state


def state_of(weights: str, model: str, classes: int) -> tuple[dict[str, Tensor], float | None]:
    """The weights named `weights` for the network `model` of `classes` classes, for the recipe's squeeze.weights.

    Returns:
        The tensors by the names that they have in `cda.models.build(model, …)`, and the top-1 accuracy in percent that
        the publisher states, if any.

    Raises:
        ConfigError: Nobody publishes them, they are another network's, have another number of classes, or cannot be
            fetched; in one line.
    """
    network, top1 = _fetch("squeeze.weights", weights, model)
    state = network.state_dict()
    known = {len(state[name]) for name in classifier(network)}
    if known != {classes}:
        raise ConfigError(
            f"squeeze.weights: {weights} does not fit {model} with {classes} classes (it has {known.pop()}); "
            "name others, or name it as squeeze.init and train"
        )
    return state, top1


def start_from(model: nn.Module, weights: str, name: str) -> None:
    """Put the published weights `weights` of the network `name` into `model`, all but its classifier (squeeze.init).

    The classifier, its last linear or convolutional layer, keeps its fresh weights whatever its number of classes.

    Raises:
        ConfigError: As `state_of`, or another tensor than the classifier's is missing or of another shape.
    """
    network, _ = _fetch("squeeze.init", weights, name)
    theirs, own, last = network.state_dict(), model.state_dict(), classifier(model)
    for key in dict.fromkeys([*own, *theirs]):
        if key not in last and (key not in own or key not in theirs or own[key].shape != theirs[key].shape):
            ours, published = (_shape(state.get(key)) for state in (own, theirs))
            raise ConfigError(
                f"squeeze.init: {weights} does not fit this {name} ({key}: {published} there, {ours} here); "
                "name others, or take the network as published (architecture, resolution)"
            )
    load_state(model, {key: own[key] if key in last else theirs[key] for key in own})


def fetch(weights: str, model: str, out: Path | None = None) -> None:
    """Have the published weights of the network `model` at hand, for a job that will find no internet.

    They lie in their library's cache; `out` is a mark that they do. Raises ConfigError as `state_of`.
    """
    _, top1 = _fetch("cda fetch", weights, model)
    if out is not None:
        write_json(out, {"weights": weights, "model": model, "top1": top1})


def classifier(model: nn.Module) -> set[str]:
    """Names of the tensors of the last linear or convolutional layer: in image networks, the classifier."""
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    return {f"{layers[-1]}.{name}" for name, _ in model.get_submodule(layers[-1]).named_parameters()}


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else "×".join(map(str, tensor.shape)) or "a number"


def _fetch(key: str, weights: str, model: str) -> tuple[nn.Module, float | None]:
    """The published network, downloaded unless it is at hand, and its stated top-1; `key` is the recipe's."""
    library, _, name = weights.partition(":")
    fetch = {"torchvision": _from_torchvision, "timm": _from_timm}.get(library)
    if fetch is None or not name:
        raise ConfigError(f"{key}: {weights!r} is neither torchvision:<Weights.NAME> nor timm:<tag>; name it so")
    network = find(model)
    try:
        with _tensors_alone():
            return fetch(key, name, network.name if network else model)
    except pickle.UnpicklingError:
        raise ConfigError(
            f"{key}: {weights} holds more than tensors, which is refused; delete it from its library's cache"
        ) from None
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{key}: {weights} cannot be had ({reason}); check the name, or fetch it where there is internet"
        ) from None


@contextmanager
def _tensors_alone() -> Iterator[None]:
    """Make torch.load refuse pickles that ask for anything but tensors: torchvision's call would let them run."""
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        yield
    finally:
        os.environ.pop("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
        if before is not None:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


def _from_torchvision(key: str, name: str, model: str) -> tuple[nn.Module, float | None]:
    from torchvision import models

    try:
        weight = models.get_weight(name)
    except (ValueError, KeyError):
        mend = "torchvision.models.list_models() and get_model_weights() name what there is"
        raise ConfigError(f"{key}: torchvision has no weights {name!r}; {mend}") from None
    try:
        built = models.get_model(model, weights=weight)
    except (TypeError, ValueError):
        raise ConfigError(f"{key}: torchvision:{name} is not of the network {model!r}; name weights that are") from None
    metrics = weight.meta.get("_metrics", {}).get("ImageNet-1K", {})
    return built, metrics.get("acc@1")


def _from_timm(_key: str, tag: str, model: str) -> tuple[nn.Module, float | None]:
    import timm

    return timm.create_model(f"{model}.{tag}", pretrained=True), None
