"""The profile on a real SLURM: what jobs ask for, arrays, a squeeze of two processes.

CI runs the demo through it.
"""

import json
import signal
import time
from pathlib import Path

import pytest
from tests.slurm.cluster import Cluster, ClusterError

from cda.experiments.paths import Layout

ARGUMENT = 128 * 1024  # bytes that Linux takes in one argument of a program
PARTS = 32


def wait_for(condition, process):
    """Poll until `condition()`; no longer than the process lives."""
    while not condition():
        assert process.poll() is None, "snakemake ended"
        time.sleep(0.2)


def test_a_table_is_submitted_in_arrays_with_what_its_jobs_need(workflow, tree, cluster):
    tree.experiment("tiny", {"methods": ["cda", "random"], "ipc": [2 * PARTS]})
    model = Path(Layout("paper").model(tree.runs("cda", 2 * PARTS)["squeeze"]))
    model.parent.mkdir(parents=True)
    model.touch()  # nothing is run: the partition holds every job
    model.with_name("squeeze.json").touch()
    before = len(cluster.jobs())
    head = workflow.start("results/tiny.csv", "--default-resources", "slurm_partition=held")
    try:
        wait_for(lambda: sum(job.tasks for job in cluster.jobs()[before:]) >= 2 * PARTS, head)
        jobs = cluster.jobs()[before:]
        arrays = {job.array for job in jobs if job.rule == "recover"}
        scripts = [
            cluster.run("scontrol", "write", "batch_script", array, "-").stdout for array in arrays
        ]
    finally:
        head.send_signal(signal.SIGINT)
        head.wait()
    assert {(job.rule, job.gpus, bool(job.array)) for job in jobs} == {
        ("recover", 1, True),
        ("given", 0, False),
    }
    assert sorted(job.tasks for job in jobs if job.rule == "recover") == [2, 30]
    assert {(job.minutes, job.megabytes // 1000, job.state) for job in jobs} == {(11, 8, "PENDING")}
    longest = max(len(line) for script in scripts for line in script.splitlines())
    assert 0 < longest < 0.8 * ARGUMENT, "a longer configuration must fit too"
    assert cluster.idle(60), "an interrupted snakemake cancels its jobs"


def test_two_processes_squeeze_in_one_job(workflow, tree, cluster):
    tree.few_images()
    tree.edit("datasets/digits.yaml", "shards_per_job: 2\n", "shards_per_job: 2\ngpus: 2\n")
    model = Path(Layout("paper").model(tree.runs()["squeeze"]))
    before = len(cluster.jobs())
    workflow.run(str(model))
    described = json.loads(model.with_name("squeeze.json").read_text(encoding="utf-8"))
    assert described["provenance"]["processes"] == 2
    assert [(job.rule, job.gpus, job.state) for job in cluster.jobs()[before:]] == [
        ("squeeze", 2, "COMPLETED")
    ]


def test_a_machine_without_slurm_is_told_what_to_install(tmp_path, monkeypatch):
    cluster = Cluster(tmp_path)
    monkeypatch.setattr(Cluster, "_path", lambda _self, name: None if name == "munged" else name)
    with pytest.raises(
        ClusterError, match=r"^munged not found; install SLURM \(Debian: apt-get install"
    ):
        cluster.up()
