"""Grids: the points of a group in order, its controls, and the tables and figures declared."""

from __future__ import annotations

import pytest

from cda.config.experiment import Group
from cda.errors import ConfigError
from cda.experiments.grid import comparison_table, controls_of, points, read_experiments

GROUP = Group(
    dataset="digits",
    methods=("cda", "sre2l"),
    recovery_models=("resnet18",),
    ipc=(1, 10),
    validation_models=("resnet18",),
    setting="beta_l={};validate_epochs=8",
    vary={"recover.min_crop": (0.2, 0.4)},
    set={"validate.epochs": 8},
)


def test_points_are_every_combination_and_methods_vary_fastest():
    found = [(point.value, point.ipc, point.method) for point in points(GROUP)]
    assert found == [
        (value, ipc, method)
        for value in (0.2, 0.4)
        for ipc in (1, 10)
        for method in ("cda", "sre2l")
    ]


def test_controls_are_random_images_and_hard_labels():
    random, hard, both = controls_of(GROUP)
    assert (random.methods, random.control) == (("random",), True)
    assert (random.setting, random.vary) == ("validate_epochs=8", {})  # real images need no β_l
    assert (hard.methods, hard.control) == (("cda", "sre2l"), True)
    assert hard.setting == "beta_l={};validate_epochs=8;labels=hard"
    assert hard.set == {"validate.epochs": 8, "relabel.labels": "hard"}
    assert (both.methods, both.control, both.vary) == (("random",), True, {})
    assert (both.setting, both.set) == ("validate_epochs=8;labels=hard", hard.set)


@pytest.mark.parametrize("change", [{"control": True}, {"quoted": True}, {"stage": "score"}])
def test_controls_have_no_controls(change):
    assert list(controls_of(GROUP.model_copy(update=change))) == []


def test_tables_are_in_natural_order_and_own_data_sets_come_last(tree):
    for name in ("table10", "table2"):
        tree.experiment(name)
    tree.edit("datasets/digits.yaml", "shards_per_job: 2", "shards_per_job: 2\ncompare_ipc: [1]")
    digits = tree.experiments().dataset("digits")
    found = read_experiments(tree.folder, scale="paper", datasets=[digits])
    assert list(found) == ["table2", "table10", "tiny", "digits", "digits-grid"]
    assert found["digits"] == comparison_table(digits)
    assert (found["digits-grid"].kind, found["digits-grid"].groups) == (
        "grid",
        found["digits"].groups,
    )
    assert read_experiments(tree.folder, scale="demo", datasets=[]) == {}


def own_table(tree, lines):
    tree.edit("datasets/digits.yaml", "shards_per_job: 2", f"shards_per_job: 2\n{lines}")
    return tree.experiments().tables["digits"]


def test_a_data_set_s_table_compares_its_methods(tree):
    (group,) = own_table(tree, "compare_ipc: [1]").groups
    assert group.methods == ("cda", "sre2l", "random")
    tree.edit("datasets/digits.yaml", "compare_ipc", "compare_methods: [random, mine]\ncompare_ipc")
    (group,) = tree.experiments().tables["digits"].groups
    assert group.methods == ("random", "mine")
    with pytest.raises(ConfigError, match=r"methods\.mine is missing; add it or use one of cda"):
        tree.experiments().cells("digits")


def test_methods_without_ipc_compare_nothing(tree):
    with pytest.raises(ConfigError, match="compare_methods go with compare_ipc"):
        own_table(tree, "compare_methods: [cda]")


@pytest.mark.parametrize("scale", ["paper", "small"])
def test_a_file_of_the_name_of_a_data_set_s_table_is_refused(scale, tree):
    tree.scale("small")
    tree.experiment("digits", scales=[scale])
    with pytest.raises(ConfigError, match=r"config/experiments/digits\.yaml: compare_ipc of "):
        own_table(tree, "compare_ipc: [1]")


def test_a_name_that_a_shell_could_misread_is_refused(tree):
    tree.experiment("a table")
    with pytest.raises(ConfigError, match="named by letters, digits, _ and -; rename the file"):
        read_experiments(tree.folder, scale="paper", datasets=[])
