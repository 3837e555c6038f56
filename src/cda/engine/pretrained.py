"""Published weights, to use or to start from: `torchvision:<Weights.NAME>`, `timm:<pretrained
tag>`, `package:<name>`.

The last is a Python package that ships one file of a timm network's weights. The others are read
through their library's own model, since some lie on disk under names that only it knows how to turn
into today's (torchvision's DenseNets). Many are pickles, of which nothing but tensors is taken,
whatever the library asks.
"""

from __future__ import annotations

import importlib.metadata
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from cda.config.names import find
from cda.engine.checkpoint import load_state
from cda.errors import ConfigError
from cda.files import write_json


def state_of(
    weights: str, model: str, wanted: list[str]
) -> tuple[dict[str, Tensor], float | None, list[str]]:
    """The weights named `weights` for the network `model` that knows the classes `wanted`, for
    squeeze.weights.

    Returns:
        The tensors by the names that they have in `cda.method.networks.build(model, …)`; the top-1 accuracy in percent that
        the publisher states, if any; and the classes of its outputs: those wanted, or ImageNet-1K's thousand if the
        wanted ones are some of them.

    Raises:
        ConfigError: Nobody publishes them, they are another network's, have another number of classes, or cannot be
            fetched; in one line.
    """
    network, top1 = _fetch("squeeze.weights", weights, model)
    state = network.state_dict()
    known = len(state[next(iter(classifier(network)))])
    if known == len(wanted):
        return state, top1, wanted
    if known == len(names := imagenet_names()) and set(wanted) <= set(names):
        return state, top1, names
    raise ConfigError(
        f"squeeze.weights: {weights} does not fit {model} with {len(wanted)} classes (it has "
        f"{known}); "
        "name others, or name it as squeeze.init and train"
    )


def imagenet_names() -> list[str]:
    """ImageNet-1K's classes, WordNet ids in the order of every published network's outputs, as timm
    lists them.
    """
    from timm.data.imagenet_info import ImageNetInfo

    return list(ImageNetInfo("imagenet-1k").label_names())


def start_from(model: nn.Module, weights: str, name: str) -> None:
    """Put the published weights `weights` of the network `name` into `model`, all but its
    classifier (squeeze.init).

    The classifier, its last linear or convolutional layer, keeps its fresh weights whatever its
    number of classes.

    Raises:
        ConfigError: As `state_of`, or another tensor than the classifier's is missing or of another shape.
    """
    network, _ = _fetch("squeeze.init", weights, name)
    theirs, own, last = network.state_dict(), model.state_dict(), classifier(model)
    for key in dict.fromkeys([*own, *theirs]):
        if key not in last and (
            key not in own or key not in theirs or own[key].shape != theirs[key].shape
        ):
            ours, published = (_shape(state.get(key)) for state in (own, theirs))
            raise ConfigError(
                f"squeeze.init: {weights} does not fit this {name} ({key}: {published} there, "
                f"{ours} here); "
                "name others, or take the network as published (architecture, resolution)"
            )
    load_state(model, {key: own[key] if key in last else theirs[key] for key in own})


def fetch(weights: str, model: str, out: Path | None = None) -> None:
    """Have the published weights of the network `model` at hand, for a job that will find no
    internet.

    They lie in their library's cache; `out` is a mark that they do. Raises ConfigError as
    `state_of`.
    """
    _, top1 = _fetch("cda fetch", weights, model)
    if out is not None:
        write_json(out, {"weights": weights, "model": model, "top1": top1})


def classifier(model: nn.Module) -> set[str]:
    """Names of the tensors of the last linear or convolutional layer.

    In image networks, the classifier.
    """
    layers = [
        name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    return {
        f"{layers[-1]}.{name}" for name, _ in model.get_submodule(layers[-1]).named_parameters()
    }


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else "×".join(map(str, tensor.shape)) or "a number"


def _fetch(key: str, weights: str, model: str) -> tuple[nn.Module, float | None]:
    """The published network, downloaded unless it is at hand, and its stated top-1.

    `key` is the recipe's.
    """
    library, _, name = weights.partition(":")
    fetch = {"torchvision": _from_torchvision, "timm": _from_timm, "package": _from_package}.get(
        library
    )
    if fetch is None or not name:
        known = "torchvision:<Weights.NAME>, timm:<tag> nor package:<name>"
        raise ConfigError(f"{key}: {weights!r} is neither {known}; name it so")
    network = find(model)
    try:
        with _tensors_alone():
            return fetch(key, name, network.name if network else model)
    except pickle.UnpicklingError:
        raise ConfigError(
            f"{key}: {weights} holds more than tensors, which is refused; delete it from its "
            "library's cache"
        ) from None
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{key}: {weights} cannot be had ({reason}); check the name, or fetch it where "
            "there is internet"
        ) from None


@contextmanager
def _tensors_alone() -> Iterator[None]:
    """Make torch.load refuse pickles that ask for anything but tensors.

    Torchvision's call would let them run.
    """
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
        raise ConfigError(
            f"{key}: torchvision:{name} is not of the network {model!r}; name weights that are"
        ) from None
    metrics = weight.meta.get("_metrics", {}).get("ImageNet-1K", {})
    return built, metrics.get("acc@1")


def _from_timm(_key: str, tag: str, model: str) -> tuple[nn.Module, float | None]:
    import timm

    return timm.create_model(f"{model}.{tag}", pretrained=True), None


def shipped(package: str) -> Path:
    """The file of weights in an installed package.

    Raises ConfigError if it is not installed or has no such file.
    """
    try:
        files = importlib.metadata.distribution(package).files or []
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(f"package {package} is not installed; uv pip install {package}") from None
    found = [Path(str(file.locate())) for file in files if file.suffix in (".pth", ".pt")]
    if len(found) != 1:
        raise ConfigError(
            f"package {package} ships {len(found)} files of weights (.pth, .pt), not one; "
            "name another"
        )
    return found[0]


def _from_package(key: str, name: str, model: str) -> tuple[nn.Module, float | None]:
    """A timm network with the tensors that a package ships, taken in their order, whatever they are
    called there.
    """
    import timm

    try:
        state = torch.load(shipped(name), map_location="cpu", weights_only=True)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None
    network = timm.create_model(model)
    own = {
        name: tensor
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    theirs = [tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")]
    if [tensor.shape for tensor in own.values()] != [tensor.shape for tensor in theirs]:
        raise ConfigError(
            f"{key}: package:{name} holds other tensors than {model} has; name the network "
            "that it is for"
        )
    network.load_state_dict(dict(zip(own, theirs, strict=True)), strict=False)
    return network, None
