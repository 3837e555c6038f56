"""How long jobs may take: near the estimate, more with each attempt, never beyond the longest."""

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cda.config.load import load_settings
from cda.config.recipe import Architecture
from cda.errors import ConfigError
from cda.experiments.experiment_set import ExperimentSet
from cda.pipeline.costs import multiply_adds
from cda.pipeline.limits import MARGIN, START, TimeLimits, rough_multiply_adds
from cda.pipeline.rules import Plan

NO_WORKFLOW = SimpleNamespace(dag_settings=None)
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def paper():
    return ExperimentSet(load_settings({}, ROOT / "config"), ROOT / "config")


def wildcards(run):
    return SimpleNamespace(run=run.id)


@pytest.mark.parametrize(
    ("dataset", "name", "architecture"),
    [
        ("imagenet1k", "resnet18", {}),
        ("imagenet1k", "resnet50", {}),
        ("tiny_imagenet", "resnet18", {"stem": "small"}),
        ("cifar100", "resnet18", {"stem": "small", "width": 0.25}),
        ("tiny_imagenet", "resnet101", {"stem": "small", "width": 0.25}),
        ("digits", "convnet3", {"stem": "imagenet", "width": 0.25}),
    ],
)
def test_the_rough_count_is_near_the_exact_one(dataset, name, architecture, paper):
    data, built = paper.dataset(dataset), Architecture.model_validate(architecture)
    assert 0.8 < rough_multiply_adds(name, data, built) / multiply_adds(name, data, built) < 1.25


def test_a_limit_is_the_estimate_with_a_margin_and_grows_to_the_longest(paper):
    limits = TimeLimits(paper)
    run = next(run for run in paper.runs(("table1",)).values() if run.stage == "squeeze")
    expected = START + MARGIN * 60 * limits.hours(run)
    assert limits.hours(run) > 0.05
    assert limits.minutes(run) == math.ceil(expected)
    assert limits.minutes(run, 2) == math.ceil(2 * expected)
    assert limits.minutes(run, 1000) == 24 * 60


def test_several_processes_take_a_share_of_the_time(paper):
    run = next(
        run
        for run in paper.runs(("table4",)).values()
        if run.stage == "squeeze" and run.data.gpus == 4
    )
    alone = ExperimentSet(load_settings({"runtime": {"gpus": 1}}, ROOT / "config"), ROOT / "config")
    assert TimeLimits(paper).hours(run) == pytest.approx(TimeLimits(alone).hours(run) / 4)


def test_jobs_on_a_slower_gpu_get_more_time(paper):
    slower = ExperimentSet(
        load_settings({"runtime": {"gpu": "v100"}}, ROOT / "config"), ROOT / "config"
    )
    run = next(
        run for run in paper.runs(("table1",)).values() if run.stage == "recover" and run.upstream
    )
    assert TimeLimits(slower).hours(run) > 2 * TimeLimits(paper).hours(run)
    assert TimeLimits(slower).minutes(run) > TimeLimits(paper).minutes(run)


def test_reading_images_takes_time_too(paper):
    limits, runs = TimeLimits(paper), paper.runs(("table4",)).values()
    decode = next(run for run in runs if run.stage == "recover" and not run.upstream)
    assert limits.minutes(decode) > START


def test_an_unknown_gpu_is_refused_before_anything_is_planned():
    with pytest.raises(
        ConfigError, match=r"^runtime.gpu h9000: is not in .*devices.yaml; use one of a100, "
    ):
        Plan({"runtime": {"gpu": "h9000"}}, NO_WORKFLOW)


def test_a_job_requests_time_and_memory_for_its_own_run():
    plan = Plan({}, NO_WORKFLOW)
    runs = [run for run in plan.experiments.runs(("table4",)).values() if run.stage == "recover"]
    made = {run.dataset: run for run in runs if run.recipe.recover.synthetic}
    large, small = (wildcards(made[name]) for name in ("imagenet1k", "tiny_imagenet"))
    assert plan.minutes(large, 1) > plan.minutes(small, 1)
    assert plan.memory(large, 1) > plan.memory(small, 1)
    assert plan.memory(small, 2) == pytest.approx(2 * plan.memory(small, 1), abs=1)
    real = next(run for run in runs if not run.recipe.recover.synthetic)
    assert plan.minutes(wildcards(real), 1) < plan.minutes(small, 1)


def test_time_limits_are_estimated_without_torch():
    code = (
        "import sys, types, cda.pipeline.rules; plan = cda.pipeline.rules.Plan({}, None); runs = "
        "plan.experiments.runs().values();"
        "[plan.minutes(types.SimpleNamespace(run=run.id), 1) for run in runs]; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
