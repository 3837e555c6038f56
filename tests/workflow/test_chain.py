"""A small chain through Snakemake: what runs, what runs again, and what never does."""

from __future__ import annotations

import csv
import itertools
import json
import os
import random
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from tests.workflow.conftest import planned, snakemake

from cda.cli import main


def edit(folder, name, old, new):
    path = folder / "config" / name
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_chain_runs_from_squeeze_to_table(chain):
    folder, printed = chain
    table = (folder / "results/tiny.csv").read_text(encoding="utf-8").splitlines()
    measured = [line for line in table if ",measured,own," in line]
    assert len(measured) == 2
    assert "results/tiny.csv: 0 of 2 measurements done, " in printed
    assert not list(folder.glob("artifacts/work/*/*/*/*")), "work folders are gone after the work"


def test_a_second_call_makes_only_the_table(copy):
    printed = snakemake("--cores", "1", "results/tiny.csv", cwd=copy)
    assert planned(printed) == {"table": 1}
    assert "results/tiny.csv: 2 of 2 measurements done, nothing is computed." in printed


def test_a_table_needs_only_its_run_jsons(copy):
    before = (copy / "results/tiny.csv").read_bytes()
    for path in ("artifacts", "data", "results/tiny.csv", "results/tiny.md"):
        target = copy / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    printed = snakemake("--cores", "1", "results/tiny.csv", cwd=copy)
    assert planned(printed) == {"table": 1}
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
    printed = snakemake("-n", "results/tiny.csv", "--config", "runtime={cpu_threads: 2}", cwd=copy)
    assert planned(printed) == {"table": 1}


def test_another_limit_of_stored_labels_runs_nothing_again(copy):
    printed = snakemake(
        "-n", "results/tiny.csv", "--config", "labels={max_gb: 0.0000001}", cwd=copy
    )
    assert planned(printed) == {"table": 1}


def test_present_cells_plan_no_stage(copy):
    victim = next((copy / "results/runs").rglob("seed-0.json"))
    victim.unlink()
    printed = snakemake("--cores", "1", "results/tiny.csv", "--config", "cells=present", cwd=copy)
    assert planned(printed) == {"table": 1}
    table = (copy / "results/tiny.csv").read_text(encoding="utf-8")
    assert (table.count(",measured,own,"), table.count(",not_run,own,")) == (1, 1)


def test_present_cells_draw_no_picture_of_images_that_are_not_here(copy):
    about = (
        "{title: What, kind: grid, scales: [paper], groups: [{dataset: digits, methods: "
        "[cda, random], "
    )
    (copy / "config/experiments/seen.yaml").write_text(
        about + "recovery_models: [resnet18], ipc: [2]}]}\n"
    )
    printed = snakemake("-n", "figures", "--config", "cells=present", cwd=copy)
    assert planned(printed)["picture"] == 1
    shutil.rmtree(copy / "artifacts/recover")
    assert "picture" not in planned(
        snakemake("-n", "figures", "--config", "cells=present", cwd=copy)
    )


def test_a_lost_cell_is_computed_again_and_equal(copy):
    victim = next((copy / "results/runs").rglob("seed-0.json"))
    before = re.sub(r'"provenance".*', "", victim.read_text(encoding="utf-8"), flags=re.DOTALL)
    victim.unlink()
    printed = snakemake("--cores", "1", "results/tiny.csv", cwd=copy)
    assert planned(printed) == {"validate": 1, "table": 1}
    assert (
        re.sub(r'"provenance".*', "", victim.read_text(encoding="utf-8"), flags=re.DOTALL) == before
    )


@pytest.mark.parametrize("lost", ["artifacts/relabel", "artifacts/recover", "artifacts"])
def test_a_further_seed_makes_what_is_lost_and_no_measured_number_again(lost, copy):
    shutil.rmtree(copy / lost)
    printed = snakemake("-n", "results/tiny.csv", "--config", "seeds=2", cwd=copy)
    assert planned(printed)["validate"] == 2
    assert all("seed-1.json" in path for path in re.findall(r"output: (results/runs/\S+)", printed))
    for path in (copy / "artifacts").rglob("*"):
        path.touch()  # as if the first of two calls had made them
    assert planned(snakemake("-n", "results/tiny.csv", cwd=copy)) == {"table": 1}
    assert "validate" not in planned(snakemake("-n", "-f", "results/tiny.csv", cwd=copy))
    named = next((copy / "results/runs").rglob("seed-0.json")).relative_to(copy).as_posix()
    assert planned(snakemake("-n", "-f", named, cwd=copy))["validate"] == 1
    forced = planned(snakemake("-n", "-F", "results/tiny.csv", "--config", "seeds=2", cwd=copy))
    assert (forced["squeeze"], forced["relabel"], forced["validate"]) == (1, 2, 4)


