"""Runs: an id changes when its result could and never else."""

from __future__ import annotations

import re
from typing import Any

import pytest

from cda.errors import ConfigError
from cda.experiments.runs import (
    VERSIONS,
    fp16_bytes,
    label_bytes,
    label_epochs,
    label_gigabytes,
    label_mode,
    parts,
    served_epochs,
)

RECIPE, DATASET = "recipes/digits.yaml", "datasets/digits.yaml"
STAGES = ("squeeze", "recover", "relabel", "validate")


def ids(tree: Any, method: str = "cda", **overrides: Any) -> dict[str, str]:
    return {stage: run.id for stage, run in tree.runs(method, **overrides).items()}


def changed(tree: Any, values: dict[str, Any], method: str = "cda") -> tuple[str, ...]:
    """The stages whose ids differ once the table's cells set `values`."""
    before = ids(tree, method)
    tree.experiment("tiny", {"set": values})
    after = ids(tree, method)
    assert after.keys() == before.keys()
    return tuple(stage for stage in before if after[stage] != before[stage])


MATTERS = [
    ("squeeze", "architecture.width", 0.25),
    ("squeeze", "architecture.stem_init", "torch"),
    ("squeeze", "squeeze.decay_names", "weight"),
    ("squeeze", "squeeze.epochs", 3),
    ("squeeze", "squeeze.lr", 0.2),
    ("squeeze", "squeeze.padding", 2),
    ("squeeze", "squeeze.seed", 1),
    ("squeeze", "squeeze.label_smoothing", 0.1),
    ("squeeze", "squeeze.weights", "torchvision:ResNet18_Weights.IMAGENET1K_V1"),
    ("recover", "recover.iterations", 7),
    ("recover", "recover.lr", 0.1),
    ("recover", "recover.scheduler", "linear"),
    ("recover", "recover.milestone", 0.5),
    ("recover", "recover.min_crop", 0.5),
    ("recover", "recover.block_size", 10),
    ("recover", "recover.per_image", True),
    ("recover", "recover.seed", 1),
    ("relabel", "relabel.crop_scale", [0.3, 1.0]),
    ("relabel", "relabel.mixing", "mixup"),
    ("relabel", "relabel.mixing_alpha", 0.8),
    ("relabel", "relabel.batch_size", 9),
    ("relabel", "relabel.epochs", 6),
    ("relabel", "relabel.seed", 1),
    ("relabel", "relabel.labels", "hard"),
    ("relabel", "relabel.bits", 8),
    ("relabel", "relabel.top_k", 3),
    ("relabel", "relabel.reuse", 2),
    ("validate", "validate.lr", 0.1),
    ("validate", "validate.epochs", 4),
    ("validate", "validate.batch_size", 7),
    ("validate", "validate.temperature", 5.0),
    ("validate", "validate.temperature_squared", True),
    ("validate", "validate.warmup_factor", 0.5),
    ("validate", "validate.decay_vectors", False),
    ("validate", "validate.decay_names", "weight"),
    ("validate", "validate.batch_parts", 2),
]


@pytest.mark.parametrize(("stage", "key", "value"), MATTERS, ids=[key for _, key, _ in MATTERS])
def test_a_value_changes_the_ids_of_its_stage_and_of_all_downstream(stage, key, value, tree):
    assert changed(tree, {key: value}) == STAGES[STAGES.index(stage) :]


def test_validate_epochs_are_relabel_s_where_it_sets_none(tree):
    tree.edit(RECIPE, "  epochs: 5              # our choice: more than validate uses\n", "")
    assert changed(tree, {"validate.epochs": 4}) == ("relabel", "validate")
    tree.experiment("tiny")
    assert changed(tree, {"relabel.epochs": 3}) == ()


IGNORED = [
    ("cda", {"validate.evaluate_every": 1}),
    ("cda", {"squeeze.evaluate_every": 1}),
    ("cda", {"relabel.padding": 9}),  # its crop is random_resized_crop
    ("cda", {"squeeze.crop_scale": [0.5, 1.0]}),  # its crop is pad_crop
    ("cda", {"squeeze.warmup_factor": 0.5}),  # it does not warm up
    ("cda", {"squeeze.step_epochs": 7, "squeeze.step_factor": 0.3}),  # its schedule is cosine
    ("cda", {"validate.momentum": 0.5}),  # its optimiser is AdamW
    ("cda", {"relabel.labels": "online"}),
    (
        "cda",
        {"relabel.bits": 16, "relabel.top_k": 0, "relabel.reuse": 1},
    ),  # as before they were there
    (
        "cda",
        {
            "architecture.stem_init": "kaiming",
            "squeeze.decay_names": "all",
            "validate.decay_names": "all",
            "validate.batch_parts": 1,
        },
    ),  # as before they were there
    ("cda", {"recover.release": "another"}),
    ("sre2l", {"recover.scheduler": "linear", "recover.milestone": 0.5}),  # its mode is constant
    (
        "random",
        {
            "recover.iterations": 9,
            "recover.lr": 0.9,
            "recover.min_crop": 0.9,
            "recover.snapshots": [],
        },
    ),
]


