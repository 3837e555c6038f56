"""The workflow as people use it.

Snakemake as a process of its own, on a `config/` folder of the test's.
"""

import csv
import itertools
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "workflow" / "rules").glob("*.smk"))


def snakemake(*arguments, cwd=ROOT, ok=True):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("CDA_CONFIG", None)
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "-s",
        str(ROOT / "workflow" / "Snakefile"),
        *arguments,
    ]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    told = done.stdout + done.stderr
    assert (done.returncode == 0) == ok, told
    return told


def planned(told):
    """Jobs per rule of a dry run."""
    table = re.search(
        r"^Job stats:\njob +count\n[- ]+\n(.*?)^total", told, re.MULTILINE | re.DOTALL
    )
    return (
        {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)", table[1], re.MULTILINE)}
        if table
        else {}
    )


# Table 1: cda, sre2l and random at IPC 50 (5 parts each) under two augmentations, and hard labels.
# Table 4 on Tiny-ImageNet: sre2l, cda, random at IPC 100 (10 parts each). Hard labels need no
# recovery of their own, and SRe2L at CDA's batch size shares everything but the last stage.
SMALL = {
    "squeeze": 2,
    "recover": 15 + 30,
    "relabel": 21 + 10,
    "validate": 21 + 36,
    "table": 2,
}


# At scale mini IPC 50 and 100 are IPC 10, one part of ten shards.
MINI = {"recover": 3 + 3, "relabel": 14 + 5, "validate": 3 * (14 + 6)}


@pytest.mark.parametrize(
    ("scale", "changes"), [("paper", {}), ("mini", MINI), ("smoke", {}), ("demo", None)]
)
def test_every_scale_plans_its_jobs(scale, changes):
    folder = "results" if scale == "paper" else f"results/{scale}"
    narrowed = ["datasets=[cifar100,tiny_imagenet]", f"scale={scale}"]
    jobs = planned(
        snakemake("-n", "-F", f"{folder}/table1.csv", f"{folder}/table4.csv", "--config", *narrowed)
    )
    assert set(jobs) == set(SMALL)
    if changes is not None:
        assert jobs == SMALL | changes


def test_everything_the_paper_reports_is_planned_within_a_minute_and_two_gigabytes():
    start = time.monotonic()
    jobs = planned(snakemake("-n", "-F", "all"))
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
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2 * 1024**2  # in KiB


def test_no_shard_is_computed_twice():
    told = snakemake("-n", "-F", "all")
    parts = re.findall(r"output: (artifacts/recover/\S+)", told)
    assert len(parts) > 400
    assert len(parts) == len(set(parts))


def test_a_dry_run_says_which_data_sets_have_no_part():
    told = snakemake("-n", "results/mini/table4.csv", "--config", "scale=mini")
    assert "validate" in planned(told)
    assert "Not run: data set imagenet1k has no part in scale mini." in told


def test_controls_are_a_switch():
    def asked(table, controls):
        told = snakemake("-n", "-F", f"results/{table}.csv", "--config", f"controls={controls}")
        return planned(told)["validate"]

    assert (asked("table1", "none"), asked("table1", "default")) == (3, 21)
    assert (asked("table3", "default"), asked("table3", "all")) == (4, 4 + 1 + 4)


def test_narrowing_to_a_data_set_plans_only_its_cells():
    told = snakemake("-n", "-F", "results/table4.csv", "--config", "datasets=[tiny_imagenet]")
    assert planned(told)["validate"] == 36
    gpus = re.findall(r"^rule recover:\n(?:    .*\n)*?    resources: .*\bgpu=(\d)", told, re.M)
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
            "results/table77.csv: there is no table table77; use one of",
        ),
        (
            ["--config", "scale=huge"],
            "config key scale: there is no scale 'huge'; use one of paper, demo, mini, smoke",
        ),
        (["--config", "datasets=[mnist]"], "config key datasets: 'mnist' is not declared"),
        (
            ["--config", "runtime={device: tpu}"],
            "the command line: runtime.device input should be 'auto', 'cpu' or 'cuda'",
        ),
        (
            ["--config", "seed=3"],
            "the command line: seed is not a known key; use one of scale, seeds",
        ),
    ],
)
def test_a_mistake_on_the_command_line_ends_in_one_line(arguments, line):
    told = snakemake("-n", *arguments, ok=False).strip().splitlines()
    assert told[-1].startswith("cda: ")
    assert line in told[-1]
    assert "Traceback" not in " ".join(told)


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
    told = snakemake("-n", "results/tiny.csv", cwd=tmp_path, ok=False).strip().splitlines()
    assert told[-1].startswith(f"cda: {line}")
    assert "Traceback" not in " ".join(told)


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


