"""The recipes hold the paper's numbers, and the authors' code's where docs/fidelity.md says so."""

from __future__ import annotations

import csv
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from cda.config.recipe import Recipe
from cda.config.settings import Dataset
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

# table: data set, network, variants, the table's values by key of the recipe
PAPER: dict[str, tuple[str, str, tuple[str, ...], dict[str, Any]]] = {
    "10a squeeze": (
        "cifar100",
        "resnet18",
        ("squeeze-random-resized-crop",),
        {
            "squeeze.optimizer": "sgd",
            "squeeze.lr": 0.1,
            "squeeze.momentum": 0.9,
            "squeeze.weight_decay": 5e-4,
            "squeeze.batch_size": 128,
            "squeeze.schedule": "cosine",
            "squeeze.epochs": 200,
            "squeeze.augment": "random_resized_crop",
        },
    ),
    "10a validation": (
        "cifar100",
        "resnet18",
        ("post-train-sgd",),
        {
            "validate.optimizer": "sgd",
            "validate.lr": 0.1,
            "validate.momentum": 0.9,
            "validate.weight_decay": 5e-4,
            "validate.batch_size": 8,
            "validate.schedule": "cosine",
            "validate.epochs": 100,
        },
    ),
    "10b": (
        "cifar100",
        "resnet18",
        (),
        {
            "recover.alpha_bn": 0.01,
            "recover.lr": 0.25,
            "recover.block_size": 100,
            "recover.iterations": 1000,
        },
    ),
    "11": ("cifar100", "resnet18", (), {"recover.min_crop": 0.4}),
    "12a squeeze": (
        "tiny_imagenet",
        "resnet18",
        (),
        {
            "squeeze.optimizer": "sgd",
            "squeeze.lr": 0.2,
            "squeeze.momentum": 0.9,
            "squeeze.weight_decay": 1e-4,
            "squeeze.batch_size": 256,
            "squeeze.schedule": "cosine",
            "squeeze.epochs": 50,
            "squeeze.augment": "random_resized_crop",
        },
    ),
    "12a validation": (
        "tiny_imagenet",
        "resnet18",
        (),
        {
            "validate.optimizer": "sgd",
            "validate.lr": 0.2,
            "validate.momentum": 0.9,
            "validate.weight_decay": 1e-4,
            "validate.batch_size": 64,
            "validate.schedule": "cosine",
            "validate.epochs": 100,
            "relabel.augment": "random_resized_crop",
        },
    ),
    "12b": (
        "tiny_imagenet",
        "resnet18",
        ("recover-paper",),
        {
            "recover.alpha_bn": 1.0,
            "recover.lr": 0.1,
            "recover.block_size": 100,
            "recover.iterations": 4000,
        },
    ),
    "14": ("tiny_imagenet", "resnet18", (), {"continual.steps": 5}),
    "16a": (
        "imagenet1k",
        "resnet18",
        ("squeeze-from-scratch",),
        {
            "squeeze.weights": None,
            "squeeze.optimizer": "sgd",
            "squeeze.lr": 0.1,
            "squeeze.momentum": 0.9,
            "squeeze.weight_decay": 1e-4,
            "squeeze.batch_size": 256,
            "squeeze.schedule": "step",
            "squeeze.step_epochs": 30,
            "squeeze.step_factor": 0.1,
            "squeeze.epochs": 90,
            "squeeze.augment": "random_resized_crop",
        },
    ),
    "16b": (
        "imagenet1k",
        "resnet18",
        (),
        {
            "validate.optimizer": "adamw",
            "validate.lr": 1e-3,
            "validate.weight_decay": 0.01,
            "validate.batch_size": 128,
            "validate.schedule": "cosine",
            "validate.epochs": 300,
            "relabel.augment": "random_resized_crop",
        },
    ),
    "16c": ("imagenet1k", "resnet18", (), {"recover.block_size": 100}),
    "16d ResNet-18": (
        "imagenet1k",
        "resnet18",
        (),
        {"recover.alpha_bn": 0.01, "recover.lr": 0.25, "recover.iterations": 4000},
    ),
    "16d DenseNet-121": (
        "imagenet1k",
        "densenet121",
        (),
        {"recover.alpha_bn": 0.01, "recover.lr": 0.5, "recover.iterations": 1000},
    ),
    "21a": (
        "imagenet21k_p",
        "resnet18",
        ("init-imagenet1k",),
        {
            "squeeze.optimizer": "adam",
            "squeeze.lr": 3e-4,
            "squeeze.weight_decay": 1e-4,
            "squeeze.batch_size": 1024,
            "squeeze.schedule": "cosine",
            "squeeze.label_smoothing": 0.2,
            "squeeze.epochs": 80,
            "squeeze.cutout": 0.5,
            "squeeze.randaugment": 2,
        },
    ),
    "21a random": ("imagenet21k_p", "resnet50", ("init-random",), {"squeeze.epochs": 140}),
    "21b": (
        "imagenet21k_p",
        "resnet18",
        (),
        {
            "validate.optimizer": "adamw",
            "validate.lr": 2e-3,
            "validate.weight_decay": 0.01,
            "validate.batch_size": 32,
            "validate.schedule": "cosine",
            "validate.label_smoothing": 0.2,
            "validate.epochs": 300,
            "relabel.augment": "random_resized_crop",
            "relabel.cutout": 0.5,
        },
    ),
    "21c ResNet-18": (
        "imagenet21k_p",
        "resnet18",
        (),
        {
            "recover.alpha_bn": 0.25,
            "recover.lr": 0.05,
            "recover.block_size": 100,
            "recover.iterations": 2000,
        },
    ),
    "21c ResNet-50": (
        "imagenet21k_p",
        "resnet50",
        (),
        {"recover.alpha_bn": 0.25, "recover.lr": 0.1},
    ),
}

