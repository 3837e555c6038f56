"""The recipes' named changes: methods, variants and networks (tests/unit/test_recipe_values.py has
the values).
"""

from __future__ import annotations

import csv
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from cda.config.recipe import Recipe
from cda.config.types import parse
from cda.config.yaml_source import Layer, below, nested, places, read_layer, read_plain

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / "config"
DATASETS = sorted(path.stem for path in (CONFIG / "recipes").glob("*.yaml"))
NAMED = (
    "recovery_models",
    "methods",
    "variants",
)  # in the order in which they are laid over the recipe

ROLES = {
    "ctl-easy": ("constant", None),
    "ctl-hard": ("constant", None),
    "rcl-step": ("reverse", None),
    "cl-step": ("curriculum", "step"),
    "cl-linear": ("curriculum", "linear"),
    "cl-cosine": ("curriculum", "cosine"),
    "cda": ("curriculum", "cosine"),
    "sre2l": ("constant", None),
    "random": ("random", None),
    "real": ("random", None),
}


def recipe_file(dataset: str) -> Path:
    return CONFIG / "recipes" / f"{dataset}.yaml"


def names(dataset: str, kind: str) -> list[str]:
    """What a recipe has under methods, variants or recovery_models."""
    return list(read_plain(recipe_file(dataset)).get(kind, {}))


def layered(
    dataset: str, network: str = "resnet18", method: str = "cda", variants: tuple[str, ...] = ()
) -> Layer:
    """A recipe's values with its named changes laid over them."""
    own = read_layer(recipe_file(dataset))
    for kind, name in (("methods", method), *(("variants", variant) for variant in variants)):
        assert name in names(dataset, kind), f"{dataset} has no {kind} {name}"
    layer = {key: value for key, value in own.items() if key.split(".")[0] not in NAMED}
    for name in (
        f"recovery_models.{network}",
        f"methods.{method}",
        *(f"variants.{name}" for name in variants),
    ):
        layer |= {k: v for k, v in below(own, name).items() if not k.startswith("ipc.")}
    return layer


def resolved(*args: Any, **kwargs: Any) -> Recipe:
    layer = layered(*args, **kwargs)
    return parse(Recipe, nested(layer), "the recipe", places(layer))


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_named_change_resolves(dataset):
    networks = {"resnet18", *names(dataset, "recovery_models")}
    variants = [(), *((name,) for name in names(dataset, "variants"))]
    for network, method, variant in product(networks, names(dataset, "methods"), variants):
        resolved(dataset, network, method, variant)


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_variant_changes_some_method_unless_it_is_empty(dataset):
    for name, changes in read_plain(recipe_file(dataset)).get("variants", {}).items():
        methods = names(dataset, "methods")
        differs = any(
            resolved(dataset, "resnet18", m, (name,)) != resolved(dataset, "resnet18", m)
            for m in methods
        )
        assert differs == bool(changes), name


@pytest.mark.parametrize("dataset", DATASETS)
def test_methods_do_what_their_names_promise(dataset):
    for method in set(ROLES) & set(names(dataset, "methods")):
        recover = resolved(dataset, method=method).recover
        mode, scheduler = ROLES[method]
        assert recover.mode == mode, method
        assert scheduler in (None, recover.scheduler), method


def test_published_weights_exist_and_fit_their_network():
    from torchvision.models import get_model_weights

    for dataset in DATASETS:
        for network in names(dataset, "recovery_models"):
            squeeze = resolved(dataset, network).squeeze
            for name in filter(None, (squeeze.weights, squeeze.init)):
                library, _, weights = name.partition(":")
                if library == "package":
                    assert weights == f"{network.replace('_', '-')}-pytorch-model"
                    continue
                assert library == "torchvision"
                assert weights in [str(known) for known in get_model_weights(network)], (
                    f"{dataset} {network}"
                )
                assert weights.endswith("IMAGENET1K_V1")


def test_only_imagenet1k_takes_published_models_and_only_imagenet21k_starts_from_them():
    assert resolved("imagenet1k", "mobilenet_v2").squeeze.weights
    assert (
        resolved("imagenet1k", "mobilenet_v2", variants=("squeeze-from-scratch",)).squeeze.weights
        is None
    )
    for network in ("resnet18", "resnet50"):
        assert resolved("imagenet1k", network).squeeze.weights
        assert resolved("imagenet21k_p", network).squeeze.init
        assert resolved("imagenet21k_p", network).squeeze.weights is None
        assert resolved("imagenet21k_p", network, variants=("init-random",)).squeeze.init is None


def reported() -> list[dict[str, str]]:
    with (CONFIG / "reported.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["setting"] != "quoted"]


@pytest.mark.parametrize("stand_in", [False, True])
def test_every_method_that_the_paper_reports_is_declared(stand_in):
    for row in reported():
        dataset = "digits" if stand_in else row["dataset"]
        assert row["method"] in names(dataset, "methods"), f"table {row['table']}"
        if match := re.fullmatch(r"init=(\w+)", row["setting"]):
            assert f"init-{match[1]}" in names(dataset, "variants")


def test_the_stand_in_has_the_variants_of_cda_s_batch_and_all_that_the_stages_need():
    assert {"post-train-batch-64", "post-train-batch-128"} <= set(names("digits", "variants"))
    assert resolved("digits").continual is not None


@pytest.mark.parametrize("dataset", DATASETS)
def test_what_a_comment_points_at_exists(dataset):
    items = re.findall(
        r"^\| (\d+) \|", (ROOT / "docs/fidelity.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert items == [str(number) for number in range(1, len(items) + 1)]
    for key, found in read_layer(recipe_file(dataset)).items():
        for item in re.findall(r"fidelity (\d+)", found.source):
            assert item in items, f"{found.where}: {key}"
        for variant in re.findall(r"variant ([\w.-]+)", found.source):
            assert variant in names(dataset, "variants"), f"{found.where}: {key}"


def test_variants_that_the_decisions_name_are_declared():
    text = (ROOT / "docs/fidelity.md").read_text(encoding="utf-8")
    lists = re.findall(r"variants? ((?:`[\w.-]+`(?:, )?)+)", text)
    documented = {name for found in lists for name in re.findall(r"`([\w.-]+)`", found)}
    assert len(documented) > 5
    assert documented <= {name for dataset in DATASETS for name in names(dataset, "variants")}