@pytest.fixture(scope="module")
def chain(tmp_path_factory, config_tree):
    """A small chain, run once from squeeze to table."""
    folder = tmp_path_factory.mktemp("chain")
    before = Path.cwd()
    os.chdir(folder)
    try:
        tree = config_tree()
        tree.few_images()
        tree.experiment("tiny", {"methods": ["cda", "random"], "ipc": [2]})
        tree.edit("config.yaml", "seeds: 2", "seeds: 1")
    finally:
        os.chdir(before)
    told = snakemake("--cores", "2", "results/tiny.csv", cwd=folder)
    return folder, told


@pytest.fixture
def copy(chain, tmp_path):
    """The finished chain, to change at will, with the files' times kept."""
    target = tmp_path / "copy"
    shutil.copytree(chain[0], target)
    return target


def edit(folder, name, old, new):
    path = folder / "config" / name
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_chain_runs_from_squeeze_to_table(chain):
    folder, told = chain
    table = (folder / "results/tiny.csv").read_text(encoding="utf-8").splitlines()
    measured = [line for line in table if ",measured,paper," in line]
    assert len(measured) == 2
    assert "Scale paper: 2 measurements in its tables, 0 done." in told
    assert not list(folder.glob("artifacts/work/*/*/*/*")), "work folders are gone after the work"


def test_a_second_call_makes_only_the_table(copy):
    told = snakemake("--cores", "1", "results/tiny.csv", cwd=copy)
    assert planned(told) == {"table": 1}
    assert "all done, nothing is computed again" in told


def test_a_table_needs_only_its_run_jsons(copy):
    before = (copy / "results/tiny.csv").read_bytes()
    for path in ("artifacts", "data", "results/tiny.csv", "results/tiny.md"):
        target = copy / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    told = snakemake("--cores", "1", "results/tiny.csv", cwd=copy)
    assert planned(told) == {"table": 1}
    assert (copy / "results/tiny.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new", "jobs"),
    [
        ("lr: 2.0e-3 ", "lr: 3.0e-3 ", {"validate": 2}),
        ("temperature: 4.0", "temperature: 5.0", {"validate": 2}),
        ("iterations: 6 ", "iterations: 7 ", {"recover": 1, "relabel": 1, "validate": 1}),
        ("lr: 0.1 ", "lr: 0.2 ", {"squeeze": 1, "recover": 1, "relabel": 2, "validate": 2}),
        ("crop_scale: [0.4, 1.0]", "crop_scale: [0.5, 1.0]", {"relabel": 2, "validate": 2}),
        ("warmup_epochs: 1 ", "evaluate_every: 2\n  warmup_epochs: 1 ", {}),
    ],
)
def test_a_changed_value_runs_again_what_depends_on_it(copy, old, new, jobs):
    edit(copy, "recipes/digits.yaml", old, new)
    assert planned(snakemake("-n", "results/tiny.csv", cwd=copy)) == jobs | {"table": 1}


def test_changed_code_or_runtime_runs_nothing_again(copy):
    edit(copy, "config.yaml", "device: cpu", "device: auto")
    told = snakemake("-n", "results/tiny.csv", "--config", "runtime={cpu_threads: 2}", cwd=copy)
    assert planned(told) == {"table": 1}


def test_another_limit_of_stored_labels_runs_nothing_again(copy):
    told = snakemake("-n", "results/tiny.csv", "--config", "labels={max_gb: 0.0000001}", cwd=copy)
    assert planned(told) == {"table": 1}


def test_present_cells_plan_no_stage(copy):
    victim = next((copy / "results/runs").rglob("seed-0.json"))
    victim.unlink()
    told = snakemake("--cores", "1", "results/tiny.csv", "--config", "cells=present", cwd=copy)
    assert planned(told) == {"table": 1}
    table = (copy / "results/tiny.csv").read_text(encoding="utf-8")
    assert (table.count(",measured,paper,"), table.count(",not_run,paper,")) == (1, 1)