WARM_UP = {
    "warmup_epochs": 5,
    "warmup_factor": 0.01,
    "schedule_per": "epoch",
    "decay_vectors": True,
}
CURRICULUM = {"recover.mode": "curriculum", "recover.scheduler": "cosine", "recover.milestone": 1.0}
CURRICULUM |= {"recover.min_crop": 0.08, "recover.max_crop": 1.0}
FULL_IMAGE = {
    "recover.mode": "constant",
    "recover.min_crop": 1.0,
    "recover.max_crop": 1.0,
    "recover.flip": 0.0,
}
CONTINUAL = {
    "epochs": 100,
    "batch_size": 256,
    "optimizer": "sgd",
    "lr": 0.5,
    "momentum": 0.9,
    "weight_decay": 5e-4,
}
CONTINUAL |= {
    "schedule": "cosine",
    "schedule_per": "epoch",
    "warmup_epochs": 0,
    "temperature": 20.0,
}
CONTINUAL |= {"temperature_squared": True, "augment": "dsa", "order": 0}

# item of docs/fidelity.md: data set, method, variants, what public code has
CODE: list[tuple[int, str, str, tuple[str, ...], dict[str, Any]]] = [
    (1, "tiny_imagenet", "cda", (), {"recover.lr": 0.4, "recover.alpha_bn": 0.05}),
    (
        1,
        "tiny_imagenet",
        "sre2l",
        (),
        {"recover.lr": 0.1, "recover.alpha_bn": 1.0, "recover.mode": "constant"},
    ),
    (2, "tiny_imagenet", "sre2l", (), {"validate.batch_size": 256}),
    (2, "tiny_imagenet", "sre2l", ("post-train-batch-64",), {"validate.batch_size": 64}),
    (2, "imagenet1k", "sre2l", (), {"validate.batch_size": 1024}),
    (2, "imagenet1k", "sre2l", ("post-train-batch-128",), {"validate.batch_size": 128}),
    (
        3,
        "cifar100",
        "cda",
        (),
        {"recover.jitter": 4, "recover.flip": 0.5, "recover.per_image": False},
    ),
    (
        3,
        "tiny_imagenet",
        "cda",
        (),
        {"recover.jitter": 4, "recover.flip": 0.5, "recover.per_image": False},
    ),
    (
        3,
        "imagenet1k",
        "cda",
        (),
        {"recover.jitter": 32, "recover.flip": 0.5, "recover.per_image": False},
    ),
    (
        3,
        "imagenet21k_p",
        "cda",
        (),
        {"recover.jitter": 32, "recover.flip": 0.5, "recover.per_image": False},
    ),
    *[
        (3, name, "cda", ("per-image",), {"recover.per_image": True})
        for name in DATASETS
        if name != "digits"
    ],
    *[(5, name, "cda", (), {"recover.first_bn_multiplier": 10.0}) for name in DATASETS],
    *[
        (6, name, "cda", (), CURRICULUM)
        for name in ("tiny_imagenet", "imagenet1k", "imagenet21k_p")
    ],
    (6, "cifar100", "cda", (), CURRICULUM | {"recover.min_crop": 0.4}),
    (
        10,
        "cifar100",
        "sre2l",
        (),
        {**FULL_IMAGE, "recover.jitter": 4, "recover.lr": 0.25, "recover.alpha_bn": 0.01},
    ),
    (
        11,
        "cifar100",
        "cda",
        (),
        {"validate.optimizer": "adamw", "validate.lr": 1e-3, "validate.weight_decay": 0.01},
    ),
    (
        11,
        "cifar100",
        "cda",
        (),
        {"validate.temperature": 30.0, "validate.temperature_squared": False},
    ),
    (
        11,
        "cifar100",
        "cda",
        (),
        {"relabel.mixing": "mixup", "relabel.mixing_alpha": 0.8, "relabel.batch_size": 8},
    ),
    (
        11,
        "cifar100",
        "cda",
        ("post-train-padded-crop",),
        {"relabel.augment": "pad_crop", "relabel.padding": 4, "relabel.flip": 0.5},
    ),
    (
        11,
        "cifar100",
        "cda",
        (),
        {"relabel.augment": "random_resized_crop", "relabel.crop_scale": (0.08, 1.0)},
    ),
    (
        11,
        "cifar100",
        "cda",
        ("post-train-batch-128",),
        {"validate.batch_size": 128, "relabel.batch_size": 128},
    ),
    (
        12,
        "cifar100",
        "cda",
        (),
        {"squeeze.augment": "pad_crop", "squeeze.padding": 4, "squeeze.flip": 0.5},
    ),
    (13, "tiny_imagenet", "cda", (), {f"validate.{key}": value for key, value in WARM_UP.items()}),
    (
        13,
        "tiny_imagenet",
        "cda",
        (),
        {"validate.temperature": 20.0, "validate.temperature_squared": True},
    ),
    (13, "tiny_imagenet", "cda", (), {"relabel.mixing": "none", "relabel.crop_scale": (0.08, 1.0)}),
    (13, "tiny_imagenet", "cda", ("post-train-lr-0.05",), {"validate.lr": 0.05}),
    (14, "tiny_imagenet", "cda", (), {f"squeeze.{key}": value for key, value in WARM_UP.items()}),
    (
        15,
        "imagenet1k",
        "cda",
        (),
        {"validate.temperature": 20.0, "validate.temperature_squared": False},
    ),
    (
        15,
        "imagenet1k",
        "cda",
        (),
        {"validate.decay_vectors": False, "validate.schedule_per": "epoch"},
    ),
    (15, "imagenet1k", "cda", (), {"validate.decay_names": "weight"}),
    (15, "imagenet1k", "cda", (), {"relabel.mixing": "cutmix", "relabel.mixing_alpha": 1.0}),
    (15, "imagenet1k", "cda", (), {"relabel.labels": "stored"}),
    (15, "imagenet1k", "cda", (), {"relabel.flip": 0.5, "relabel.crop_scale": (0.08, 1.0)}),
    (
        16,
        "imagenet21k_p",
        "cda",
        (),
        {"validate.temperature": 20.0, "validate.temperature_squared": False},
    ),
    (
        16,
        "imagenet21k_p",
        "cda",
        (),
        {"validate.decay_vectors": False, "relabel.mixing": "none", "relabel.flip": 0.0},
    ),
    (16, "imagenet21k_p", "cda", (), {"validate.decay_names": "weight"}),
    *[
        (19, "tiny_imagenet", method, (), {f"{stage}.evaluate_every": 1})
        for stage, method in product(("squeeze", "validate"), ("cda", "sre2l"))
    ],
    (21, "imagenet1k", "cda", (), {"relabel.batch_size": 128}),
    (21, "imagenet1k", "sre2l", (), {"relabel.batch_size": 1024}),
    (21, "imagenet1k", "sre2l", ("post-train-batch-128",), {"relabel.batch_size": 128}),
    (
        22,
        "imagenet21k_p",
        "cda",
        (),
        {"squeeze.augment": "none", "squeeze.flip": 0.0, "squeeze.decay_vectors": False},
    ),
    (22, "imagenet21k_p", "cda", (), {"squeeze.warmup_epochs": 8, "squeeze.warmup_factor": 1 / 20}),
    (
        22,
        "imagenet21k_p",
        "cda",
        ("init-random",),
        {"squeeze.warmup_epochs": 14, "squeeze.init": None},
    ),
    (
        22,
        "imagenet21k_p",
        "cda",
        ("init-random", "squeeze-sgd"),
        {"squeeze.optimizer": "sgd", "squeeze.lr": 0.01},
    ),
    (25, "imagenet1k", "cda", (), {"score.crops": 10, "score.crop_scale": (0.08, 1.0)}),
    (
        26,
        "tiny_imagenet",
        "cda",
        (),
        {f"continual.{key}": value for key, value in CONTINUAL.items()},
    ),
    (27, "imagenet1k", "sre2l", (), {"validate.batch_parts": 2}),
    (27, "imagenet1k", "sre2l", ("post-train-batch-128",), {"validate.batch_parts": 1}),
    *[
        (27, name, "cda", (), {"validate.batch_parts": 1})
        for name in ("cifar100", "tiny_imagenet", "imagenet1k", "imagenet21k_p")
    ],
    *[
        (28, name, method, (), {"architecture.stem": "small", "architecture.stem_init": "torch"})
        for name, method in product(("cifar100", "tiny_imagenet"), ("cda", "sre2l"))
    ],
]

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
        layer |= below(own, name)
    return layer


