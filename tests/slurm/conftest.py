"""A SLURM for the tests of this folder, which are skipped where none is installed."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.slurm.cluster import Cluster
from tests.slurm.flow import accept_interrupt, environment
from tests.slurm.survival import TESTED

ROOT = Path(__file__).parents[2]
# On a real cluster snakemake looks at the queue seldom; here a job takes seconds.
OFTEN = [
    "--slurm-init-seconds-before-status-checks",
    "1",
    "--seconds-between-status-checks",
    "1",
    "--latency-wait",
    "5",
]


NODES = ("first", "second")


@pytest.fixture(scope="session")
def survived():
    """What survival.py prints of each case."""
    command = [sys.executable, "-m", "tests.slurm.survival", *TESTED]
    output = subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    ).stdout
    return {
        case: next((line for line in output.splitlines() if line.startswith(f"{case}: ")), output)
        for case in TESTED
    }


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The daemons, up."""
    found = Cluster(tmp_path_factory.mktemp("slurm"))
    found.up(cpus=16, nodes=NODES)
    yield found
    found.down()


class Workflow:
    """`snakemake --profile slurm` in a folder that has what a clone has."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder = cluster, folder
        for name in ("workflow", "slurm"):
            (folder / name).symlink_to(ROOT / name)
        path = f"{Path(sys.executable).parent}:{cluster.environment['PATH']}"
        self.environment = environment() | cluster.environment | {"PATH": path}

    def uncomment(self, heading):
        """Use a profile in which the lines below a comment that begins with `heading` hold."""
        profile = self.folder / "slurm"
        before, begin, rest = (profile / "config.yaml").read_text("utf-8").partition(heading)
        block, after = rest.split("\n\n", 1)
        lines = [line.removeprefix("# ") for line in block.splitlines()[1:]]
        profile.unlink()
        profile.mkdir()
        text = "\n".join([before, *lines, "", after])
        (profile / "config.yaml").write_text(text, encoding="utf-8")
        assert begin

    def command(self, *arguments):
        return [sys.executable, "-m", "snakemake", "--profile", "slurm", *OFTEN, *arguments]

    def run(self, *arguments):
        """To its end; what it printed."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.logs()
        return done.stdout + done.stderr

    def start(self, *arguments):
        """In the background, with its output in a file."""
        with (self.folder / "snakemake.out").open("w") as out:
            return subprocess.Popen(
                self.command(*arguments),
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                preexec_fn=accept_interrupt,  # noqa: PLW1509 - nothing else runs meanwhile
            )

    def logs(self):
        """What the jobs left."""
        return "\n".join(
            path.read_text(encoding="utf-8")
            for path in self.folder.glob(".snakemake/slurm_logs/**/*.log")
        )


@pytest.fixture
def workflow(cluster, tree, tmp_path):
    """A small configuration and the rules, on the cluster."""
    return Workflow(cluster, tmp_path)
