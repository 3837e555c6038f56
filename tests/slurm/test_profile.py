"""The profile on a real SLURM: what jobs request, a squeeze of two processes.

CI runs the demo through it.
"""

import json
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from tests.slurm.cluster import Cluster, ClusterError

from cda.experiments.paths import Layout

PARTS = 8
AT_WORK = {"RUNNING", "COMPLETED"}


def wait_for(condition, process=None):
    """Poll until `condition()`; no longer than a process lives."""
    while not condition():
        assert process is None or process.poll() is None, "snakemake ended"
        time.sleep(0.2)


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("heading", "requested"),
    [
        ("", "gres:gpu:1"),
        ("# The type of GPU", "gres:gpu:a100:1"),
        ("# Where sbatch takes --gres", "gres:gpu:1"),
    ],
)
def test_a_table_is_submitted_job_by_job_with_what_each_needs(
    heading, requested, workflow, tree, cluster
):
    tree.experiment("tiny", {"methods": ["cda", "random"], "ipc": [2 * PARTS]})
    model = Path(Layout("paper").model(tree.runs("cda", 2 * PARTS)["squeeze"]))
    model.parent.mkdir(parents=True)
    model.touch()  # nothing is run: the partition holds every job
    model.with_name("squeeze.json").touch()
    for method in ("cda", "random"):  # a part that lacks shards
        run = tree.runs(method, 2 * PARTS)["recover"]
        Path(Layout("paper").part(run, 0)).mkdir(parents=True)
    if heading:
        workflow.uncomment(heading)
    before = len(cluster.jobs())
    head = workflow.start("results/tiny.csv", "--default-resources", "slurm_partition=held")
    try:
        wait_for(lambda: len(cluster.jobs()[before:]) >= 2 * PARTS, head)
        jobs = cluster.jobs()[before:]
    finally:
        head.send_signal(signal.SIGINT)
        head.wait()
    # Random real images need no network.
    assert Counter((job.rule, job.gpus, job.generic) for job in jobs) == {
        ("recover", 1, requested): PARTS - 1,
        ("recover", 0, ""): PARTS - 1,
        ("complete_part", 1, requested): 1,
        ("complete_part", 0, ""): 1,
    }
    assert {(job.gpus, job.minutes) for job in jobs} == {(1, 11), (0, 10)}
    assert {(job.megabytes // 1000, job.state) for job in jobs} == {(8, "PENDING")}
    assert cluster.idle(60), "an interrupted snakemake cancels its jobs"


@pytest.mark.slurm
def test_a_squeeze_of_more_gpus_than_a_node_has_is_refused(workflow, tree, cluster):
    """Two nodes have them together, and SLURM would start the job on both."""
    tree.edit("datasets/digits.yaml", "shards_per_job: 2\n", "shards_per_job: 2\ngpus: 6\n")
    before = len(cluster.jobs())
    model = Layout("paper").model(tree.runs()["squeeze"])
    options = ("--default-resources", "slurm_partition=several", "--retries", "0")
    head = workflow.start(model, *options)
    try:
        wait_for(
            lambda: (
                head.poll() is not None or {job.state for job in cluster.jobs()[before:]} & AT_WORK
            )
        )
        assert head.poll() == 1, cluster.jobs()[before:]
    finally:
        head.send_signal(signal.SIGINT)
        head.wait()
    printed = (workflow.folder / "snakemake.out").read_text(encoding="utf-8")
    assert "Requested node configuration is not available" in printed


@pytest.mark.slurm
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


def test_where_slurm_is_missing_the_error_names_the_packages(tmp_path, monkeypatch):
    cluster = Cluster(tmp_path)
    monkeypatch.setattr(Cluster, "_path", lambda _self, name: None if name == "munged" else name)
    with pytest.raises(
        ClusterError, match=r"^munged not found; install SLURM \(Debian: apt-get install"
    ):
        cluster.up()