def resolved(*args: Any, **kwargs: Any) -> Recipe:
    layer = layered(*args, **kwargs)
    return parse(Recipe, nested(layer), "the recipe", places(layer))


def value(recipe: Recipe, key: str) -> Any:
    """A resolved value, defaults included."""
    section, name = key.split(".")
    return getattr(getattr(recipe, "validate_" if section == "validate" else section), name)


@pytest.mark.parametrize("table", PAPER)
def test_the_paper_s_table_is_in_the_recipe(table):
    dataset, network, variants, wanted = PAPER[table]
    layer = layered(dataset, network, variants=variants)
    recipe = resolved(dataset, network, variants=variants)
    assert {key: value(recipe, key) for key in wanted} == wanted
    assert {key: layer[key].value for key in wanted} == wanted, (
        "a default in place of a written value"
    )
    silent = [
        f"{layer[key].where}: {key}"
        for key in wanted
        if f"Table {table.split()[0]}" not in layer[key].source
    ]
    assert silent == [], "the comment does not name the table"


@pytest.mark.parametrize(("item", "dataset", "method", "variants", "wanted"), CODE)
def test_what_public_code_has_is_in_the_recipe(item, dataset, method, variants, wanted):
    recipe = resolved(dataset, method=method, variants=variants)
    assert {key: value(recipe, key) for key in wanted} == wanted, f"fidelity {item}"


