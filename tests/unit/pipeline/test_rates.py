"""Rates: what was measured on a kind of device, else a share of its peak."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.unit.pipeline.conftest import ROOT, line, write_done

from cda.config.yaml_source import read_layer
from cda.errors import ConfigError
from cda.pipeline import costs
from cda.pipeline.estimate import estimate
from cda.pipeline.plan import plan
from cda.pipeline.rates import Rate, measure, rates_of, read_devices


def test_an_assumed_rate_is_a_share_of_the_peak_with_its_source(devices):
    run = devices.runs()["recover"]
    rate = rates_of(devices.folder, "odd").of(run)
    assert (rate.tflops, rate.measured) == (1.0, 0)
    assert rate.source == "scaled by arithmetic, 12.5 % of 8: a third book"
    assert rates_of(devices.folder, "fast").of(run).source.endswith(": another book")


def test_what_was_measured_on_the_device_wins(devices):
    experiments = devices.experiments()
    squeeze = devices.runs()["squeeze"]
    assumed = line(estimate(experiments, ["tiny"], "fast", 1), "validate").rate
    assert assumed == Rate(1e-6, "scaled by arithmetic, 50 % of 2e-06: our choice")
    run = devices.runs(ipc=1)["validate"]
    work = costs.operations(run, 50)
    write_done(experiments, run, {"device": "Great FAST 2 Edition", "seconds": work / 0.4e6})
    write_done(
        experiments,
        devices.runs("random", ipc=1)["validate"],
        {"device": "Fast 10", "seconds": work / 0.5e6},
    )
    write_done(
        experiments, devices.runs("sre2l", ipc=1)["validate"], {"device": "another", "seconds": 1.0}
    )
    write_done(
        experiments, squeeze, {"device": "Fast 1", "seconds": 1e-3}
    )  # faster than its peak: continued after a kill
    found = estimate(experiments, ["tiny"], "fast", 1)
    rate = line(found, "validate").rate
    assert rate is not None
    assert rate.tflops == pytest.approx(0.45e-6)  # the median of two jobs at 0.4 and two at 0.5
    assert (rate.measured, rate.source) == (4, "measured on fast with digits (4 jobs)")
    to_do = [devices.runs(method, ipc=2)["validate"] for method in ("cda", "sre2l", "random")]
    seconds = sum(costs.operations(run, 50) * 2 for run in to_do) / 0.45e6
    assert line(found, "validate").gpu_hours == pytest.approx(seconds / 3600)
    assert "measured on fast with digits (4 jobs)" in plan(experiments, ["tiny"], "fast", 1)
    rates = rates_of(devices.folder, "fast")

    measure(rates, experiments.runs().values(), experiments.settings, experiments.layout)
    assert rates.of(squeeze).measured == 0


def test_a_part_is_measured_once_and_several_processes_share_a_job(devices):
    experiments, run = devices.experiments(), devices.runs(ipc=2)["recover"]

    provenance = {"device": "Fast 1", "seconds": costs.operations(run, 50) / 0.8e6, "processes": 4}
    write_done(experiments, run, provenance, ipc=2)
    second = Path(experiments.layout.part(run, 0)) / "ipc-001.json"
    second.write_text(json.dumps({"run": run.id, "provenance": provenance}))
    rates = rates_of(devices.folder, "fast")
    measure(rates, [run], experiments.settings, experiments.layout)
    assert rates.measured == {("recover", "digits"): [pytest.approx(0.2e-6)]}


def make_cpu(devices):
    """Make the device `odd` a CPU of four threads, whose steps take half a second."""
    devices.edit("devices.yaml", "  odd:", "  cpu:")
    own = "threads: 4  # x\n    step: 0.5  # x"
    devices.edit("devices.yaml", "    tflops: 8 ", f"    {own}\n    tflops: 8 ")


def test_a_cpu_s_job_takes_its_threads_its_steps_and_its_images_into_account(devices):
    devices.edit("devices.yaml", "  odd:", "  cpu:")
    devices.edit(
        "devices.yaml", "    tflops: 8 ", "    threads: 4  # x\n    step: 0.5  # x\n    tflops: 8 "
    )
    devices.edit("datasets/digits.yaml", "layout: digits", "layout: image_folder")
    devices.edit("datasets/digits.yaml", "resolution: 8", "resolution: 128")
    run = devices.runs(ipc=2)["squeeze"]
    rates = rates_of(devices.folder, "cpu")
    for threads in (1, 2):
        settings = devices.experiments(runtime={"cpu_threads": threads}).settings
        work = costs.operations(run, 50) / (0.5 * 8e12 * threads / 4)
        reading = (1438 + 359) / 100 / 4  # a quarter of the pixels that `decode` is of
        expected = reading + 0.5 * costs.steps(run, settings) + work
        assert rates.seconds_of(run, settings) == pytest.approx(expected)
    assert rates.of(run).source == "scaled by arithmetic, 50 % of 8 (4 threads): a book"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_finished_job_corrects_the_estimate_of_jobs_like_it(devices, threads):
    """The job took twice its estimate with its own number of threads: others will, with theirs."""
    devices.edit("devices.yaml", "  odd:", "  cpu:")
    devices.edit(
        "devices.yaml", "    tflops: 8 ", "    threads: 4  # x\n    step: 0.5  # x\n    tflops: 8 "
    )
    experiments = devices.experiments(runtime={"cpu_threads": threads})
    done, other = devices.runs(ipc=1)["validate"], devices.runs(ipc=2)["validate"]
    rates, settings = rates_of(devices.folder, "cpu"), experiments.settings
    before = rates.seconds_of(other, settings)
    seconds = 2 * rates.assumed_seconds(done, settings, threads=1)
    write_done(experiments, done, {"device": "Odd", "seconds": seconds, "cpu_threads": 1})
    measure(rates, [done], settings, experiments.layout)
    assert rates.seconds_of(other, settings) == pytest.approx(2 * before)


def test_every_process_starts(devices):
    before = estimate(devices.experiments(), ["tiny"], "fast", 1)
    devices.edit("devices.yaml", "decode: 100 ", "start: 36 # x\ndecode: 100 ")
    after = estimate(devices.experiments(), ["tiny"], "fast", 1)
    for one, other in zip(before.lines, after.lines, strict=True):
        assert other.gpu_hours == pytest.approx(one.gpu_hours + 0.01 * one.to_do)


def test_a_job_that_made_fewer_shards_did_less(devices):
    experiments, run = devices.experiments(), devices.runs(ipc=2)["recover"]
    provenance = {"device": "Fast 1", "seconds": costs.operations(run, 50) / 0.8e6}
    write_done(experiments, run, provenance, ipc=2)
    first = Path(experiments.layout.part(run, 0)) / "ipc-000.json"
    first.write_text(json.dumps({"run": run.id, "shards": 1, "provenance": provenance}))
    rates = rates_of(devices.folder, "fast")
    measure(rates, [run], experiments.settings, experiments.layout)
    assert rates.measured == {("recover", "digits"): [pytest.approx(0.4e-6)]}


DAMAGED = [
    "",
    "[]",
    '{"run": "another", "provenance": {"device": "Fast 1", "seconds": 1}}',
    '{"provenance": 3}',
    '{"provenance": {"device": "Fast 1", "seconds": "x"}}',
]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_description_measures_nothing(text, devices):
    experiments, run = devices.experiments(), devices.runs()["validate"]
    path = Path(experiments.layout.run_json(run, 0))
    path.parent.mkdir(parents=True)
    path.write_text(text.replace('{"prov', f'{{"run": "{run.id}", "prov'))
    assert line(estimate(experiments, ["tiny"], "fast", 1), "validate").rate.measured == 0


def test_mistakes_in_the_devices_name_their_place(devices):
    where = devices.edit("devices.yaml", "tflops: 8 ", "tflops: fast ")
    with pytest.raises(ConfigError, match=rf"config/devices.yaml:{where}: devices.odd.tflops"):
        rates_of(devices.folder, "fast")
    devices.edit("devices.yaml", "tflops: fast ", "tflops: 8 ")
    devices.edit("devices.yaml", "  score: 0.5           # our choice\n", "")
    with pytest.raises(ConfigError, match=r"share.score is missing"):
        rates_of(devices.folder, "fast")


def test_every_device_and_stage_has_a_source():
    layer = read_layer(ROOT / "config/devices.yaml")
    assert all(value.source for value in layer.values()), [
        key for key, value in layer.items() if not value.source
    ]
    assert set(read_devices(ROOT / "config").devices) == {
        "a100",
        "h100",
        "h200",
        "rtx4090",
        "v100",
        "cpu",
    }


def test_an_expert_is_a_share_of_its_job(devices):
    """Each has its own seconds: here those of half a job of two, at 0.8 million a second."""
    devices.trajectories()
    experiments, run = devices.experiments(), devices.runs("mtt", 2)["expert"]
    provenance = {"device": "Fast 1", "seconds": costs.operations(run, 50) / 2 / 0.8e6}
    write_done(experiments, run, provenance)
    rates = rates_of(devices.folder, "fast")
    measure(rates, [run], experiments.settings, experiments.layout)
    assert rates.measured == {("expert", "digits"): [pytest.approx(0.8e-6)] * 2}  # a part, a file
