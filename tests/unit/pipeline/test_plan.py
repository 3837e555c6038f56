"""The page of `cda plan`: its columns, its notes, and a mistake in one line."""

from __future__ import annotations

import pytest

from cda.errors import ConfigError
from cda.pipeline.plan import plan


def test_the_page_names_cells_that_stay_not_run_and_data_that_are_not_counted(devices):
    devices.experiment("tiny", {"methods": ["cda"]}, {"dataset": "imagenet1k"})
    devices.edit("datasets/digits.yaml", "val_images: 359\n", "")
    page = plan(devices.experiments(), ["tiny"], "fast", 8)
    assert (
        "tiny: 6 of 8 cells cannot run: data set imagenet1k is not declared in config/datasets/"
        in page
    )
    assert "quoted" not in page
    assert "digits: passes over images whose number is not known count nothing; declare" in page


def test_the_columns_of_the_page_are_aligned(devices):
    page = plan(devices.experiments(), ["tiny"], "fast", 8).splitlines()
    first = next(index for index, text in enumerate(page) if text.startswith("data set"))
    table = page[first : page.index("", first)]
    assert len(table) == 6  # head, four stages, all
    end = table[0].index("to do") + len("to do")
    assert {text[end - 2 : end + 1].strip() for text in table[1:]} == {"1", "3", "6", "12", "22"}


def test_an_unknown_gpu_is_one_line_that_names_the_known_ones(devices):
    with pytest.raises(
        ConfigError, match=r"--gpu h9000: .*config/devices.yaml; use one of fast, odd"
    ) as caught:
        plan(devices.experiments(), ["tiny"], "h9000", 1)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("nowhere")
def test_a_plan_needs_no_data_and_no_artifact(paper):
    for gpu in ("a100", "cpu"):
        page = plan(paper, ["table4"], gpu, 4)
        for dataset in ("tiny_imagenet", "imagenet1k", "imagenet21k_p"):
            assert f"\n{dataset} " in page
        assert len(page.splitlines()) < 40