@pytest.mark.parametrize(
    ("dataset", "classes", "resolution", "train", "val"),
    [
        ("cifar100", 100, 32, 50_000, 10_000),
        ("tiny_imagenet", 200, 64, 100_000, 10_000),
        ("imagenet1k", 1_000, 224, 1_281_167, 50_000),
        ("imagenet21k_p", 10_450, 224, 11_060_223, 522_500),
    ],
)
def test_the_data_sets_are_the_paper_s(dataset, classes, resolution, train, val):
    data = parse(Dataset, read_plain(CONFIG / "datasets" / f"{dataset}.yaml"), dataset)
    assert (data.name, data.classes, data.resolution) == (dataset, classes, resolution)
    assert (data.train_images, data.val_images) == (train, val)
    assert data.stream == (resolution == 224)


@pytest.mark.parametrize(
    ("dataset", "resize", "fit"),  # fidelity 15 and 22; the others hold images of one size
    [
        ("cifar100", None, "auto"),
        ("tiny_imagenet", None, "auto"),
        ("imagenet1k", 256, "crop"),
        ("imagenet21k_p", None, "squash"),
    ],
)
def test_images_are_fitted_as_in_public_code(dataset, resize, fit):
    data = parse(Dataset, read_plain(CONFIG / "datasets" / f"{dataset}.yaml"), dataset)
    assert (data.resize, data.fit) == (resize, fit)


def test_imagenet21k_is_not_normalised():
    data = parse(Dataset, read_plain(CONFIG / "datasets/imagenet21k_p.yaml"), "imagenet21k_p")
    assert (data.mean, data.std) == ((0.0,) * 3, (1.0,) * 3)


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