def clone_of(folder):
    """The finished chain as a fresh clone has it: no records of Snakemake's."""
    for name in (".snakemake", "logs"):
        shutil.rmtree(folder / name)
    for stamp in folder.rglob(".snakemake_timestamp"):
        stamp.unlink()
    return folder


def set_times(folder, order):
    """Give every file and folder of artifacts and run JSONs a time, one second apart in `order`."""
    paths = [*(folder / "artifacts").rglob("*"), *(folder / "results/runs").rglob("*")]
    now = (folder / "config").stat().st_mtime
    for age, path in enumerate(order(sorted(paths))):
        os.utime(path, (now - age, now - age), follow_symlinks=False)


def inputs_last(paths):
    """The worst order: what a job reads is newer than what it wrote."""
    stages = ["squeeze", "recover", "relabel", "runs"]
    return sorted(paths, key=lambda path: [*(s in path.parts for s in stages), True].index(True))


def shuffled(seed):
    return lambda paths: random.Random(seed).sample(paths, len(paths))


ORDERS = {"inputs last": inputs_last, "random": shuffled(1)}
BROUGHT = ["", "squeeze", "recover", "relabel"]  # what is missing of what `dvc pull` brings


@pytest.mark.parametrize("missing", BROUGHT)
@pytest.mark.parametrize("order", ORDERS)
def test_whatever_order_a_pull_brings_files_in_it_plans_no_stage_it_brought(order, missing, copy):
    clone = clone_of(copy)
    set_times(clone, ORDERS[order])
    if missing:
        shutil.rmtree(clone / "artifacts" / missing)
    assert planned(snakemake("-n", "results/tiny.csv", cwd=clone)) == {"table": 1}
    more = planned(snakemake("-n", "results/tiny.csv", "--config", "seeds=2", cwd=clone))
    absent = {"squeeze": {}, "recover": {"recover": 2}, "relabel": {"relabel": 2}}.get(missing, {})
    assert more == absent | {"validate": 2, "table": 1}


@pytest.mark.parametrize("lost", ["squeeze", "relabel"])
def test_a_pulled_model_or_store_is_made_again_only_for_what_is_missing(lost, copy):
    clone = clone_of(copy)
    shutil.rmtree(clone / "artifacts" / lost)
    shutil.rmtree(clone / "artifacts/relabel", ignore_errors=True)
    victim = next((clone / "results/runs").glob("digits/curriculum*/seed-0.json"))
    victim.unlink()
    squeeze = {"squeeze": 1} if lost == "squeeze" else {}
    jobs = planned(snakemake("-n", "results/tiny.csv", cwd=clone))
    assert jobs == squeeze | {"relabel": 1, "validate": 1, "table": 1}


def test_forcing_everything_loses_no_run_json_before_its_successor_exists(copy):
    clone = clone_of(copy)
    shutil.rmtree(clone / "artifacts")
    jsons = sorted((clone / "results/runs").rglob("seed-0.json"))
    before = [json.loads(path.read_text()) for path in jsons]
    (clone / "data").rename(clone / "gone")  # squeeze fails
    snakemake("--cores", "1", "-F", "results/tiny.csv", cwd=clone, ok=False)
    assert [json.loads(path.read_text()) for path in jsons] == before
    (clone / "gone").rename(clone / "data")
    edit(clone, "config.yaml", "device: cpu", "device: cpu\n  blocks: 1")
    snakemake("--cores", "1", "-F", "results/tiny.csv", cwd=clone)
    for path, old in zip(jsons, before, strict=True):
        new = json.loads(path.read_text())
        assert new.pop("provenance") != old.pop("provenance")
        assert new == old


def test_a_forced_measurement_that_fails_leaves_the_old_one(copy):
    (copy / "data").rename(copy / "gone")  # validate tests on real images
    path = next((copy / "results/runs").rglob("seed-0.json"))
    before = path.read_bytes()
    target = path.relative_to(copy).as_posix()
    printed = snakemake("--cores", "1", "-f", target, cwd=copy, ok=False)
    assert "Error in rule validate" in printed
    assert path.read_bytes() == before


def test_a_model_trained_again_under_the_same_id_runs_nothing_else_again(copy):
    model = next((copy / "artifacts/squeeze").rglob("model.safetensors"))
    target = model.relative_to(copy).as_posix()
    assert planned(snakemake("-n", "-f", target, "results/tiny.csv", cwd=copy)) == {"squeeze": 1}
    model.touch()
    assert planned(snakemake("-n", "results/tiny.csv", cwd=copy)) == {"table": 1}


def test_a_failing_cell_leaves_the_others_and_prints_why(copy):
    for folder in ("results", "artifacts/relabel"):
        shutil.rmtree(copy / folder)
    shard = next((copy / "artifacts/recover/digits").glob("curriculum*/part-0/ipc-001.tar"))
    shard.write_bytes(shard.read_bytes()[:4000])
    printed = snakemake("--cores", "1", "results/tiny.csv", cwd=copy, ok=False)
    assert f"cda: {shard.relative_to(copy)}: " in printed
    assert len(list((copy / "results/runs").rglob("seed-0.json"))) == 1


