"""What many recover jobs cost the head process: planned, submitted to a partition that starts none,
cancelled.

Prints seconds and the head's peak memory. Run by hand; the SLURM and the folder are its own, and
both are removed.

Usage: python tests/slurm/scale.py [JOBS]
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
QUEUED = 500  # `jobs` of the profile: the most that are in the queue at once
sys.path.insert(0, str(ROOT))

from tests.conftest import ConfigTree  # noqa: E402
from tests.slurm.cluster import Cluster  # noqa: E402

from cda.experiments.paths import Layout  # noqa: E402


def declare(jobs: int) -> str:
    """A data set whose one recover run has `jobs` parts, in the working directory.

    The target that needs them all.
    """
    tree = ConfigTree()
    tree.edit("datasets/digits.yaml", "shards_per_job: 2", "shards_per_job: 1")
    tree.experiment("many", {"methods": ["cda"], "ipc": [jobs]})
    model = Path(Layout("paper").model(tree.runs("cda", jobs, "many")["squeeze"]))
    model.parent.mkdir(parents=True)
    model.touch()
    model.with_name("squeeze.json").touch()
    for name in ("workflow", "slurm"):
        Path(name).symlink_to(ROOT / name)
    return Layout("paper").table("many")


def submitted(log: Path) -> int:
    """Jobs that snakemake has submitted, by its log."""
    return log.read_text(encoding="utf-8").count("has been submitted with SLURM jobid")


def peak(pid: int) -> float:
    """Most memory that a process has held, in MB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used, its programs included that ended."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def print_seconds(what: str, seconds: float, jobs: int) -> None:
    """One line."""
    print(f"{what:10s} {seconds:7.1f} s  {1000 * seconds / jobs:6.1f} ms a job", flush=True)


def measure(cluster: Cluster, target: str, jobs: int) -> None:
    """Submit, cancel, plan."""
    environment = os.environ | cluster.environment
    command = [sys.executable, "-m", "snakemake", "--profile", "slurm", target]
    log = Path("head.log")
    with log.open("w", encoding="utf-8") as out:
        start = time.monotonic()
        held = ["--default-resources", "slurm_partition=held"]
        head = subprocess.Popen(
            [*command, *held], env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
        while submitted(log) < min(jobs, QUEUED) and head.poll() is None:
            time.sleep(0.5)
        print_seconds("submitted", time.monotonic() - start, jobs)
        waiting = cluster.run("squeue", "--noheader", "--partition=held").stdout.splitlines()
        memory, busy = peak(head.pid), cpu(head.pid)
        start = time.monotonic()
        head.send_signal(signal.SIGINT)
        head.wait()
        cluster.idle(600)
        print_seconds("cancelled", time.monotonic() - start, jobs)
    print(f"{len(waiting)} jobs waited, {1000 * busy / jobs:.1f} ms of CPU each", flush=True)
    print(f"the head held at most {memory:.0f} MB", flush=True)
    start = time.monotonic()
    subprocess.run(
        [*command, "-n", "--quiet"], env=environment, check=True, stdout=subprocess.DEVNULL
    )
    print_seconds("planned", time.monotonic() - start, jobs)


def main() -> None:
    """Measure in a folder and on a cluster of its own."""
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else QUEUED
    with tempfile.TemporaryDirectory(prefix="cda-scale-") as folder:
        os.chdir(folder)
        cluster = Cluster(Path(folder) / "slurm-cluster")
        cluster.up()
        try:
            measure(cluster, declare(jobs), jobs)
        finally:
            cluster.down()
            os.chdir("/")


if __name__ == "__main__":
    main()
