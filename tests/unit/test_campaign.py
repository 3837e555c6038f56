"""The campaign: which jobs in which order, what is expected of a slice, and what ends one.

Stages are small scripts.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cda.campaign import slices, times
from cda.campaign.jobs import CONTROLS, Job, Stretch, jobs_of, measured, stretches
from cda.campaign.page import Page, clock
from cda.campaign.slices import Budget, Runner
from cda.campaign.steps import cells_of, read_campaign
from cda.campaign.times import START, Times, kind_of
from cda.config.load import load_settings
from cda.errors import ConfigError
from cda.experiments.experiment_set import ExperimentSet
from cda.experiments.runs import MEASURING
from cda.pipeline.estimate import works_of

ROOT = Path(__file__).parents[2]
TABLES = ["table1", "table4", "table11", "table13", "table14", "table15"]


def declared(**overrides) -> ExperimentSet:
    return ExperimentSet(load_settings(overrides, ROOT / "config"), ROOT / "config")


def planned(experiments: ExperimentSet, every: bool = False) -> list[Job]:
    return jobs_of(experiments, stretches(experiments, read_campaign(experiments.config)), every)


@pytest.fixture(scope="module")
def paper() -> ExperimentSet:
    return declared()


@pytest.fixture(autouse=True)
def _where_nothing_is_done(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def steps(tree) -> Callable[..., list[Stretch]]:
    """Write `config/campaign.yaml` and read it again."""

    def write(*told: dict, **overrides) -> list[Stretch]:
        tree.write("campaign.yaml", yaml.safe_dump({"steps": list(told) or [{"table": "tiny"}]}))
        return stretches(tree.experiments(**overrides), read_campaign(tree.folder))

    return write


# The order
# ------------------------------------------------------------------------------------------------------------


def test_the_paper_s_campaign_has_its_63_cells(paper):
    found = stretches(paper, read_campaign(paper.config))
    own = [cell for stretch in found if not stretch.control for cell in stretch.cells]
    assert len({id(cell) for cell in own}) == len(own) == 63
    assert all(cell.reported and not cell.control for cell in own)
    assert [stretch.control for stretch in found] == [False] * 7 + [True]
    assert all(cell.control for cell in found[-1].cells)


def test_it_begins_with_what_cifar_100_needs(paper):
    first = [
        (job.run.stage, job.run.dataset, job.run.ipc, job.index) for job in planned(paper)[:12]
    ]
    assert first == [
        ("squeeze", "cifar100", 0, 0),
        ("recover", "cifar100", 0, 0),
        ("relabel", "cifar100", 10, 0),
        ("validate", "cifar100", 10, 0),
        *(("recover", "cifar100", 0, part) for part in (1, 2, 3, 4)),
        ("relabel", "cifar100", 50, 0),
        ("validate", "cifar100", 50, 0),
        ("relabel", "cifar100", 1, 0),
        ("validate", "cifar100", 1, 0),
    ]


def test_then_tiny_imagenet_with_its_networks_from_small_to_large_and_the_controls_last(paper):
    jobs = planned(paper)
    order = list(dict.fromkeys(job.stretch.split()[0] for job in jobs if job.stretch != CONTROLS))
    assert order == ["table1", "table11", "table4", "table13", "table14", "table15"]
    told = [
        (job.run.model, job.run.ipc)
        for job in jobs
        if job.stretch.startswith("table4") and job.run.model
    ]
    ours = [("resnet18", 50)] * 2 + [("resnet18", 100)] * 2
    larger = [(name, ipc) for name in ("resnet50", "resnet101") for ipc in (50, 50, 100, 100)]
    assert told == [("resnet18", 0), *ours, *larger]
    last = [job.stretch for job in jobs]
    assert set(last[last.index(CONTROLS) :]) == {CONTROLS}


def test_what_a_job_reads_comes_before_it_and_no_job_comes_twice(paper):
    seen: set[str] = set()
    for job in planned(paper):
        assert seen.issuperset(job.needs)
        assert job.output not in seen
        seen.add(job.output)


def test_the_first_seed_of_everything_comes_before_the_second_of_anything():
    jobs = planned(declared(seeds=3))
    measuring = [job for job in jobs if job.run.stage in MEASURING]
    assert [job.index for job in measuring] == sorted(job.index for job in measuring)
    assert {job.run.stage for job in jobs[jobs.index(measuring[0]) :] if job.index == 2} > {
        "validate"
    }
    second = next(
        index for index, job in enumerate(jobs) if job.run.stage in MEASURING and job.index == 1
    )
    assert {job.run.stage for job in jobs[second:]} == {"validate", "continual"}
    assert jobs[second - 1].stretch == CONTROLS


def test_its_jobs_are_those_of_the_tables_it_names():
    both = declared(datasets=["cifar100", "tiny_imagenet"])
    works = works_of(both, TABLES)
    assert {job.output for job in planned(both)} == {
        path for work in works for path in work.outputs
    }


def test_what_only_finished_measurements_read_is_not_made_again(tree, steps):
    found, experiments = steps({"table": "tiny", "methods": ["cda"]}), tree.experiments()
    every = {job.output for job in jobs_of(experiments, found, every=True)}
    assert {job.output for job in jobs_of(experiments, found)} == every
    for kind, ipc in (("validate", 1), ("relabel", 2)):
        run = tree.runs(ipc=ipc)[kind]
        paths = [
            job.output for job in jobs_of(experiments, found, every=True) if job.run.id == run.id
        ]
        for path in paths:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).touch()
    left = [(job.run.stage, job.run.ipc, job.index) for job in jobs_of(experiments, found)]
    assert left == [("squeeze", 0, 0), ("recover", 0, 0), ("validate", 2, 0), ("validate", 2, 1)]


def test_a_squeezed_model_without_its_description_is_made_again(tree, steps):
    found = steps()
    model = Path(tree.experiments().layout.model(tree.runs()["squeeze"]))
    model.parent.mkdir(parents=True)
    model.touch()
    assert jobs_of(tree.experiments(), found)[0].output == str(model)
    model.with_name("squeeze.json").touch()
    assert jobs_of(tree.experiments(), found)[0].run.stage == "recover"


# The steps
# ------------------------------------------------------------------------------------------------------------


def test_filters_narrow_and_order_the_cells(tree, steps):
    (own,) = steps({"table": "tiny", "ipc": [2, 1], "methods": ["random", "cda"]})
    assert [(cell.key["ipc"], cell.key["method"]) for cell in own.cells] == [
        (2, "random"), (2, "cda"), (1, "random"), (1, "cda")
    ]  # fmt: skip
    assert own.title == "tiny random cda IPC 2, 1"


def test_a_cell_that_two_steps_ask_for_is_the_first_one_s(steps):
    first, second = steps({"table": "tiny", "ipc": [2]}, {"table": "tiny"})
    assert [cell.key["ipc"] for cell in first.cells + second.cells] == [2, 2, 2, 1, 1, 1]


def test_filters_name_what_the_tables_declare_at_every_scale(paper):
    campaign = read_campaign(paper.config)
    cells = cells_of(declared(scale="demo"), campaign.steps[0])
    assert [cell.run.ipc for cell in cells if cell.run] == [2, 4, 1]  # for 10, 50, 1
    larger = cells_of(declared(scale="demo"), campaign.steps[3])
    assert {(cell.dataset, cell.run.model) for cell in larger if cell.run} == {
        ("tiny_imagenet", "resnet34")
    }


def test_steps_without_a_cell_at_the_scale_are_passed_over(paper):
    smoke = stretches(declared(scale="smoke", controls="none"), read_campaign(paper.config))
    assert {stretch.title.split()[0] for stretch in smoke} == {"table1", "table4"}
    narrowed = stretches(
        declared(datasets=["cifar100"], controls="none"), read_campaign(paper.config)
    )
    assert [stretch.title.split()[0] for stretch in narrowed] == ["table1", "table11"]


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ({"table": "tinny"}, "steps.0.table: there is no table 'tinny'; use one of both, tiny"),
        ({"table": "tiny", "ipc": [1, 3]}, "steps.0.ipc: no cell of tiny has 3 there; use 1, 2"),
        ({"table": "tiny", "methods": ["sre"]}, "steps.0.methods: no cell of tiny has 'sre' "
"there; use cda, sre2l"),
        ({"table": "tiny", "datasets": ["digit"]}, "steps.0.datasets: no cell of tiny has "
"'digit' there; use digits"),
        ({"table": "both", "methods": ["sre2l"], "ipc": [4]}, "steps.0.ipc: no cell of both "
"has 4 there; use 1"),
        ({"table": "tiny", "seeds": [1]}, "steps.0.seeds is not a known key; use one of "
"table, datasets, methods, ipc"),
        ({"table": "tiny", "ipc": ["many"]}, "steps.0.ipc.0 input should be a valid integer"),
        ({}, "steps.0.table field required"),
    ],
)  # fmt: skip
def test_a_wrong_step_is_told_in_one_line(step, told, tree):
    tree.experiment("both", {"methods": ["cda"], "ipc": [4]}, {"methods": ["sre2l"], "ipc": [1]})
    tree.write("campaign.yaml", yaml.safe_dump({"steps": [step]}))
    with pytest.raises(ConfigError) as caught:
        read_campaign(tree.folder)
    assert str(caught.value).startswith("config/campaign.yaml:1: " + told)
    assert "\n" not in str(caught.value)


def test_a_campaign_without_a_file_or_steps_is_refused(tree):
    with pytest.raises(ConfigError, match=r"^config/campaign.yaml: no such file"):
        read_campaign(tree.folder)
    tree.write("campaign.yaml", "steps: []\n")
    with pytest.raises(ConfigError, match=r"^config/campaign.yaml:1: steps "):
        read_campaign(tree.folder)


# Times
# ----------------------------------------------------------------------------------------------------------------


def times_of(tree, found: list[Stretch], kind: str = "cpu") -> tuple[Times, list[Job]]:
    jobs = jobs_of(tree.experiments(), found, every=True)
    return Times(tree.experiments(), kind, jobs), jobs


def test_a_stopped_job_is_expected_to_take_what_is_left_of_it(tree, steps):
    tree.edit("recipes/digits.yaml", "  iterations: 6          #", "  iterations: 6000000    #")
    reckoned, jobs = times_of(tree, steps())
    job = next(job for job in jobs if job.run.stage == "recover" and job.run.upstream)
    whole = reckoned.of(job)
    assert whole > 2000
    reckoned.note(job, 1000 + START)
    assert (reckoned.of(job), reckoned.begun(job)) == (pytest.approx(whole - 1000), True)
    again, _ = times_of(tree, steps())
    again.note(job, 500 + START)
    assert again.of(job) == pytest.approx(whole - 1500)


def test_a_stopped_job_s_rate_is_of_all_its_starts(tree, steps):
    reckoned, jobs = times_of(tree, steps())
    squeeze = jobs[0]
    work = reckoned.of(squeeze) - START
    described = Path(squeeze.output).with_name("squeeze.json")
    described.parent.mkdir(parents=True)

    def finish(seconds: float) -> None:
        provenance = {"device": "CPU (2 logical cores)", "seconds": seconds}
        described.write_text(json.dumps({"run": squeeze.run.id, "provenance": provenance}))
        Path(squeeze.output).touch()

    reckoned.note(squeeze, 2 * work + 1000 + START)
    finish(0.75 * work)
    reckoned.measure()
    assert reckoned.measured(
        squeeze.run
    )  # by what its output tells: nobody knows that it was stopped and finished
    reckoned.note(squeeze, 1000 + START)
    reckoned.measure()
    rate = reckoned.rates.of(squeeze.run).tflops
    assumed = reckoned.rates.assumed["squeeze"].tflops
    assert rate == pytest.approx(assumed * work / (2 * work + 2000))
    assert not reckoned.begun(squeeze)


def test_a_job_that_was_never_stopped_is_measured_by_its_output(tree, steps):
    reckoned, jobs = times_of(tree, steps())
    reckoned.note(jobs[0], 100)
    assert Path("artifacts/work/campaign.json").exists()
    Path(jobs[1].output).mkdir(parents=True)
    before = Path("artifacts/work/campaign.json").read_text()
    reckoned.note(jobs[1], 100)
    assert Path("artifacts/work/campaign.json").read_text() == before


def test_a_damaged_record_is_told_in_one_line(tree, steps):
    Path("artifacts/work").mkdir(parents=True)
    for text in ("{", '{"jobs": {"x": {"kind": 3}}}'):
        Path("artifacts/work/campaign.json").write_text(text)
        with pytest.raises(ValueError, match=r"^artifacts/work/campaign.json: .*[^\n]*$"):
            times_of(tree, steps())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("", "cpu"),
        ("GT 710", "a100"),
    ],
)
def test_the_kind_of_device_is_known_by_its_name(name, kind, tree, monkeypatch, capsys):
    monkeypatch.setattr(times, "_device_name", lambda: name)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert kind_of(tree.experiments(runtime={"device": "auto"}), None) == kind
    assert ("GT 710 is no known device: reckoning with a100" in capsys.readouterr().err) == (
        kind == "a100"
    )
    assert kind_of(tree.experiments(runtime={"device": "auto"}), "h200") == "h200"
    assert kind_of(tree.experiments(), None) == "cpu"


def test_saying_what_is_to_do_takes_no_torch():
    code = (
        "import sys; from cda.cli import main; code = main(['campaign', '-n', '--gpu', 'h100']);"
        "sys.exit(code or 2 * ('torch' in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "63 cells" in done.stdout


# What is said before
# --------------------------------------------------------------------------------------------------


def test_the_page_says_what_is_expected_to_finish(tree, steps, monkeypatch):
    found = steps()
    reckoned, jobs = times_of(tree, found)
    monkeypatch.setattr(reckoned, "of", lambda job: 100.0)
    page = Page(tree.experiments(), found, jobs, reckoned)
    said = page.before(jobs, Budget(0, 620, 20), 50).splitlines()
    assert said[0].endswith(
        "0 of 6 cells measured (0 with all 2 seeds); 0 of 22 jobs done; about 37 min left."
    )
    rows = [line for line in said if line.startswith(("squeeze", "recover", "relabel", "validate"))]
    assert [line.split()[-1] for line in rows] == ["finishes"] * 5 + ["begins", "waits", "waits"]
    assert said[-3] == "… and 14 jobs more, 23 min"
    assert said[-1].startswith(
        "Expected in 10 min, the last 20 s of it for stopping: 5 jobs finished, 1 cell measured."
    )
    assert "22 jobs finished, 6 cells measured" in page.before(jobs, Budget(0, math.inf, 20), 50)


def test_the_documentation_lists_the_campaign_s_cells_jobs_and_hours(paper):
    found, jobs = stretches(paper, read_campaign(paper.config)), planned(paper)
    reckoned = Times(paper, "h100", jobs)
    rows = [
        line.split("|")[2:5]
        for line in (ROOT / "docs/campaign.md").read_text().splitlines()
        if line.startswith("|")
    ]
    listed = [(int(cells), int(count), float(hours)) for cells, count, hours in rows[2:-1]]
    own = {
        stretch.title: [job for job in jobs if job.stretch == stretch.title] for stretch in found
    }
    hours = {title: round(reckoned.total(some) / 3600, 1) for title, some in own.items()}
    assert listed == [(len(one.cells), len(own[one.title]), hours[one.title]) for one in found]
    cells = [
        sum(len(one.cells) for one in found if one.control == control) for control in (False, True)
    ]
    assert [text.strip() for text in rows[-1]] == [
        "{} + {}".format(*cells),
        str(len(jobs)),
        f"{reckoned.total(jobs) / 3600:.0f}",
    ]


def test_a_job_is_begun_only_where_it_gets_to_work():
    budget = Budget(began=0, seconds=540, grace=20)
    assert budget.begins(expected=5000, used=520 - START - 20)
    assert not budget.begins(expected=5000, used=521 - START - 20)
    assert budget.begins(expected=16, used=504)
    assert not budget.begins(expected=16, used=505)


def test_times_are_said_in_a_unit_that_suits():
    told = [clock(seconds) for seconds in (0, 89, 91, 3599, 3601, 1e6)]
    assert told == ["0 s", "89 s", "1.5 min", "60 min", "1.0 h", "278 h"]


# A slice
# --------------------------------------------------------------------------------------------------------------

MAKE = """
import os, pathlib, sys
for path in map(pathlib.Path, sys.argv[1:]):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
"""
SAVE = """
import pathlib, signal, sys, time
def stop(*_):
    pathlib.Path("saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
pathlib.Path("ready").touch()
time.sleep(60)
"""
DEAF = """
import pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path("ready").touch()
time.sleep(60)
"""
FAIL = "raise SystemExit(1)"


@pytest.fixture
def started(monkeypatch) -> tuple[list[str], dict[str, str]]:
    """The names of the jobs that a campaign starts, and scripts in place of stages, by words of
    such a name.
    """
    names: list[str] = []
    scripts: dict[str, str] = {}

    def command(job: Job) -> list[str]:
        names.append(job.name)
        script = next((text for words, text in scripts.items() if words in job.name), MAKE)
        described = (
            [str(Path(job.output).with_name("squeeze.json"))] if job.run.stage == "squeeze" else []
        )
        return [sys.executable, "-S", "-c", script, job.output, *described]

    monkeypatch.setattr(slices, "command", command)
    return names, scripts


def short(names: list[str]) -> list[str]:
    """Stage and last number."""
    return [" ".join((name.split()[0], *name.split()[3:])) for name in names]


@pytest.fixture
def ends_when_ready(monkeypatch) -> None:
    """A budget that ends once a script says that it is `ready`."""
    monkeypatch.setattr(
        Budget, "stop", property(lambda _: 0.0 if Path("ready").exists() else math.inf)
    )


def test_a_campaign_runs_everything_and_then_has_nothing_to_do(tree, steps, started, capsys):
    steps({"table": "tiny", "methods": ["cda"], "ipc": [2]})
    assert tree.cda("campaign") == 0
    names, _ = started
    assert short(names) == [
        "squeeze",
        "recover part 0",
        "relabel",
        "validate seed 0",
        "validate seed 1",
    ]
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "1 of 1 cell measured (1 with all 2 seeds); 5 of 5 jobs done."
    assert tree.cda("campaign", "--minutes", "9") == 0
    assert len(names) == 5
    assert capsys.readouterr().out.splitlines() == [
        f"Campaign at scale paper, 2 seeds, on cpu. {out.splitlines()[-1]}"
    ]


@pytest.mark.parametrize("said", [("-n",), ("--dry-run", "--minutes", "9"), ("--minutes", "0")])
def test_only_saying_starts_nothing(said, tree, steps, started, capsys):
    steps()
    assert tree.cda("campaign", *said) == 0
    assert started[0] == []
    assert "Expected" in capsys.readouterr().out
    assert not Path("artifacts").exists()


def test_stages_get_the_configuration_of_the_call(tree, steps, started, monkeypatch):
    steps({"table": "tiny", "methods": ["cda"], "ipc": [1]})
    monkeypatch.setenv("CDA_CONFIG", '{"seeds": 1, "runtime": {"cpu_threads": 1}}')
    started[1]["squeeze"] = "import os; open('given', 'w').write(os.environ['CDA_CONFIG'])" + MAKE
    assert tree.cda("campaign", "--config", "runtime.workers=0") == 0
    assert json.loads(Path("given").read_text()) == {
        "seeds": 1,
        "runtime": {"cpu_threads": 1, "workers": 0},
    }
    assert short(started[0])[3:] == ["validate seed 0"]


def test_the_command_is_the_stage_s_own(tree, steps):
    jobs = jobs_of(tree.experiments(), steps({"table": "tiny", "methods": ["cda"], "ipc": [1]}))
    runs = tree.runs(ipc=1)
    assert [slices.command(job)[1:] for job in jobs] == [
        ["-m", "cda", "squeeze", "--run", runs["squeeze"].id],
        ["-m", "cda", "recover", "--run", runs["recover"].id, "--part", "0"],
        ["-m", "cda", "relabel", "--run", runs["relabel"].id],
        ["-m", "cda", "validate", "--run", runs["validate"].id, "--seed", "0"],
        ["-m", "cda", "validate", "--run", runs["validate"].id, "--seed", "1"],
    ]


@pytest.mark.usefixtures("ends_when_ready")
def test_when_the_budget_ends_the_running_stage_is_told_to_save(tree, steps, started, capsys):
    steps()
    names, scripts = started
    scripts["relabel"] = SAVE
    assert tree.cda("campaign") == 0
    assert Path("saved").exists()
    assert short(names) == ["squeeze", "recover part 0", "relabel"]
    out = capsys.readouterr().out
    assert (
        "This slice finished 2 jobs.\nStopped in the middle, the next slice goes on from "
        "there: relabel digits" in out
    )
    assert out.splitlines()[-1].startswith(
        "0 of 6 cells measured (0 with all 2 seeds); 2 of 22 jobs done; about "
    )
    Path("ready").unlink()
    scripts.clear()
    assert tree.cda("campaign") == 0
    assert names[3] == names[2]
    assert capsys.readouterr().out.splitlines()[-1].endswith("22 of 22 jobs done.")


@pytest.mark.usefixtures("ends_when_ready")
def test_a_stage_that_does_not_stop_is_killed_when_the_grace_is_over(tree, steps, started, capsys):
    steps()
    started[1]["squeeze"] = DEAF
    began = time.monotonic()
    assert tree.cda("campaign", "--grace", "1") == 0
    assert 0.9 < time.monotonic() - began < 50
    assert (
        "Stopped in the middle, the next slice goes on from there: squeeze"
        in capsys.readouterr().out
    )


def test_no_job_is_started_that_would_not_get_to_work(tree, steps, started):
    found = steps()
    reckoned, jobs = times_of(tree, found)
    runner = Runner(
        Budget(time.monotonic() - 500, 505, 5), reckoned, tree.experiments().layout, os.environ
    )
    outcome = runner.run(jobs)
    assert started[0] == []
    assert (outcome.done, outcome.stopped, outcome.failed) == ([], None, {})


def test_a_failing_job_costs_those_that_need_it_and_no_other(tree, steps, started, capsys):
    steps()
    names, scripts = started
    scripts["recover digits constant"] = FAIL
    assert tree.cda("campaign") == 1
    assert sum("constant" in name for name in names) == 1
    assert (
        sum(name.startswith("validate") for name in names) == 2 * 2 * 2
    )  # of CDA and random, two IPCs, two seeds
    said = capsys.readouterr()
    assert "Failed (exit status 1): recover digits constant-resnet18-" in said.out
    assert "Left out, since they need one of those: 6 jobs" in said.out
    assert "4 of 6 cells measured" in said.out.splitlines()[-1]
    (line,) = [line for line in said.err.splitlines() if line.startswith("cda: ")]
    assert line.startswith("cda: campaign: failed: recover digits constant")


def test_a_job_that_is_killed_by_others_has_failed(tree, steps, started, capsys):
    steps()
    started[1]["squeeze"] = "import os; os.kill(os.getpid(), 9)"
    assert tree.cda("campaign", "--config", "seeds=1") == 1
    assert "Failed (killed by SIGKILL): squeeze" in capsys.readouterr().out


def test_what_another_process_works_on_is_left_to_it(tree, steps, started, capsys):
    steps()
    squeeze = tree.runs()["squeeze"]
    lease = Path(tree.experiments().layout.work(squeeze, "model"), "lease.json")
    lease.parent.mkdir(parents=True)
    lease.write_text('{"host": "elsewhere", "pid": 7}')
    started[1]["squeeze"] = FAIL  # as the stage does when it has waited long enough
    assert tree.cda("campaign") == 0
    out = capsys.readouterr().out
    assert f"Left to process 7 of elsewhere, which works on it: squeeze digits {squeeze.id}" in out
    assert (
        "; 1 of 22 jobs done; " in out.splitlines()[-1]
    )  # real images need no model, their labels do


@pytest.fixture(params=[signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def number(request):
    """A signal that is not ignored, which a shell's background jobs do with SIGINT and nohup's with
    SIGHUP.
    """
    before = signal.signal(request.param, signal.SIG_DFL)
    yield request.param
    signal.signal(request.param, before)


def test_a_signal_ends_the_running_stage_and_the_campaign(number, tree, steps, started, capsys):
    steps()
    started[1]["recover"] = SAVE.replace(
        "time.sleep(60)", f"import os; os.kill(os.getppid(), {number}); time.sleep(60)"
    )
    handlers = [signal.getsignal(one) for one in slices.SIGNALS]
    assert tree.cda("campaign") == 128 + number
    assert Path("saved").exists()
    assert short(started[0]) == ["squeeze", "recover part 0"]
    assert [signal.getsignal(one) for one in slices.SIGNALS] == handlers
    said = capsys.readouterr()
    assert "This slice finished 1 job.\nStopped in the middle" in said.out
    assert f"cda: stopped by {signal.Signals(number).name}; what is done is saved" in said.err


def test_a_signal_that_is_ignored_stays_so(tree, steps, started):
    steps({"table": "tiny", "methods": ["cda"], "ipc": [1]})
    started[1]["squeeze"] = f"import os; os.kill(os.getppid(), {int(signal.SIGHUP)})" + MAKE
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert tree.cda("campaign") == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--minutes", "-1"), "--minutes -1: must be at least 0"),
        (("--minutes", "nan"), "--minutes nan: must be at least 0"),
        (
            ("--minutes", "0.5"),
            "--minutes 0.5: too few, a job takes 15 s to start and the last 20 s are for saving",
        ),
        (("--grace", "0"), "--grace 0: must be 1 to 3600 seconds"),
        (("--gpu", "h9000"), "--gpu h9000: is not in config/devices.yaml; use one of a100"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(given, told, tree, steps, capsys):
    steps()
    assert tree.cda("campaign", *given) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"cda: {told}")


def test_a_cell_is_measured_when_all_its_runs_are(tree, steps):
    tree.experiment(
        "tiny", {"methods": ["cda"], "ipc": [1], "relabel_models": ["resnet18", "resnet34"]}
    )
    (own,) = steps()
    (cell,) = own.cells
    first, second = (tree.experiments().layout.run_json(run, 0) for run in cell.runs)
    assert not measured(tree.experiments(), cell)
    Path(first).parent.mkdir(parents=True)
    Path(first).touch()
    assert not measured(tree.experiments(), cell)
    assert measured(tree.experiments(), cell, soon=frozenset({second}))
    assert not measured(tree.experiments(), cell, seed=1, soon=frozenset({second}))