def test_present_cells_draw_no_picture_of_images_that_are_not_here(copy):
    about = (
        "{title: What, kind: grid, scales: [paper], groups: [{dataset: digits, methods: "
        "[cda, random], "
    )
    (copy / "config/experiments/seen.yaml").write_text(
        about + "recovery_models: [resnet18], ipc: [2]}]}\n"
    )
    told = snakemake("-n", "figures", "--config", "cells=present", cwd=copy)
    assert planned(told)["picture"] == 1
    shutil.rmtree(copy / "artifacts/recover")
    assert "picture" not in planned(
        snakemake("-n", "figures", "--config", "cells=present", cwd=copy)
    )


def test_a_lost_cell_is_computed_again_and_equal(copy):
    victim = next((copy / "results/runs").rglob("seed-0.json"))
    before = re.sub(r'"provenance".*', "", victim.read_text(encoding="utf-8"), flags=re.DOTALL)
    victim.unlink()
    told = snakemake("--cores", "1", "results/tiny.csv", cwd=copy)
    assert planned(told) == {"validate": 1, "table": 1}
    assert (
        re.sub(r'"provenance".*', "", victim.read_text(encoding="utf-8"), flags=re.DOTALL) == before
    )


@pytest.mark.parametrize("lost", ["artifacts/relabel", "artifacts/recover", "artifacts"])
def test_a_further_seed_makes_what_is_lost_and_no_measured_number_again(lost, copy):
    shutil.rmtree(copy / lost)
    told = snakemake("-n", "results/tiny.csv", "--config", "seeds=2", cwd=copy)
    assert planned(told)["validate"] == 2
    assert all("seed-1.json" in path for path in re.findall(r"output: (results/runs/\S+)", told))
    for path in (copy / "artifacts").rglob("*"):
        path.touch()  # as if the first of two calls had made them
    assert planned(snakemake("-n", "results/tiny.csv", cwd=copy)) == {"table": 1}
    assert "validate" not in planned(snakemake("-n", "-f", "results/tiny.csv", cwd=copy))
    named = next((copy / "results/runs").rglob("seed-0.json")).relative_to(copy).as_posix()
    assert planned(snakemake("-n", "-f", named, cwd=copy))["validate"] == 1
    forced = planned(snakemake("-n", "-F", "results/tiny.csv", "--config", "seeds=2", cwd=copy))
    assert (forced["squeeze"], forced["relabel"], forced["validate"]) == (1, 2, 4)


def test_a_failing_cell_leaves_the_others_and_says_why(copy):
    for folder in ("results", "artifacts/relabel"):
        shutil.rmtree(copy / folder)
    shard = next((copy / "artifacts/recover/digits").glob("curriculum*/part-0/ipc-001.tar"))
    shard.write_bytes(shard.read_bytes()[:4000])
    told = snakemake("--cores", "1", "results/tiny.csv", cwd=copy, ok=False)
    assert f"cda: {shard.relative_to(copy)}: " in told
    assert len(list((copy / "results/runs").rglob("seed-0.json"))) == 1


FLOWERS = """\
name: flowers
layout: image_folder
classes: 3
resolution: 16
mean: [0.5, 0.5, 0.5]
std: [0.25, 0.25, 0.25]
shards_per_job: 1
recipe: digits
compare_ipc: [1]
get: paint it
"""


def test_a_data_set_of_one_s_own_takes_one_file_and_no_code(tmp_path, config_tree, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = config_tree()
    tree.write("datasets/flowers.yaml", FLOWERS)
    tree.edit("config.yaml", "seeds: 2", "seeds: 1")
    draws = np.random.default_rng(0)
    for split, name in itertools.product(("train", "val"), ("daisy", "rose", "tulip")):
        folder = tmp_path / "data/flowers" / split / name
        folder.mkdir(parents=True)
        for index in range(4):
            Image.fromarray(draws.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(
                folder / f"{index}.jpg"
            )
    told = snakemake("--cores", "2", "results/flowers.csv", cwd=tmp_path)
    assert planned(told) == {
        "squeeze": 1,
        "recover": 3,
        "relabel": 5,
        "validate": 5,
        "table": 1,
    }
    with (tmp_path / "results/flowers.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["status"], row["seeds"]) for row in rows} == {("measured", "1")}
    assert [(row["method"], row["setting"]) for row in rows] == [
        ("cda", ""),
        ("sre2l", ""),
        ("random", ""),
        ("cda", "labels=hard"),
        ("sre2l", "labels=hard"),
    ]
