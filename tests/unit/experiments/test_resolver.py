"""The resolver: layers of values, and which runs a point shares with another."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

STAGES = ("squeeze", "recover", "relabel", "validate")


def ids(tree: Any, method: str = "cda", **overrides: Any) -> dict[str, str]:
    return {stage: run.id for stage, run in tree.runs(method, **overrides).items()}


def test_methods_share_the_squeezed_model(tree):
    cda, sre2l = ids(tree), ids(tree, "sre2l")
    assert cda["squeeze"] == sre2l["squeeze"]
    assert all(cda[stage] != sre2l[stage] for stage in STAGES[1:])


def test_a_larger_ipc_shares_the_images_and_not_the_labels(tree):
    small, large = ids(tree, ipc=1), ids(tree, ipc=2)
    assert [stage for stage in STAGES if small[stage] != large[stage]] == ["relabel", "validate"]


def test_a_model_that_relabels_is_a_squeeze_run_of_its_own(tree):
    tree.experiment("tiny", {"relabel_models": ["resnet34"]})
    labels = tree.runs()["relabel"]
    assert labels.upstream["model"].model == "resnet34"
    assert labels.upstream["images"].upstream["model"].model == "resnet18"


@pytest.mark.parametrize(
    ("layers", "batch_size"),
    [
        ([], 3),
        (["recovery_models"], 4),
        (["recovery_models", "methods"], 5),
        (["recovery_models", "methods", "variants"], 6),
        (["recovery_models", "methods", "variants", "scale"], 7),
        (["recovery_models", "methods", "variants", "scale", "set"], 8),
    ],
)
def test_a_later_layer_wins(layers, batch_size, tree):
    names = {"recovery_models": "resnet18", "methods": "cda", "variants": "another"}
    recipe = yaml.safe_load((tree.folder / "recipes/digits.yaml").read_text(encoding="utf-8"))
    recipe["validate"]["batch_size"] = 3
    for value, kind in enumerate(names, start=4):
        own = recipe.setdefault(kind, {}).setdefault(names[kind], {})
        if kind in layers:
            own["validate"] = {"batch_size": value}
    tree.write("recipes/digits.yaml", yaml.safe_dump(recipe))
    tree.scale("small", recipe={"validate": {"batch_size": 7}} if "scale" in layers else {})
    own = {"set": {"validate.batch_size": 8}} if "set" in layers else {}
    tree.experiment("tiny", {"variants": ["another"]} | own, scales=["small"])
    assert tree.runs(scale="small")["validate"].recipe.validate_.batch_size == batch_size
