"""`cda run`: the order of its jobs, its forecast, its budget, and what ends it."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from cda.errors import CdaError, ConfigError, Interrupted
from cda.experiments.runs import MEASURING
from cda.pipeline import local
from cda.pipeline.local import (
    GRACE,
    START,
    Budget,
    command,
    forecast,
    ordered_jobs,
    processes_of,
    run_tables,
)
from cda.pipeline.rates import rates_of

MAKE = """
import pathlib, sys
for path in map(pathlib.Path, sys.argv[1:]):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}\\n") if path.suffix else path.mkdir(exist_ok=True)
    path.with_name("squeeze.json").touch()
"""
FAIL = "raise SystemExit(3)"
SAVE = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); time.sleep(60)"


@pytest.fixture
def programs(monkeypatch):
    """Replace stages by small programs, by stage; a stage that is not named makes its output."""
    chosen: dict[str, str] = {}

    def command(jobs):
        code = chosen.get(jobs[0].run.stage, MAKE)
        outputs = [path for job in jobs for path in (job.files.values() or [job.output])]
        return [sys.executable, "-c", code, *outputs]

    monkeypatch.setattr(local, "command", command)
    return chosen


def run(tree, *targets, **options):
    overrides = options.pop("overrides", {})
    experiments = tree.experiments(**overrides)
    rates = rates_of(tree.folder, "cpu")
    run_tables(experiments, overrides, targets or ("tiny",), rates, **options)


def test_the_first_seed_of_everything_comes_before_the_second_of_anything(tree):
    tree.experiment("other", {"methods": ["random"], "ipc": [4]})
    jobs = ordered_jobs(tree.experiments(), ["tiny", "other"])
    measuring = [job for job in jobs if job.run.stage in MEASURING]
    assert [job.index for job in measuring] == sorted(job.index for job in measuring)
    first = [job.run.ipc for job in measuring if job.index == 0]
    assert first == [1, 1, 1, 2, 2, 2, 4]  # in the order of the targets, then of their cells
    assert [job.run.ipc for job in ordered_jobs(tree.experiments(), ["other", "tiny"])][-1] == 2


def test_a_run_s_validation_seeds_after_the_first_share_a_process(tree):
    jobs = [job for job in ordered_jobs(tree.experiments(seeds=4), ["tiny"]) if job.run.ipc == 1]
    validate = [p for p in processes_of(jobs) if p[0].run.stage == "validate"]
    assert [[job.index for job in process] for process in validate] == [[0]] * 3 + [[1, 2, 3]] * 3
    alone, together = validate[0], validate[3]
    assert [job.run.id for job in together] == [alone[0].run.id] * 3
    run = ["validate", "--run", alone[0].run.id]
    assert command(alone)[3:] == [*run, "--seed", "0"]
    assert command(together)[3:] == [*run, "--seeds", "1", "2", "3"]


def test_only_a_process_s_first_job_pays_its_start(tree, capsys):
    tree.experiment("tiny", {"methods": ["random"], "ipc": [1]})
    run(tree, overrides={"seeds": 4}, dry=True)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("validate")]
    seconds = [re.search(r"--seed \d +(\S+) s ", row)[1] for row in rows]
    assert float(seconds[0]) == float(seconds[1]) >= START
    assert float(seconds[2]) == float(seconds[3]) == pytest.approx(float(seconds[0]) - START, 0.1)


def test_jobs_run_until_nothing_is_missing(tree, programs, capsys):
    run(tree, overrides={"seeds": 1})
    printed = capsys.readouterr().out
    assert "jobs finish.\n" in printed
    assert printed.endswith("jobs finished, nothing is missing.\n")
    assert ordered_jobs(tree.experiments(seeds=1), ["tiny"]) == []
    run(tree, overrides={"seeds": 1})
    assert capsys.readouterr().out == "tiny: nothing is missing.\n"


def test_a_dry_run_starts_nothing(tree, programs, capsys):
    run(tree, dry=True)
    assert "squeeze digits resnet18-" in capsys.readouterr().out
    assert not Path("artifacts").exists()


@pytest.mark.parametrize(
    ("load", "threads", "warned"), [(9, 2, True), (9, 1, False), (0, 2, False)]
)
def test_a_busy_machine_is_named_with_the_number_of_threads_to_choose(
    load, threads, warned, tree, monkeypatch, capsys
):
    monkeypatch.setattr(local.os, "getloadavg", lambda: (float(load), 0.0, 0.0))
    monkeypatch.setattr(local.os, "cpu_count", lambda: 2)
    run(tree, dry=True, overrides={"runtime.cpu_threads": threads})
    assert ("The load is 9.0 on 2 cores" in capsys.readouterr().err) == warned


def test_a_failed_job_costs_those_that_read_its_output_and_no_other(tree, programs, capsys):
    programs["squeeze"] = FAIL
    with pytest.raises(CdaError, match=r"^failed: squeeze digits .* \(exit status 3\); .* skipped"):
        run(tree, overrides={"seeds": 1})
    left = ordered_jobs(tree.experiments(seeds=1), ["tiny"])
    assert {job.run.stage for job in left} == {"squeeze", "recover", "relabel", "validate"}
    real = [job for job in left if "random" in job.run.slug]
    assert not [job for job in real if job.run.stage == "recover"]  # real images need no model


def test_a_signal_makes_the_running_job_save_and_ends_the_call(tree, programs, capsys):
    programs["recover"] = SAVE
    threading.Thread(
        target=lambda: (time.sleep(2), os.kill(os.getpid(), signal.SIGTERM)), daemon=True
    ).start()
    with pytest.raises(Interrupted, match="stopped by SIGTERM; all work is saved") as stopped:
        run(tree, overrides={"seeds": 1})
    assert stopped.value.number == signal.SIGTERM
    assert "Interrupted, the next call continues it: recover digits" in capsys.readouterr().out


def test_a_budget_ends_the_running_job_and_starts_no_other(tree, programs, monkeypatch, capsys):
    monkeypatch.setattr(local, "GRACE", 1.0)
    monkeypatch.setattr(local, "START", 0.1)
    programs["relabel"] = SAVE
    began = time.monotonic()
    run(tree, overrides={"seeds": 1}, minutes=4 / 60)
    assert time.monotonic() - began < 20
    assert "Interrupted, the next call continues it: relabel digits" in capsys.readouterr().out
    assert not list(Path("results").rglob("seed-0.json"))


def test_a_job_that_could_not_save_is_not_started():
    budget = Budget(began=time.monotonic(), seconds=120)
    assert budget.allows(expected=3600, used=60)
    assert not budget.allows(expected=3600, used=120 - GRACE - START)
    assert budget.allows(expected=2, used=90)


def test_the_forecast_lists_what_finishes_begins_and_waits(tree):
    jobs = ordered_jobs(tree.experiments(), ["tiny"])
    seconds = dict.fromkeys(jobs, 40.0)
    page = forecast(jobs, seconds, Budget(time.monotonic(), 130)).splitlines()
    fates = [line.split()[-1] for line in page[1 : 1 + local.LISTED]]
    assert fates[:4] == ["finishes", "finishes", "begins", "waits"]
    assert set(fates[4:]) == {"waits"}
    assert page[-1] == f"Expected in 2.2 min: 2 of {len(jobs)} jobs finish."


FIRST = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('{}')"


@pytest.mark.parametrize("ending", ["budget", "signal"])
def test_a_stopped_process_of_several_seeds_leaves_the_unfinished_ones(
    ending, tree, programs, monkeypatch, capsys
):
    tree.experiment("tiny", {"methods": ["random"], "ipc": [1]})
    run(tree, overrides={"seeds": 1})
    monkeypatch.setattr(local, "GRACE", 1.0)
    monkeypatch.setattr(local, "START", 0.1)
    programs["validate"] = f"{FIRST}; {SAVE}"
    options = {"overrides": {"seeds": 4}}
    if ending == "budget":
        run(tree, **options, minutes=3 / 60)
    else:
        stop = threading.Timer(2, os.kill, (os.getpid(), signal.SIGTERM))
        stop.start()
        with pytest.raises(Interrupted):
            run(tree, **options)
    printed = capsys.readouterr().out
    assert "1 jobs finished; 2 left" in printed
    assert re.search(r"the next call continues it: validate digits \S+ --seed 2\n", printed)
    left = ordered_jobs(tree.experiments(seeds=4), ["tiny"])
    assert [job.index for job in left] == [2, 3]
    del programs["validate"]
    run(tree, **options)
    assert ordered_jobs(tree.experiments(seeds=4), ["tiny"]) == []


def test_a_failed_process_of_several_seeds_costs_those_it_did_not_make(tree, programs):
    tree.experiment("tiny", {"methods": ["random"], "ipc": [1]})
    run(tree, overrides={"seeds": 1})
    programs["validate"] = f"{FIRST}; {FAIL}"
    with pytest.raises(CdaError) as failed:
        run(tree, overrides={"seeds": 4})
    assert re.findall(r"--seed (\d) \(exit status 3\)", str(failed.value)) == ["2", "3"]


@pytest.mark.parametrize("minutes", [0.1, 0, -1])
def test_too_few_minutes_are_refused(tree, minutes):
    with pytest.raises(ConfigError, match=rf"^--minutes {minutes:g}: too few, the last 20 s are"):
        run(tree, minutes=minutes)


def test_a_data_set_that_is_not_here_ends_before_the_first_job(tree, capsys):
    tree.edit("datasets/digits.yaml", "layout: digits", "layout: image_folder")
    assert tree.cda("run", "tiny", "-n") == 0
    capsys.readouterr()
    assert tree.cda("run", "tiny") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "cda: data/digits: data set digits is not here; scikit-learn ships it, or point config key "
        "data_paths.digits at it"
    )
