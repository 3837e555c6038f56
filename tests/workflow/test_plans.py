"""What Snakemake plans from the repository's own `config/`, and how it refuses mistakes."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest
import yaml
from tests.workflow.conftest import ROOT, planned, snakemake

RULES = sorted((ROOT / "workflow" / "rules").glob("*.smk"))

# Table 1: cda, sre2l and random at IPC 50 (5 parts each) and hard labels, under two augmentations.
# Table 4 on Tiny-ImageNet: sre2l, cda, random at IPC 100 (10 parts each). Hard labels need no
# recovery of their own (of random images: 3 and 2 sets, on one and three networks), and SRe2L at
# CDA's batch size shares everything but the last stage.
SMALL = {
    "squeeze": 2,
    "recover": 15 + 30,
    "relabel": 24 + 10 + 5,
    "validate": 24 + 36 + 9,
    "table": 2,
}


# Table 1's five methods of matching at three IPCs; two of them follow a hundred experts, ten a job.
# Under their protocol random is a sixth, and without it they are under soft labels too.
MATCHING = {"expert": 10, "distill": 15, "relabel": SMALL["relabel"] + 18 + 15}
MATCHING |= {"validate": SMALL["validate"] + 18 + 15}
# At scale mini IPC 50 and 100 are IPC 10, one part of ten shards; of matching it has DM at IPC 1.
MINI = {"recover": 3 + 3, "relabel": 16 + 5 + 3 + 3, "validate": 3 * (16 + 6 + 3 + 3)}
MINI |= {"distill": 1}


@pytest.mark.parametrize(
    ("scale", "changes"), [("paper", MATCHING), ("mini", MINI), ("smoke", {}), ("demo", None)]
)
def test_every_scale_plans_its_jobs(scale, changes):
    folder = "results" if scale == "paper" else f"results/{scale}"
    narrowed = ["datasets=[cifar100,tiny_imagenet]", f"scale={scale}"]
    jobs = planned(
        snakemake("-n", "-F", f"{folder}/table1.csv", f"{folder}/table4.csv", "--config", *narrowed)
    )
    assert set(jobs) == set(SMALL | (changes or {}))
    if changes is not None:
        assert jobs == SMALL | changes


# Runs a program and prints its peak memory: this process has other children.
PEAK = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, "KiB")
sys.exit(code)
"""


def test_everything_the_paper_reports_is_planned_within_a_minute_and_two_gigabytes():
    start = time.monotonic()
    printed = snakemake("-n", "-F", "all", before=[sys.executable, "-c", PEAK, sys.executable])
    jobs = planned(printed)
    spent = time.monotonic() - start
    assert (jobs["table"], jobs["plot"], jobs["picture"]) == (
        17 + 1,
        5 + 1,
        5,
    )  # ours: label stores' sizes, β_l
    # Three scores of Table 9, four of Table 5; two methods in two numbers of steps; test images of
    # 1K and 21K.
    assert (jobs["score"], jobs["continual"], jobs["decode"], jobs["published"]) == (7, 4, 2, 3)
    assert spent < 60
    (peak,) = re.findall(r"^peak (\d+) KiB$", printed, re.MULTILINE)
    assert 50 * 1024 < int(peak) < 2 * 1024**2


def test_no_shard_is_computed_twice():
    printed = snakemake("-n", "-F", "all")
    parts = re.findall(r"output: (artifacts/recover/\S+)", printed)
    assert len(parts) > 400
    assert len(parts) == len(set(parts))


def test_a_dry_run_names_data_sets_without_a_part():
    printed = snakemake("-n", "results/mini/table4.csv", "--config", "scale=mini")
    assert "validate" in planned(printed)
    assert "cells cannot run: data set imagenet1k has no part in scale mini." in printed


