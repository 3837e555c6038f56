"""The order of classes, and when a numbered set could mean another one."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest

from cda.data.class_order import normal_form, order_problem, sort_classes

NUMBERS = [str(number) for number in range(12)]


@pytest.mark.parametrize(
    "names",
    [
        NUMBERS,
        [f"{number:02d}" for number in range(12)],
        ["-10", "-9", "-1", "0", "2", "10"],
        [" 1", "2 ", "10"],
        ["0.5", "1.5", "10.25"],
        ["n01440764", "n01443537", "n09999999"],
        ["B", "a", "c10", "c2"],
        ["10", "9", "cat"],
        [*NUMBERS[:10], "123456789012345678901234567890"],
    ],
)
def test_numbers_are_sorted_by_value_and_other_names_as_text(names):
    shuffled = np.random.default_rng(0).permutation(np.array(names, dtype=object)).tolist()
    assert sort_classes(shuffled) == names


@pytest.mark.parametrize(
    "names",
    [
        NUMBERS,
        [f"{number:03d}" for number in range(12)],
        ["n01440764", "n01443537"],
        ["ant", "bee", "cat"],
        ["Ant", "Bee"],
        [f"class{number:02d}" for number in range(12)],
        ["1", "2", "3"],
    ],
)
def test_an_order_on_which_all_programs_agree_is_no_problem(names):
    assert order_problem(sort_classes(names)) is None


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ([f"class{number}" for number in range(12)], "class 2 is 'class10' here, and 'class2' if"),
        ([str(number) for number in range(1, 13)], "class 1 is '2' here, and '10' if sorted as"),
        (["-2", "-1", "0"], "class 0 is '-2' here, and '-1' if sorted as text"),
        (["1", "01", "2"], "several class folders are one number"),
        (["a", "A"], "differ in case alone"),
        (["ant", "Bee"], "class 0 is 'Bee' here, and 'ant' if sorted without case"),
        (["n01440764", "tench"], "some class folders are WordNet ids and others are not"),
    ],
)
def test_an_order_that_programs_disagree_on_is_a_problem(names, problem):
    assert problem in str(order_problem(sort_classes(names)))


def test_names_are_compared_in_composed_form():
    assert normal_form(unicodedata.normalize("NFD", "café")) == "café"
