"""Configuration: bad input ends in one line that names file, key and what is allowed."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cda.cli import main
from cda.config.load import from_environment, load_settings, read_overrides
from cda.config.yaml_source import read_layer
from cda.errors import ConfigError
from cda.experiments.experiment_set import ExperimentSet
from cda.pipeline.rules import Plan

ROOT = Path(__file__).resolve().parents[3]
RECIPE, DATASET, SETTINGS = "recipes/digits.yaml", "datasets/digits.yaml", "config.yaml"


def problem(call: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    return line


def resolve(tree: Any, **overrides: Any) -> Any:
    """Everything a command does before its stage starts."""
    return tree.experiments(**overrides).runs()


# A bad value in a file
# --------------------------------------------------------------------------------------------------

BAD_VALUES = {
    # what: file, text there, put in its place, key, what is allowed
    "unknown key": (RECIPE, "  jitter: 1 ", "  jiter: 1 ", "recover.jiter", "jitter"),
    "bracket in a key": (RECIPE, "  jitter: 1 ", '  "jit[er": 1 ', "recover.jit[er", "jitter"),
    "unknown section": (RECIPE, "variants:", "variantz:", "variantz", "relabel"),
    "missing key": (RECIPE, "  mode: curriculum ", "  seed: 1 ", "recover.mode", "is missing"),
    "text for a number": (
        RECIPE,
        "iterations: 6 ",
        "iterations: six ",
        "recover.iterations",
        "whole number",
    ),
    "fraction for a count": (
        RECIPE,
        "iterations: 6 ",
        "iterations: 6.5 ",
        "recover.iterations",
        "whole number",
    ),
    "yes for a count": (
        RECIPE,
        "iterations: 6 ",
        "iterations: yes ",
        "recover.iterations",
        "number",
    ),
    "unknown word": (RECIPE, "mode: curriculum", "mode: spiral", "recover.mode", "curriculum"),
    "milestone over 1": (
        RECIPE,
        "  mode: curriculum",
        "  milestone: 1.2\n  mode: curriculum",
        "recover.milestone",
        "1",
    ),
    "min_crop over max_crop": (
        RECIPE,
        "max_crop: 1.0",
        "max_crop: 0.3",
        "recover",
        "min_crop <= max_crop",
    ),
    "crop_scale reversed": (RECIPE, "[0.4, 1.0]", "[1.0, 0.4]", "relabel", "low <= high"),
    "crop_scale of three": (RECIPE, "[0.4, 1.0]", "[0.1, 0.4, 1.0]", "relabel.crop_scale", "2"),
    "negative epochs": (
        RECIPE,
        "  epochs: 2 ",
        "  epochs: -2 ",
        "squeeze.epochs",
        "at least 1",
    ),
    "only warm-up": (
        RECIPE,
        "warmup_epochs: 1 ",
        "warmup_epochs: 3 ",
        "warmup_epochs",
        "smaller than epochs",
    ),
    "uneven parts": (
        RECIPE,
        "batch_size: 6 ",
        "batch_parts: 4\n  batch_size: 6 ",
        "batch_parts (4)",
        "must divide batch_size (6)",
    ),
    "unknown parameters": (
        RECIPE,
        "lr: 2.0e-3",
        "decay_names: bias\n  lr: 2.0e-3",
        "validate.decay_names",
        "all, weight",
    ),
    "unknown first weights": (
        RECIPE,
        "  stem: small ",
        "  stem_init: zeros\n  stem: small ",
        "architecture.stem_init",
        "kaiming, torch",
    ),
    "labels too short": (
        RECIPE,
        "  epochs: 5 ",
        "  epochs: 2 ",
        "relabel.epochs",
        "validate.epochs (3)",
    ),
    "infinite": (RECIPE, "lr: 2.0e-3", "lr: .inf", "validate.lr", "finite"),
    "no number": (RECIPE, "lr: 2.0e-3", "lr: .nan", "validate.lr", "0"),
    "a list for a section": (
        SETTINGS,
        "data_paths: {}",
        "labels: [1]",
        "labels",
        "mapping of keys",
    ),
    "unknown setting": (SETTINGS, "seeds: 2", "seed: 2", "seed", "seeds"),
    "no seeds": (SETTINGS, "seeds: 2", "seeds: 0", "seeds", "at least 1"),
    "no threads": (
        SETTINGS,
        "cpu_threads: 1",
        "cpu_threads: 0",
        "runtime.cpu_threads",
        "at least 1",
    ),
    "one class": (DATASET, "classes: 10", "classes: 1", "classes", "at least 2"),
    "no spread": (DATASET, "std: [0.318,", "std: [0.0,", "std.0", "more than 0"),
    "resized and squashed": (
        DATASET,
        "resolution: 8",
        "resolution: 8\nresize: 9\nfit: squash",
        "resize",
        "drop one of them",
    ),
    "unknown layout": (DATASET, "layout: digits", "layout: zip", "layout", "image_folder"),
}


@pytest.mark.parametrize(
    ("name", "old", "new", "key", "allowed"), BAD_VALUES.values(), ids=BAD_VALUES.keys()
)
def test_a_bad_value_is_one_line_with_file_key_and_what_is_allowed(
    name, old, new, key, allowed, tree
):
    tree.edit(name, old, new)
    line = problem(lambda: resolve(tree))
    assert line.startswith(f"config/{name}")
    assert key in line
    assert allowed in line.replace(key, "", 1)


BAD_GROUPS = {
    "IPC 0": ({"ipc": [0]}, "ipc", "at least 1"),
    "IPC below 0": ({"ipc": [1, -1]}, "ipc", "at least 1"),
    "half an image": ({"ipc": [1.5]}, "ipc", "whole number"),
    "no list": ({"ipc": 1}, "ipc", "a list, in brackets: [1]"),
    "unknown key": ({"metod": ["cda"]}, "metod", "methods"),
}


@pytest.mark.parametrize(("change", "key", "allowed"), BAD_GROUPS.values(), ids=BAD_GROUPS.keys())
def test_a_bad_group_names_its_experiment(change, key, allowed, tree):
    tree.experiment("tiny", change)
    line = problem(lambda: resolve(tree))
    assert line.startswith("config/experiments/tiny.yaml")
    assert key in line
    assert allowed in line.replace(key, "", 1)


@pytest.mark.parametrize(
    ("change", "key", "known"),
    [
        ({"methods": ["cdaa"]}, "methods.cdaa", "cda, random"),
        ({"variants": ["fast"]}, "variants.fast", "slow"),
    ],
)
def test_an_unknown_method_or_variant_ends_in_the_known_ones(change, key, known, tree):
    tree.experiment("tiny", change)
    line = problem(lambda: resolve(tree))
    assert line.startswith(f"config/{RECIPE}")
    assert key in line
    assert known in line


def test_a_bad_value_of_a_cell_names_the_experiment_and_not_the_recipe(tree):
    tree.experiment("tiny", {"set": {"recover.milestone": 1.2}})
    line = problem(lambda: resolve(tree))
    assert "config/experiments" in line
    assert "recover.milestone" in line


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (
            "datasets:\n  digits:\n    recipe:\n      recover:\n        milestone: 1.2\n",
            "recover.milestone",
        ),
        ("recipe:\n  recover:\n    milestone: 1.2\n", "recipe is not a known key"),
        (
            "datasets:\n  digits:\n    recover:\n      milestone: 1.2\n",
            "recover is not a known key",
        ),
        ("datasets:\n  digits:\n    stand_in: mnist\n", "data set mnist is not declared"),
        ("datasets:\n  digits:\n    ipc: {3: 1}\n", "datasets.digits.ipc has no entry for 1"),
        ("settings:\n  sedes: 3\n", "sedes"),
        ("setings:\n  seeds: 3\n", "setings"),
        ("datasets:\n  digit: {}\n", "data set digit is not declared"),
    ],
)
def test_a_bad_value_of_a_scale_names_the_scale_s_file(text, key, tree):
    tree.write("scales/small.yaml", text)
    tree.experiment("tiny", scales=["paper", "small"])
    line = problem(lambda: resolve(tree, scale="small"))
    assert line.startswith("config/scales/small.yaml")
    assert key in line


# A bad name
# --------------------------------------------------------------------------------------------------


def test_an_unknown_scale_ends_in_the_known_ones(tree):
    tree.write("scales/small.yaml", "")
    assert problem(lambda: resolve(tree, scale="smal")).endswith("use one of paper, small")


@pytest.mark.parametrize("wanted", [["mnist"], ["digits", "mnist"], "mnist"])
def test_an_unknown_data_set_ends_in_the_declared_ones(wanted, tree):
    line = problem(lambda: resolve(tree, datasets=wanted))
    assert "datasets" in line
    assert "'mnist'" in line
    assert "digits" in line.replace(f"config/{RECIPE}", "") or "list" in line


@pytest.mark.parametrize(("command", "kind"), [("table", "table"), ("list", "table or figure")])
def test_an_unknown_table_ends_in_the_known_ones(command, kind, tree, capsys):
    assert tree.cda(command, "tinny") == 1
    assert (
        capsys.readouterr().err
        == f"cda: there is no {kind} 'tinny' at scale paper (nearest: tiny); there is tiny\n"
    )


def test_an_unknown_run_ends_in_where_to_look(tree, capsys):
    assert tree.cda("squeeze", "--run", "resnet18-00000000") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "'resnet18-00000000'" in line
    assert "`cda list`" in line


def test_a_run_of_another_stage_is_refused(tree, capsys):
    assert tree.cda("squeeze", "--run", tree.runs()["recover"].id) == 1
    assert capsys.readouterr().err.startswith("cda: no squeeze 'curriculum-cosine-resnet18-")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("scale", "KEY=VALUE"),
        ("seeds=0", "seeds"),
        ("sedes=1", "sedes"),
        ("runtime.device=tpu", "auto, cpu, cuda"),
        ("scale=[", "scale"),
        ("scale.name=x", "scale"),
    ],
)
def test_a_bad_option_is_one_line_that_names_it(option, message, tree, capsys):
    assert tree.cda("table", "tiny", "--config", "scale=paper", option) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cda: ")
    assert message in line


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("runtime.workers=many", "runtime.workers must be auto, or a whole number (found 'many')"),
        ("runtime.workers=-1", "runtime.workers must be auto, or at least 0 (found -1)"),
        (
            "runtime.precision=fp31",
            "fp32, tf32, bf16, or a mapping of keys to values (nearest: fp32)",
        ),
        ("labels=3", "labels must be a mapping of keys to values (found 3)"),
    ],
)
def test_a_value_of_several_types_names_each_in_plain_words(option, message, tree):
    assert message in problem(lambda: load_settings(read_overrides([option])))


def test_a_bad_option_is_not_blamed_on_the_file(tree):
    assert "the command line" in problem(lambda: resolve(tree, seeds=0))


# A bad file
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "old", "new", "key"),
    [
        (SETTINGS, "data_paths: {}", "data_paths:", "data_paths"),
        (RECIPE, "lr: 2.0e-3 ", "lr: ", "validate.lr"),
        (DATASET, "get: scikit-learn ships it", "get:", "get"),
    ],
)
def test_a_key_left_empty_is_one_line(name, old, new, key, tree):
    tree.edit(name, old, new)
    line = problem(lambda: resolve(tree))
    assert line.startswith(f"config/{name}")
    assert key in line


def test_a_table_laid_out_by_an_unknown_key_is_refused(tree):
    tree.experiment("tiny", layout={"rows": ["ipcs"], "columns": ["method"]})
    line = problem(lambda: tree.experiments().cells("tiny"))
    assert line.startswith("config/experiments/tiny.yaml")
    assert "layout.rows.0 must be one of dataset, method," in line
    assert line.endswith("metric, varied (nearest: ipc) (found 'ipcs')")


def test_a_contrast_over_an_unknown_key_names_the_known_ones(tree):
    contrast = {"claim": "x", "of": {"methd": "cda"}, "against": {"method": "sre2l"}}
    tree.experiment("tiny", contrasts=[contrast])
    line = problem(lambda: tree.experiments().cells("tiny"))
    assert "contrasts.0.of.methd is not a known key (nearest: method); use one of dataset" in line


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        (["paper", "smal"], "scales: there is no scale 'smal' (nearest: small); use some of paper"),
        ("paper", "scales must be a list, in brackets: [paper] (found 'paper')"),
    ],
)
def test_a_table_of_an_unknown_scale_is_refused(scales, message, tree):
    tree.scale("small")
    tree.experiment("tiny", scales=scales)
    line = problem(lambda: tree.experiments().tables)
    assert line.startswith("config/experiments/tiny.yaml:")
    assert message in line


@pytest.mark.parametrize("missing", ["config.yaml", RECIPE, "reported.csv"])
def test_a_missing_file_is_one_line(missing, tree):
    (tree.folder / missing).unlink()
    assert problem(lambda: resolve(tree)).startswith(f"config/{missing}")


def test_without_a_config_folder_the_message_names_where_to_start(tree, monkeypatch):
    monkeypatch.chdir("/")
    assert "start in the repository's root" in problem(lambda: resolve(tree))


# Layers
# --------------------------------------------------------------------------------------------------


def test_later_layers_win(tree):
    def lr(**overrides: Any) -> float:
        return float(tree.runs(**overrides)["validate"].recipe.validate_.lr)

    tree.scale("small", recipe={"validate": {"lr": 0.4}})
    assert lr() == 0.002
    tree.edit(RECIPE, "  cda: {}", "  cda:\n    validate:\n      lr: 0.1")
    assert lr() == 0.1
    tree.experiment("tiny", {"variants": ["slow"]}, scales=["paper", "small"])
    assert lr() == 0.001
    assert lr(scale="small") == 0.4
    tree.experiment(
        "tiny", {"variants": ["slow"], "set": {"validate.lr": 0.3}}, scales=["paper", "small"]
    )
    assert lr() == lr(scale="small") == 0.3
    tree.scale("small", recipe={"validate": {"lr": 0.4}}, instead={"validate.lr": {0.3: 0.5}})
    assert (lr(), lr(scale="small")) == (0.3, 0.5)
    tree.scale("small", instead={"validate.lr": {0.2: 0.5}})
    assert "datasets.digits.instead.validate.lr has no entry for 0.3; add it" in problem(
        lambda: lr(scale="small")
    )


def test_one_resolution_leaves_the_next_one_alone(tree):
    tree.edit(RECIPE, "relabel:\n", "architecture: {}\nrelabel:\n")
    tree.edit(RECIPE, "architecture:\n  stem: small            # our choice: small images\n", "")
    tree.edit(RECIPE, "  width: 0.125           # our choice: speed\n", "")
    tree.scale("small", recipe={"architecture": {"width": 0.5}})
    tree.experiment("tiny", scales=["paper", "small"])
    assert tree.runs(scale="small")["squeeze"].recipe.architecture.width == 0.5
    assert tree.runs()["squeeze"].recipe.architecture.width == 1.0


def test_settings_come_from_the_file_then_the_scale_then_the_command_line(tree):
    tree.write("scales/small.yaml", "settings:\n  seeds: 3\n  runtime:\n    blocks: 4\n")
    settings = tree.experiments(scale="small", runtime={"cpu_threads": 2}).settings
    assert (settings.seeds, settings.runtime.blocks, settings.runtime.cpu_threads) == (3, 4, 2)
    assert settings.runtime.device == "cpu"
    assert tree.experiments(scale="small", seeds=5).settings.seeds == 5


def test_a_job_resolves_its_run_as_its_workflow_did(tree, monkeypatch):
    overrides = {
        "scale": "paper",
        "seeds": 3,
        "runtime": {"device": "cpu", "blocks": 4},
        "data": "/my {data} 'dir'",
    }
    overrides |= {"datasets": ["digits"], "labels": {"max_gb": 0.5}, "data_paths": {"digits": "/d"}}
    export, variable, _path = shlex.split(Plan(overrides, None).prefix.format())
    name, value = variable.split("=", 1)
    assert export == "export"
    monkeypatch.setenv(name, value)
    assert load_settings(from_environment()) == tree.experiments(**overrides).settings


@pytest.mark.parametrize("value", ["{", "[1]", '{"scale": "huge"}', '{"sedes": 1}'])
def test_a_bad_environment_is_one_line(value, tree, monkeypatch, capsys):
    monkeypatch.setenv("CDA_CONFIG", value)
    assert tree.cda("table", "tiny") == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


# Sources
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", sorted((ROOT / "config/recipes").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_value_of_a_recipe_has_a_source(path):
    layer = read_layer(path)
    assert len(layer) > 30
    assert [
        f"{value.where}: {key}"
        for key, value in layer.items()
        if value.value != {} and not value.source
    ] == []


def show_run(tree: Any, stage: str, capsys: Any, **kind: Any) -> dict[str, str]:
    """What `cda config show` prints, by key."""
    assert tree.cda("config", "show", tree.runs(**kind)[stage].id) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{stage} {tree.runs(**kind)[stage].id}"
    return dict(line.strip().split(": ", 1) for line in lines[1:])


def test_config_show_prints_each_value_with_its_source(tree, capsys):
    values = show_run(tree, "squeeze", capsys)
    assert values["squeeze.epochs"].startswith("2  # paper Table 10a (config/recipes/digits.yaml:")
    assert values["squeeze.augment"].startswith(
        '"pad_crop"  # authors\' code (config/recipes/digits.yaml:'
    )
    assert values["squeeze.batch_size"].startswith(
        "256  # our choice: few steps (config/recipes/digits.yaml:"
    )
    assert values["squeeze.momentum"].startswith("0.9  # default")
    assert "0.125" in values["architecture.width"]


def test_config_show_names_the_line_of_a_value(tree, capsys):
    number = tree.edit(RECIPE, "  iterations: 6 ", "  iterations: 7 ")
    assert f"(config/{RECIPE}:{number})" in show_run(tree, "recover", capsys)["recover.iterations"]


def test_config_show_prints_methods_cells_and_what_changes_nothing(tree, capsys):
    tree.experiment("tiny", {"set": {"recover.iterations": 9}})
    values = show_run(tree, "recover", capsys, method="sre2l")
    assert "# SRe2L has no curriculum" in values["recover.mode"]
    assert values["recover.iterations"].startswith("9  # the table's own setting")
    assert "[changes nothing here]" in values["recover.milestone"]
    assert "[changes nothing here]" not in values["recover.lr"]


def test_config_show_names_what_a_run_builds_on(tree, capsys):
    runs = tree.runs()
    values = show_run(tree, "relabel", capsys)
    assert values["images"] == runs["recover"].id
    assert values["model"] == runs["squeeze"].id
    assert show_run(tree, "validate", capsys)["labels"] == runs["relabel"].id


def test_every_value_of_the_repository_s_runs_has_a_source():
    for run in (
        ExperimentSet(load_settings(config=ROOT / "config"), ROOT / "config").runs().values()
    ):
        assert [key for key, value in run.values.items() if not value.source] == []


def test_a_run_of_the_repository_can_be_described(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    run = next(iter(ExperimentSet(load_settings()).runs().values()))
    assert main(["config", "show", run.id]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{run.stage} {run.id}"
    assert not [line for line in lines if "no source in its comment" in line]


def test_a_misspelt_required_key_is_named(tree):
    tree.edit("datasets/digits.yaml", "classes: 10", "clases: 10")
    line = problem(lambda: resolve(tree))
    assert "clases is not a known key (nearest: classes); use one of name, layout, classes" in line


@pytest.mark.parametrize("name", ["my_table", "my-table", "tiny"])
def test_a_table_may_have_any_ordinary_name(name, tree):
    from cda.pipeline.rules import Plan

    tree.experiment(name)
    Plan({}, None, [f"results/{name}.csv", f"results/{name}.md"])


def test_a_mapping_among_a_table_s_own_values_is_refused(tree):
    tree.experiment("tiny", {"set": {"validate": {"epochs": 4}}})
    line = problem(lambda: resolve(tree))
    assert line.startswith(
        "config/experiments/tiny.yaml: set.validate holds a mapping; write dots instead"
    )


def test_a_folder_for_an_undeclared_data_set_is_refused(tree):
    tree.edit("config.yaml", "data_paths: {}", "data_paths: {cifar10: /data}")
    assert "data_paths: 'cifar10' is not declared; use digits" in problem(lambda: resolve(tree))


def test_a_nested_value_on_the_command_line_leaves_its_neighbours_of_the_environment(
    tree, monkeypatch
):
    monkeypatch.setenv("CDA_CONFIG", '{"runtime": {"blocks": 7}}')
    settings = load_settings(read_overrides(["runtime.gpus=3"]))
    assert (settings.runtime.blocks, settings.runtime.gpus) == (7, 3)


def test_a_plan_of_another_scale_s_table_is_refused(tree, capsys):
    assert tree.cda("plan", "results/demo/tiny.csv") == 1
    assert (
        "no table or figure of scale paper; use results/tiny.csv, or add --config scale="
        in capsys.readouterr().err
    )
    assert tree.cda("plan", "results/huge.csv") == 1
    assert "there is no table 'huge' at scale paper" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "overrides", "precision", "threads"),
    [
        ("precision: auto", ["runtime.precision={recover: bf16}"], {"recover": "bf16"}, 1),
        ("precision: auto", ["runtime.precision.recover=bf16"], {"recover": "bf16"}, 1),
        ("precision: {recover: bf16, squeeze: fp32}", ["runtime.precision=tf32"], "tf32", 1),
        (
            "precision: {squeeze: fp32}",
            ["runtime={precision: {recover: bf16}, cpu_threads: 3}"],
            {"squeeze": "fp32", "recover": "bf16"},
            3,
        ),
    ],
)
def test_a_value_and_a_mapping_by_stage_replace_one_another(
    file, overrides, precision, threads, tree
):
    path = Path("config/config.yaml")
    path.write_text(path.read_text().replace("runtime:\n", f"runtime:\n  {file}\n"))
    runtime = load_settings(read_overrides(overrides)).runtime
    assert (runtime.precision, runtime.cpu_threads) == (precision, threads)


# Files beside a data set's
# --------------------------------------------------------------------------------------------------

FOLDERS = "layout: image_folder\n"


def with_lines(tree: Any, key: str, value: str, text: str | None = None) -> Any:
    tree.edit(DATASET, "layout: digits\n", f"{FOLDERS}{key}: {value}\n")
    if text is not None:
        (tree.folder / "datasets/lines.txt").write_bytes(text.encode())
    return tree.experiments().dataset("digits")


def test_lines_come_from_a_file_or_a_list(tree):
    text = "\ufeff# damaged\r\ntrain/1/b.png\tempty\r\n\ntrain/0/#a.png\r\ntrain/1/b.png\r\n"
    data = with_lines(tree, "exclude", "lines.txt", text)
    assert data.exclude == ("train/0/#a.png", "train/1/b.png")
    tree.edit(DATASET, "exclude: lines.txt", "exclude: [train/1/b.png, train/0/#a.png]")
    assert tree.experiments().dataset("digits").identity() == data.identity()


def test_a_class_map_has_folders_and_their_published_names(tree):
    lines = "".join(f"class {digit}\tn0000000{digit}\n" for digit in range(9)) + "other\n"
    data = with_lines(tree, "class_map", "lines.txt", lines)
    assert list(data.published_names().items())[8:] == [("class 8", "n00000008"), ("other", "")]


@pytest.mark.parametrize(
    ("key", "value", "text", "allowed"),
    [
        ("exclude", "lines.txt", None, "exclude names a text file in"),
        ("exclude", "../lines.txt", "", "it is no name of a file"),
        ("exclude", "/etc/passwd", "", "it is no name of a file"),
        ("exclude", "lines.txt", "train/../../x\n", "must hold paths such as train/cat/1.jpg"),
        ("exclude", "lines.txt", "/train/x\n", "must hold paths such as train/cat/1.jpg"),
        ("exclude", "[01, 2]", None, "put numbers in quotes"),
        ("exclude", "{a: b}", None, "exclude"),
        ("class_map", "[01, 2]", None, "put numbers in quotes"),
        ("class_map", "[cat, dog]", None, "must have 10 lines, each with another folder"),
        ("class_map", "lines.txt", "a\n" * 10, "must have 10 lines, each with another folder"),
        ("class_map", "lines.txt", "".join(f"{n}\tn1\n" for n in range(10)), "another name in"),
    ],
)
def test_bad_lines_name_the_file_and_the_key(tree, key, value, text, allowed):
    line = problem(lambda: with_lines(tree, key, value, text))
    assert line.startswith(f"config/{DATASET}:")
    assert key in line
    assert allowed in line


def test_lines_that_are_no_utf_8_are_refused(tree):
    (tree.folder / "datasets/lines.txt").write_bytes(b"train/caf\xe9.png\n")
    line = problem(lambda: with_lines(tree, "exclude", "lines.txt"))
    assert "'lines.txt' cannot be read" in line


def test_a_layout_without_files_has_nothing_to_exclude(tree):
    tree.edit(DATASET, "layout: digits\n", "layout: digits\nexclude: [train/0/a.png]\n")
    line = problem(lambda: tree.experiments().dataset("digits"))
    assert "class_map and exclude go with a layout of image files" in line