@pytest.mark.parametrize("program", ["snakemake", "cda run"])
def test_a_lost_shard_is_made_again_and_its_part_stays(program, copy, monkeypatch):
    part = next((copy / "artifacts/recover/digits").glob("curriculum*/part-0"))
    shard, other = part / "ipc-000.tar", (part / "ipc-001.tar").stat()
    before = shard.read_bytes()
    shard.unlink()
    assert planned(snakemake("-n", "results/tiny.csv", cwd=copy)) == {"table": 1}
    for folder in ("artifacts/relabel", "results/runs"):
        shutil.rmtree(copy / folder)
    monkeypatch.chdir(copy)
    if program == "cda run":
        assert main(["run", "tiny"]) == 0
    else:
        jobs = planned(snakemake("--cores", "2", "results/tiny.csv", cwd=copy))
        assert jobs == {"complete_part": 1, "relabel": 2, "validate": 2, "table": 1}
    assert shard.read_bytes() == before
    assert (part / "ipc-001.tar").stat().st_mtime_ns == other.st_mtime_ns
    assert planned(snakemake("-n", "results/tiny.csv", cwd=copy)) == {"table": 1}


FLOWERS = """\
name: flowers
layout: image_folder
classes: 3
resolution: 16
mean: [0.5, 0.5, 0.5]
std: [0.25, 0.25, 0.25]
recipe: digits
compare_ipc: [1]
compare_methods: [cda, soft, random]
get: paint it
"""


def test_a_data_set_of_one_s_own_takes_one_file_and_no_code(tmp_path, config_tree, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = config_tree()
    tree.write("datasets/flowers.yaml", FLOWERS)
    tree.edit("recipes/digits.yaml", "  cda: {}", "  cda: {}\n  soft: {recover: {jitter: 2}}")
    tree.edit("config.yaml", "seeds: 2", "seeds: 1")
    draws = np.random.default_rng(0)
    for split, name in itertools.product(("train", "val"), ("daisy", "rose", "tulip")):
        folder = tmp_path / "data/flowers" / split / name
        folder.mkdir(parents=True)
        for index in range(4):
            Image.fromarray(draws.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(
                folder / f"{index}.jpg"
            )
    printed = snakemake("--cores", "2", "results/flowers.csv", cwd=tmp_path)
    assert planned(printed) == {
        "squeeze": 1,
        "recover": 3,
        "relabel": 6,
        "validate": 6,
        "table": 1,
    }
    with (tmp_path / "results/flowers.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["status"], row["seeds"]) for row in rows} == {("measured", "1")}
    assert {row["scale"] for row in rows} == {"own"}
    described = [json.loads(path.read_text()) for path in tmp_path.glob("results/runs/*/*/*.json")]
    assert {one["scale"] for one in described} == {"own"}
    assert [(row["method"], row["setting"]) for row in rows] == [
        ("cda", ""),
        ("soft", ""),
        ("random", ""),
        ("cda", "labels=hard"),
        ("soft", "labels=hard"),
        ("random", "labels=hard"),
    ]
    shards = {path: path.read_bytes() for path in tmp_path.rglob("ipc-*.tar")}
    assert {path.name for path in shards} == {"ipc-000.tar"}  # what IPC 1 reads
    tree.edit("datasets/flowers.yaml", "compare_ipc: [1]", "compare_ipc: [1, 3]")
    printed = snakemake("--cores", "2", "results/flowers.csv", cwd=tmp_path)
    assert planned(printed) == {"complete_part": 3, "relabel": 6, "validate": 6, "table": 1}
    assert len(list(tmp_path.rglob("ipc-*.tar"))) == 9
    assert {path: path.read_bytes() for path in shards} == shards


def test_matching_methods_run_and_lost_experts_and_shards_are_made_again(
    tmp_path, config_tree, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    tree = config_tree()
    tree.few_images()
    tree.trajectories()
    tree.edit("config.yaml", "seeds: 2", "seeds: 1")
    stages = {"distill": 2, "relabel": 2, "validate": 2, "table": 1}
    printed = snakemake("--cores", "2", "results/tiny.csv", cwd=tmp_path)
    assert planned(printed) == {"expert": 2, **stages}
    made = [*tmp_path.rglob("expert-*.safetensors"), *tmp_path.rglob("ipc-*.tar")]
    before = {path: path.read_bytes() for path in made}
    assert len(before) == 3 + 2 * 2
    for path in before:
        if path.name in ("expert-001.safetensors", "ipc-001.tar"):
            path.unlink()
    for folder in ("artifacts/relabel", "results/runs"):
        shutil.rmtree(folder)
    printed = snakemake("--cores", "2", "results/tiny.csv", cwd=tmp_path)
    assert planned(printed) == {"complete_part": 3, "relabel": 2, "validate": 2, "table": 1}
    assert {path: path.read_bytes() for path in made} == before
