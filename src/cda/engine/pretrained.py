"""Published weights, to use (squeeze.weights) or to start from (squeeze.init).

They are named `torchvision:<Weights.NAME>`, `timm:<pretrained tag>` or `package:<name>`, a Python
package that ships one file of a timm network's weights. Weights of torchvision and timm are read
through their library's model, because some files have names of tensors that only the library can
translate (torchvision's DenseNets). Many files are pickles, of which nothing but tensors is loaded,
even where the library would load more.
"""

from __future__ import annotations

import importlib.metadata
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from cda.config.names import find
from cda.engine.checkpoint import load_state
from cda.errors import ConfigError
from cda.files import write_json
from cda.text import list_some


def state_of(
    weights: str, model: str, wanted: Mapping[str, str], cut: bool = False
) -> tuple[dict[str, Tensor], float | None, list[str]]:
    """The published `weights` of the network `model` for some classes (squeeze.weights).

    Args:
        weights: As squeeze.weights names them.
        model: The network.
        wanted: The data set's classes in their order, each with its published name: a WordNet id or
            the number of an output. Where that is empty, the class's own name must be the id.
        cut: Whether to take the outputs of `wanted` alone, in their order; else all.

    Returns:
        The tensors, named as in `cda.method.networks.build(model, …)`; the publisher's top-1 in
        percent, if stated; and the classes of the outputs.

    Raises:
        ConfigError: In one line: nobody publishes the weights, they are another network's, have no
            outputs of these classes, or cannot be fetched.
    """
    network, top1 = _fetch("squeeze.weights", weights, model)
    state, last = network.state_dict(), classifier(network)
    known = len(state[next(iter(last))])
    names = output_names(known)
    rows = _rows(names, known, wanted, f"squeeze.weights: {weights} does not fit {model}")
    if not cut:
        for row, name in zip(rows, wanted, strict=True):
            names[row] = name
        return state, top1, names
    if rows != list(range(known)):
        state |= {key: state[key][rows] for key in last}
    return state, top1, list(wanted)


def _rows(names: list[str], known: int, wanted: Mapping[str, str], what: str) -> list[int]:
    """The output of each class; raises ConfigError for a class whose output is not known."""
    place = {name: row for row, name in enumerate(names)}
    numbers = {str(row): row for row in range(known)}
    rows = [
        numbers.get(published, place.get(published)) if published else place.get(name)
        for name, published in wanted.items()
    ]
    unknown = [name for name, row in zip(wanted, rows, strict=True) if row is None]
    if unknown or len(set(rows)) < len(rows):
        found = (
            f"{list_some(unknown)} are none of its classes" if unknown else "two share an output"
        )
        raise ConfigError(
            f"{what} with {len(wanted)} classes (it has {known}): {found}; give each class folder "
            "its WordNet id, or the number of its output, in the data set's class_map, name other "
            "weights, or name these as squeeze.init and train"
        )
    return [row for row in rows if row is not None]


def output_names(count: int) -> list[str]:
    """The classes of a published network with `count` outputs, in order: WordNet ids.

    Their number tells which part of ImageNet it is; names are empty where it is none that is known.
    """
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": count})
    return list(ImageNetInfo(subset).label_names()) if subset else [""] * count


def start_from(model: nn.Module, weights: str, name: str) -> None:
    """Load the published `weights` of the network `name` into `model` (squeeze.init).

    The classifier, the last linear or convolutional layer, retains its fresh weights, because it
    may have another number of classes.

    Raises:
        ConfigError: As `state_of`, or another tensor is missing or has another shape.
    """
    network, _ = _fetch("squeeze.init", weights, name)
    published, own, last = network.state_dict(), model.state_dict(), classifier(model)
    for key in dict.fromkeys([*own, *published]):
        there, here = (_shape(state.get(key)) for state in (published, own))
        if key not in last and there != here:
            raise ConfigError(
                f"squeeze.init: {weights} does not fit this {name} ({key}: {there} there, {here} "
                "here); name others, or take the network as published (architecture, resolution)"
            )
    load_state(model, {key: own[key] if key in last else published[key] for key in own})


def fetch(weights: str, model: str, out: Path | None = None) -> None:
    """Download the published `weights` of the network `model`, for a job without internet.

    They lie in their library's cache; the file `out` records that they do. Raises ConfigError as
    `state_of`.
    """
    _, top1 = _fetch("cda fetch", weights, model)
    if out is not None:
        write_json(out, {"weights": weights, "model": model, "top1": top1})


def classifier(model: nn.Module) -> set[str]:
    """Names of the tensors of the last linear or convolutional layer, the classifier."""
    layers = [
        name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    return {
        f"{layers[-1]}.{name}" for name, _ in model.get_submodule(layers[-1]).named_parameters()
    }


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else "×".join(map(str, tensor.shape)) or "a number"


def _fetch(key: str, weights: str, model: str) -> tuple[nn.Module, float | None]:
    """The published network, downloaded unless it is in the cache, and its stated top-1.

    `key` is the recipe key that names the weights, for messages.
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
    """Make torch.load refuse pickles with anything but tensors, which torchvision would run."""
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
        fix = "torchvision.models.list_models() and get_model_weights() name what there is"
        raise ConfigError(f"{key}: torchvision has no weights {name!r}; {fix}") from None
    try:
        built = models.get_model(model, weights=weight)
    except (TypeError, ValueError):
        raise ConfigError(
            f"{key}: torchvision:{name} is not of the network {model!r}; name weights that are"
        ) from None
    if hasattr(built, "AuxLogits"):
        del built.AuxLogits  # inception's auxiliary classifier, which `networks.build` omits
    metrics = weight.meta.get("_metrics", {}).get("ImageNet-1K", {})
    return built, metrics.get("acc@1")


def _from_timm(_key: str, tag: str, model: str) -> tuple[nn.Module, float | None]:
    import timm

    return timm.create_model(f"{model}.{tag}", pretrained=True), None


def shipped(package: str) -> Path:
    """The file of weights in an installed package.

    Raises ConfigError if the package is not installed or has none, or several.
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
    """A timm network with the tensors that a package ships, in their order; names may differ."""
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
    shipped_tensors = [
        tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")
    ]
    if [tensor.shape for tensor in own.values()] != [tensor.shape for tensor in shipped_tensors]:
        raise ConfigError(
            f"{key}: package:{name} holds other tensors than {model} has; name the network "
            "that it is for"
        )
    network.load_state_dict(dict(zip(own, shipped_tensors, strict=True)), strict=False)
    return network, None