@pytest.mark.parametrize(
    ("method", "values"),
    IGNORED,
    ids=[f"{method} {next(iter(values))}" for method, values in IGNORED],
)
def test_a_value_that_changes_no_result_changes_no_id(method, values, tree):
    assert changed(tree, values, method) == ()


@pytest.mark.parametrize(
    ("fit", "moved"), [("auto", ()), ("crop", STAGES), ("squash", STAGES)], ids=str
)
def test_how_images_are_fitted_changes_every_id_unless_it_is_neutral(fit, moved, tree):
    before = ids(tree)
    tree.edit(DATASET, "resolution: 8\n", f"resolution: 8\nfit: {fit}\n")
    after = ids(tree)
    assert tuple(stage for stage in before if after[stage] != before[stage]) == moved


@pytest.mark.parametrize("key", ["mixing_alpha", "batch_size"])
def test_how_to_mix_changes_nothing_where_nothing_is_mixed(key, tree):
    tree.edit(RECIPE, "mixing: cutmix ", "mixing: none ")
    assert changed(tree, {f"relabel.{key}": 3}) == ()


def test_the_machine_changes_no_id(tree):
    runtime = {
        "device": "auto",
        "precision": "bf16",
        "compile": "always",
        "cpu_threads": 2,
        "blocks": 9,
    }
    elsewhere = {
        "seeds": 7,
        "data": "/elsewhere",
        "data_paths": {"digits": "/there"},
        "labels": {"max_gb": 1.0},
    }
    assert ids(tree, runtime=runtime, **elsewhere) == ids(tree)


def test_numbers_written_otherwise_are_equal(tree):
    assert (
        changed(tree, {"validate.lr": "2e-3", "recover.max_crop": 1, "recover.iterations": 6.0})
        == ()
    )


DATA = [
    ("classes: 10", "classes: 9", STAGES),
    ("resolution: 8", "resolution: 16", STAGES),
    ("mean: [0.305,", "mean: [0.31,", STAGES),
    ("shards_per_job: 2", "shards_per_job: 3", STAGES[1:]),
    ("train_images: 1438", "train_images: 1400", ()),
    ("get: scikit-learn ships it", "get: look around", ()),
    ("layout: digits", "layout: image_folder", ()),
    ("layout: digits", "layout: image_folder\nexclude: []\nclass_map: []", ()),
    ("layout: digits", "layout: image_folder\nexclude: [train/1/a.png]", STAGES),
    ("layout: digits", f"layout: image_folder\nclass_map: {list('1234567890')}", STAGES),
]


@pytest.mark.parametrize(("old", "new", "stages"), DATA)
def test_of_a_data_set_its_identity_counts_and_where_it_lies_does_not(old, new, stages, tree):
    before = ids(tree)
    tree.edit(DATASET, old, new)
    assert tuple(stage for stage in STAGES if ids(tree)[stage] != before[stage]) == stages


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_s_version_changes_its_ids_and_all_downstream(stage, tree, monkeypatch):
    before = ids(tree)
    monkeypatch.setitem(VERSIONS, stage, VERSIONS[stage] + 1)
    assert tuple(s for s in STAGES if ids(tree)[s] != before[s]) == STAGES[STAGES.index(stage) :]


def test_real_images_need_no_model_and_hard_labels_none_either(tree):
    assert "model" not in tree.runs("random")["recover"].upstream
    tree.experiment("tiny", {"set": {"relabel.labels": "hard"}})
    assert list(tree.runs()["relabel"].upstream) == ["images"]
    assert list(tree.runs("random")) == ["recover", "relabel", "validate"]


def test_an_id_is_a_readable_slug_and_eight_hex_digits(tree):
    slugs = {
        "squeeze": "resnet18",
        "recover": "curriculum-cosine-resnet18",
        "relabel": "curriculum-cosine-resnet18-ipc2",
        "validate": "curriculum-cosine-resnet18-ipc2-resnet18",
    }
    for stage, run_id in ids(tree, ipc=2).items():
        assert re.fullmatch(rf"{slugs[stage]}-[0-9a-f]{{8}}", run_id)


