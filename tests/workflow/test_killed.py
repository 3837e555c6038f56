"""Snakemake killed with SIGKILL on a machine without SLURM: `snakemake --unlock` and the same call
lead to the bytes of an undisturbed run, while a job of the killed call is still at work.

The same through SLURM: tests/slurm/survival.py.
"""

import os
import signal

from tests.slurm.flow import Flow, differences, plain


def test_after_a_killed_snakemake_the_same_call_ends_as_undisturbed(tmp_path):
    plain(tmp_path / "plain")
    flow = Flow(tmp_path / "killed", begun=tmp_path / "plain")
    head = flow.start("--cores", "2")
    pid = flow.hold("recover")
    flow.kill(head)
    os.kill(pid, signal.SIGCONT)
    flow.unlock()
    flow.run("--cores", "2")
    assert differences(tmp_path / "killed", tmp_path / "plain") == []
