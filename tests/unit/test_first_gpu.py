"""The first look at a GPU runs on a CPU too, with tiny sizes."""

from __future__ import annotations

import re

import pytest
from benchmarks.harness import Setting
from tools import first_gpu

QUICK = Setting("cpu", quick=True)


def test_it_prints_a_rate_for_each_stage(capsys):
    first_gpu.main(["--device", "cpu", "--seconds", "0"])
    line = re.compile(r"(.+): ([\d.]+) ms a step, ([\d,]+) images/s")
    found = line.findall(capsys.readouterr().out)
    assert [name for name, _, _ in found] == [
        "validate, 16 px, batch 8",
        "recover, 16 px, blocks packed: 1",
        "recover, 16 px, blocks packed: 10",
    ]
    assert all(float(ms) > 0 and int(rate.replace(",", "")) > 0 for _, ms, rate in found)


def test_the_kernels_of_a_step_are_those_on_the_gpu(capsys):
    """On a CPU there are none; the host's time is in the table all the same."""
    look = next(first_gpu.looks(QUICK, ["recover"]))
    first_gpu.report_kernels(look, look.work(), QUICK, 1.0)
    printed = capsys.readouterr().out
    assert "a step: 0 kernels, the GPU computes 0.000 ms" in printed
    assert "Self CPU time total" in printed


def test_a_gpu_is_looked_at_in_two_precisions():
    found = [look.name for look in first_gpu.looks(Setting("cuda"), first_gpu.STAGES)]
    plain = [name for name in found if not name.endswith(" in bf16")]
    assert len(plain) == 3
    assert found == plain + [f"{name} in bf16" for name in plain]


def test_a_rate_is_the_images_of_all_steps_over_their_time(monkeypatch):
    """Two warm calls of 5 s, then calls of 2 s with ten steps each."""
    seconds = iter([5.0, 5.0, 2.0, 2.0])
    clock = [100.0]

    def work() -> float:
        clock[0] += next(seconds)
        return 1.0

    monkeypatch.setattr(first_gpu.time, "monotonic", lambda: clock[0])
    look = first_gpu.Look("x", 10, 8, 1.0, first_gpu.partial(lambda: work))
    _, a_step, start = first_gpu.measure(look, QUICK, 3.0)
    assert a_step == pytest.approx(0.2)
    assert start == pytest.approx(10.0)