@pytest.mark.parametrize(
    ("method", "values", "slug"),
    [
        ("sre2l", {}, "constant-resnet18"),
        ("cda", {"recover.scheduler": "step"}, "curriculum-step-resnet18"),
        ("cda", {"recover.mode": "reverse"}, "reverse-resnet18"),
        ("random", {}, "random"),
        ("released", {}, "imported"),
    ],
)
def test_a_slug_names_the_kind_of_images(method, values, slug, tree):
    tree.experiment("tiny", {"methods": [method], "set": values})
    assert tree.runs(method)["recover"].slug == slug


def test_jobs_of_a_run_hold_consecutive_shards(tree):
    recover = tree.runs()["recover"]  # two shards a job
    assert [list(parts(recover, ipc)) for ipc in (1, 2, 3)] == [[0], [0], [0, 1]]


def test_labels_that_are_too_many_are_made_while_validating(tree):
    relabel = tree.runs(ipc=2)["relabel"]
    assert label_gigabytes(relabel) == pytest.approx(2 * 10 * 5 * 10 * 2 / 1e9)
    assert label_mode(relabel, 1.0) == "stored"
    assert label_mode(relabel, 1e-6) == "online"
    tree.experiment("tiny", {"set": {"relabel.labels": "hard"}})
    assert label_mode(tree.runs(ipc=2)["relabel"], 1e-6) == "hard"


@pytest.mark.parametrize(("key", "value"), [("bits", 4), ("top_k", 3), ("reuse", 2)])
def test_labels_made_online_are_coded_as_stored_ones_are(key, value, tree):
    tree.experiment("tiny", {"set": {f"relabel.{key}": value}})
    stored = ids(tree)
    tree.experiment("tiny", {"set": {f"relabel.{key}": value, "relabel.labels": "online"}})
    assert ids(tree) == stored


def test_of_hard_labels_only_the_reuse_of_augmentations_counts(tree):
    tree.experiment("tiny", {"set": {"relabel.labels": "hard"}})
    hard = ids(tree)
    tree.experiment(
        "tiny", {"set": {"relabel.labels": "hard", "relabel.bits": 4, "relabel.top_k": 3}}
    )
    assert ids(tree) == hard
    tree.experiment("tiny", {"set": {"relabel.labels": "hard", "relabel.reuse": 2}})
    assert ids(tree)["relabel"] != hard["relabel"]


@pytest.mark.parametrize(("top_k", "stages"), [(0, ("validate",)), (3, ("relabel", "validate"))])
def test_the_largest_logits_are_stored_for_one_temperature(top_k, stages, tree):
    tree.experiment("tiny", {"set": {"relabel.top_k": top_k}})
    before = ids(tree)
    tree.experiment("tiny", {"set": {"relabel.top_k": top_k, "validate.temperature": 5.0}})
    after = ids(tree)
    assert tuple(stage for stage in before if after[stage] != before[stage]) == stages


def test_a_slug_names_the_label_codec(tree):
    tree.experiment("tiny", {"set": {"relabel.bits": 8, "relabel.top_k": 3, "relabel.reuse": 2}})
    assert tree.runs()["relabel"].slug == "curriculum-cosine-resnet18-ipc1-top3-q8-reuse2"


@pytest.mark.parametrize("top_k", [10, 11])
def test_as_many_logits_as_classes_are_not_the_largest(top_k, tree):
    line = tree.edit(RECIPE, "  labels: stored         # our choice\n", f"  top_k: {top_k}\n")
    with pytest.raises(ConfigError) as caught:
        tree.runs()
    problem = (
        f"relabel.top_k ({top_k}) must be smaller than the 10 classes of digits; take a "
        "smaller one, or 0"
    )
    assert str(caught.value).startswith(f"config/{RECIPE}:{line}: {problem}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "a_row", "epochs"),
    [
        ({}, 20, 5),
        ({"bits": 8}, 14, 5),
        ({"bits": 4, "reuse": 2}, 9, 3),
        ({"bits": 8, "top_k": 3}, 2 + 4 + 3, 5),  # a bitmap of ten bits takes two bytes
        ({"bits": 8, "top_k": 1, "reuse": 5}, 1 + 4 + 1, 1),
        ({"reuse": 7}, 20, 1),
    ],
)
def test_sizes_follow_the_codec(values, a_row, epochs, tree):
    tree.experiment("tiny", {"set": {f"relabel.{key}": value for key, value in values.items()}})
    relabel = tree.runs(ipc=2)["relabel"]
    assert (label_epochs(relabel), served_epochs(relabel)) == (epochs, 5)
    assert label_bytes(relabel) == 2 * 10 * epochs * a_row
    assert fp16_bytes(relabel) == 2 * 10 * 5 * 20
    assert label_mode(relabel, label_bytes(relabel) / 1e9) == "stored"
    assert label_mode(relabel, (label_bytes(relabel) - 1) / 1e9) == "online"
