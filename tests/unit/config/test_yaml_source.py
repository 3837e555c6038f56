"""YAML files: comments become sources, and whatever is wrong with a file is one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cda.config.yaml_source import Layer, nested, read_layer, read_plain
from cda.errors import ConfigError

RECIPE = "recipes/digits.yaml"


def problem(call: Callable[[], Any]) -> str:
    """The one line that `call` is refused with."""
    with pytest.raises(ConfigError) as caught:
        call()
    (line,) = str(caught.value).splitlines()
    return line


def resolve(tree: Any) -> Any:
    return tree.experiments().runs()


# Sources
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a: 1  # why", {"a": (1, "why")}),
        ("a:\n  b: [1, 2]   # why", {"a.b": ([1, 2], "why")}),
        ("a: '#5'  # why", {"a": ("#5", "why")}),
        ("a: {b: 1}  # why", {"a.b": (1, "why")}),
        ("a: {}  # why", {"a": ({}, "why")}),
        ("a: 1", {"a": (1, "")}),
        ("a: 1\n# of nothing\nb: 2  # why", {"a": (1, ""), "b": (2, "why")}),
        ("a: null  # why", {"a": (None, "why")}),
        ("a:  # why", {"a": (None, "why")}),
    ],
)
def test_the_comment_after_a_value_is_its_source(text, wanted, tmp_path):
    (tmp_path / "file.yaml").write_text(text)
    layer: Layer = read_layer(tmp_path / "file.yaml")
    assert {key: (value.value, value.source) for key, value in layer.items()} == wanted


# Mistakes
# --------------------------------------------------------------------------------------------------

BAD_FILES = {
    "key twice": (
        "  iterations: 6 ",
        "  iterations: 5\n  iterations: 6 ",
        "recover.iterations is written twice",
    ),
    "section twice": ("relabel:\n", "recover:\n  seed: 3\nrelabel:\n", "recover is written twice"),
    "tab": ("  iterations: 6 ", "\titerations: 6 ", "not valid YAML"),
    "open bracket": ("[0.4, 1.0]", "[0.4, 1.0", "not valid YAML"),
    "control character": ("# our choice: two blocks", "# \x07", "not valid YAML"),
    "code": ("iterations: 6 ", "iterations: !!python/name:os.system ", "not valid YAML"),
    "impossible date": ("iterations: 6 ", "iterations: 2024-13-45 ", "not valid YAML"),
}


@pytest.mark.parametrize(("old", "new", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_one_line_with_its_line(old, new, message, tree):
    number = tree.edit(RECIPE, old, new)
    line = problem(lambda: resolve(tree))
    assert line.startswith((f"config/{RECIPE}:{number}:", f"config/{RECIPE}:{number + 1}:"))
    assert message in line


def test_a_file_that_is_no_text_is_one_line(tree):
    (tree.folder / RECIPE).write_bytes(b"lr: \xff\xfe")
    assert problem(lambda: resolve(tree)).startswith(f"config/{RECIPE}")


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "just text\n"])
def test_a_file_that_is_no_mapping_is_one_line(text, tree):
    tree.write(RECIPE, text)
    assert (
        problem(lambda: resolve(tree))
        == f"config/{RECIPE}:1: the file must be a mapping of keys to values"
    )


def test_a_key_twice_inside_a_group_is_found_too(tree):
    text = (tree.folder / "experiments/tiny.yaml").read_text(encoding="utf-8")
    tree.write("experiments/tiny.yaml", text + "  dataset: cifar100\n")
    line = problem(lambda: resolve(tree))
    assert line.startswith("config/experiments/tiny.yaml:")
    assert "dataset is written twice" in line


# Foreign files
# --------------------------------------------------------------------------------------------------

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "2: not valid YAML: alias *a inside an anchored value (&name); fix that line"),
        ("a: &a [*a]\n", "1: not valid YAML: alias *a inside an anchored value (&name)"),
        ("a: &a {b: *a}\n", "1: not valid YAML: alias *a inside an anchored value (&name)"),
        ("a: " + "[" * 100_000, "is nested too deeply; write fewer levels"),
        ("a: " + "- " * 100_000, "not valid YAML"),
        ("a:\n" + "- " * 100_000, "is nested too deeply; write fewer levels"),
        (
            "a: !!python/object/apply:os.system ['touch pwned']\n",
            "could not determine a constructor",
        ),
        ("a: !!python/object/new:pathlib.Path [pwned]\n", "could not determine a constructor"),
        ("a: *b\n", "undefined alias"),
        ("a: " + "9" * 10**5 + "\n", "not valid YAML"),
    ],
    ids=[
        "bomb",
        "itself",
        "own key",
        "deep",
        "dashes",
        "deeper",
        "call",
        "object",
        "none",
        "number",
    ],
)
def test_a_hostile_file_is_one_line(text, message, tree):
    tree.write(RECIPE, text)
    line = problem(lambda: resolve(tree))
    assert line.startswith(f"config/{RECIPE}:")
    assert message in line
    assert line.isprintable()
    assert len(line) < 1000
    assert not Path("pwned").exists()


def test_an_alias_repeats_a_value_that_a_group_may_change(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: *a\nc:\n- {<<: *a, y: 3}\n")
    assert read_plain(path) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 2},
        "c": [{"x": 1, "y": 3}],
    }
    assert read_layer(path)["b.y"].value == 2


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "file.yaml"
    for value in (1, 2):
        path.write_text(f"a: {value}\n")
        assert read_plain(path) == {"a": value}


def test_an_empty_file_is_an_empty_mapping(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text("# nothing\n")
    assert read_plain(path) == read_layer(path) == {}


def test_a_missing_file_names_its_neighbours(tmp_path):
    (tmp_path / "other.yaml").touch()
    with pytest.raises(
        ConfigError, match=r"file\.yaml: no such file .nearest: other.yaml.; .* one of other\.yaml"
    ):
        read_plain(tmp_path / "file.yaml")


def test_a_key_below_a_plain_value_is_one_line(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text("a: 1\na.b: 2\n")
    with pytest.raises(
        ConfigError, match=r"file.yaml:2: a.b is set, but a has a plain value; drop"
    ):
        nested(read_layer(path))


def test_an_impossible_date_as_a_key_is_one_line(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text("a:\n- {2024-99-99: 1}\n")
    with pytest.raises(ConfigError, match=r"file.yaml.*: not valid YAML: month must be in 1..12"):
        read_plain(path)


def test_a_wrong_key_below_a_data_set_with_a_field_s_name_is_one_line(tree):
    tree.scale("small")
    tree.write("scales/small.yaml", "datasets:\n  recipe:\n    nothing: 1\n")
    with pytest.raises(ConfigError, match=r"nothing is not a known key; use one of stand_in"):
        tree.experiments(scale="small")
