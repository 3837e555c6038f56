"""The workflow as people use it: snakemake as a process of its own, on a `config/` folder of the test's."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "workflow" / "rules").glob("*.smk"))


def snakemake(*arguments, cwd=ROOT, ok=True):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("CDA_CONFIG", None)
    command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "workflow" / "Snakefile"), *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    told = done.stdout + done.stderr
    assert (done.returncode == 0) == ok, told
    return told


def planned(told):
    """Jobs per rule of a dry run."""
    table = re.search(r"^Job stats:\njob +count\n[- ]+\n(.*?)^total", told, re.MULTILINE | re.DOTALL)
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)", table[1], re.MULTILINE)} if table else {}


@pytest.mark.parametrize("scale", ["paper", "mini", "smoke"])
def test_every_declared_table_resolves(scale):
    folder = "results" if scale == "paper" else f"results/{scale}"
    jobs = planned(snakemake("-n", f"{folder}/table1.csv", f"{folder}/table4.csv", "--config", f"scale={scale}"))
    seeds = 3 if scale == "mini" else 1
    # Table 1: cda and random at IPC 50 (5 parts each); Table 4: sre2l, cda and random at IPC 100 (10 parts each).
    # Hard labels need no recovery of their own, and SRe2L at CDA's batch size shares everything but the last stage.
    expected = {"squeeze": 2, "recover": 10 + 30, "relabel": 9 + 8, "validate": seeds * (9 + 30), "table": 2}
    if set(jobs) == set(expected):  # what a developer's own runs have made already is not planned again
        assert all(jobs[rule] <= expected[rule] for rule in expected)
    clean = snakemake("-n", "-F", f"{folder}/table1.csv", f"{folder}/table4.csv", "--config", f"scale={scale}")
    assert planned(clean) == expected


def test_a_dry_run_says_which_data_sets_are_not_declared():
    told = snakemake("-n", "results/table4.csv")
    assert "validate" in planned(told)
    assert "Not run: data set imagenet1k is not declared in config/datasets/." in told


def test_narrowing_to_a_data_set_plans_only_its_cells():
    told = snakemake("-n", "-F", "results/table4.csv", "--config", "datasets=[tiny_imagenet]")
    assert planned(told)["validate"] == 30


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["results/demo/demo.csv"],
            "demo/demo.csv is of scale demo, but this is scale paper; add --config scale=demo",
        ),
        (
            ["results/table77.csv"],
            "results/table77.csv: there is no table table77 at scale paper; there is",
        ),
        (["--config", "scale=huge"], "config key scale: there is no scale 'huge'; use one of paper, demo, mini, smoke"),
        (["--config", "datasets=[mnist]"], "config key datasets: 'mnist' is not declared"),
        (
            ["--config", "runtime={device: tpu}"],
            "the command line: runtime.device input should be 'auto', 'cpu' or 'cuda'",
        ),
        (["--config", "seed=3"], "the command line: seed is not a known key; use one of scale, seeds"),
    ],
)
def test_a_mistake_on_the_command_line_ends_in_one_line(arguments, line):
    told = snakemake("-n", *arguments, ok=False).strip().splitlines()
    assert told[-1].startswith("cda: ")
    assert line in told[-1]
    assert "Traceback" not in " ".join(told)


def test_a_dry_run_imports_neither_torch_nor_pandas():
    code = "import sys, cda.workflow; cda.workflow.Plan({}); sys.exit(bool({'torch', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


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
    assert "measurements of all its tables: 0 of 2 done" in told
    assert not list(folder.glob("artifacts/work/*/*/*/*")), "work folders are gone after the work"


def test_a_second_call_makes_only_the_table(copy):
    told = snakemake("--cores", "1", "results/tiny.csv", cwd=copy)
    assert planned(told) == {"table": 1}
    assert "all done already: nothing is computed again" in told


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


def test_present_cells_plan_no_stage(copy):
    victim = next((copy / "results/runs").rglob("seed-0.json"))
    victim.unlink()
    told = snakemake("--cores", "1", "results/tiny.csv", "--config", "cells=present", cwd=copy)
    assert planned(told) == {"table": 1}
    table = (copy / "results/tiny.csv").read_text(encoding="utf-8")
    assert (table.count(",measured,paper,"), table.count(",not_run,paper,")) == (1, 1)


def test_a_lost_cell_is_computed_again_and_equal(copy):
    victim = next((copy / "results/runs").rglob("seed-0.json"))
    before = re.sub(r'"provenance".*', "", victim.read_text(encoding="utf-8"), flags=re.DOTALL)
    victim.unlink()
    told = snakemake("--cores", "1", "results/tiny.csv", cwd=copy)
    assert planned(told) == {"validate": 1, "table": 1}
    assert re.sub(r'"provenance".*', "", victim.read_text(encoding="utf-8"), flags=re.DOTALL) == before


def test_a_failing_cell_leaves_the_others_and_says_why(copy):
    for folder in ("results", "artifacts/relabel"):
        shutil.rmtree(copy / folder)
    shard = next((copy / "artifacts/recover/digits").glob("curriculum*/part-0/ipc-001.tar"))
    shard.write_bytes(shard.read_bytes()[:4000])
    told = snakemake("--cores", "1", "results/tiny.csv", cwd=copy, ok=False)
    assert f"cda: {shard.relative_to(copy)}: " in told
    assert len(list((copy / "results/runs").rglob("seed-0.json"))) == 1


def test_a_dry_run_of_the_paper_takes_seconds():
    start = time.monotonic()
    snakemake("-n", "results/table1.csv", "results/table4.csv")
    assert time.monotonic() - start < 60