def test_controls_are_a_switch():
    def trainings(table, controls):
        printed = snakemake("-n", "-F", f"results/{table}.csv", "--config", f"controls={controls}")
        return planned(printed)["validate"]

    assert (trainings("table1", "none"), trainings("table1", "default")) == (3, 27 + 33)
    assert (trainings("table3", "default"), trainings("table3", "all")) == (4, 4 + 1 + 4 + 1)


def test_narrowing_to_a_data_set_plans_only_its_cells():
    printed = snakemake("-n", "-F", "results/table4.csv", "--config", "datasets=[tiny_imagenet]")
    assert planned(printed)["validate"] == 42
    gpus = re.findall(r"^rule recover:\n(?:    .*\n)*?    resources: .*\bgpu=(\d)", printed, re.M)
    assert (gpus.count("1"), gpus.count("0")) == (20, 10)  # real images need no GPU


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["results/demo/demo.csv"],
            "demo/demo.csv is of scale demo, but this is scale paper; add --config scale=demo",
        ),
        (
            ["results/table77.csv"],
            "results/table77.csv: there is no table table77 (nearest: table7)",
        ),
        (
            ["--config", "scale=huge"],
            "config key scale: there is no scale 'huge'; use one of paper, demo, mini, smoke",
        ),
        (["--config", "datasets=[mnist]"], "config key datasets: 'mnist' is not declared"),
        (
            ["--config", "runtime={device: tpu}"],
            "the command line: runtime.device must be one of auto, cpu, cuda",
        ),
        (
            ["--config", "seed=3"],
            "the command line: seed is not a known key (nearest: seeds); use one of scale",
        ),
    ],
)
def test_a_mistake_on_the_command_line_ends_in_one_line(arguments, line):
    printed = snakemake("-n", *arguments, ok=False).strip().splitlines()
    assert printed[-1].startswith("cda: ")
    assert line in printed[-1]
    assert "Traceback" not in " ".join(printed)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"recovery_models": ["convnet2"]},
            "recovery model 'convnet2' has no BN layers to match; use one that has",
        ),
        (
            {"recovery_models": ["vgg16"]},
            "recovery model 'vgg16' has no BN layers to match; use one that has",
        ),
        ({"set": {"recover.milestone": 1.2}}, "config/experiments/tiny.yaml: recover.milestone "),
        (
            {"stage": "continual", "classes": [5, 10], "setting": "classes={}"},
            "config/recipes/digits.yaml: continual is",
        ),
        (
            {"vary": {"recover.min_crop": [0.1, 0.2]}},
            "config/experiments/tiny.yaml:11: groups.0 setting must hold {}",
        ),
    ],
)
def test_a_mistake_in_a_table_ends_in_one_line_before_any_work(
    change, line, tmp_path, config_tree, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config_tree().experiment("tiny", change)
    printed = snakemake("-n", "results/tiny.csv", cwd=tmp_path, ok=False).strip().splitlines()
    assert printed[-1].startswith(f"cda: {line}")
    assert "Traceback" not in " ".join(printed)


def test_a_dry_run_imports_neither_torch_nor_pandas():
    code = (
        "import sys, cda.pipeline.rules; cda.pipeline.rules.Plan({}, None); "
        "sys.exit(bool({'torch', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_profiles_share_no_key():
    """Snakemake lets the workflow's own profile win over the one that --profile names."""
    default, slurm = (
        yaml.safe_load(
            (ROOT / "workflow/profiles" / name / "config.yaml").read_text(encoding="utf-8")
        )
        for name in ("default", "slurm")
    )
    assert not set(default) & set(slurm)
    assert (ROOT / "slurm/config.yaml").samefile(ROOT / "workflow/profiles/slurm/config.yaml")


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_rules_are_short_and_hold_no_logic(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\blambda\b|\bconfig\[|\brun:|\bscript:", text)
    for rule in re.split(r"^(?=rule )", text, flags=re.MULTILINE)[1:]:
        body = rule.split("\n\n\n")[0].rstrip()
        assert len(body.splitlines()) <= 25, body.splitlines()[0]
