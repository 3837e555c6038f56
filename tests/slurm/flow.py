"""A small workflow of six jobs in a folder, through the slurm profile or on this machine, for tests
that interrupt it (survival.py, tests/workflow/test_killed.py).

Squeeze, two parts of recover, relabel, validate and a table, on images made here. A job is stopped
(SIGSTOP) at a checkpoint in its middle, so that it is interrupted there on a machine of any speed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tests.slurm.cluster import Cluster

ROOT = Path(__file__).parents[2]
TARGET = "results/tiny.csv"
EVENT = re.compile(
    r"^Job \d+ has been submitted|"
    r"^Finished jobid: [1-9]|SLURM status is|^Trying to restart job [1-9]|^cda: |be locked"
)
SUBMITTED = re.compile(
    r"^Job \d+ has been submitted with SLURM jobid \d+ \(log: \S*/rule_(\w+)/", re.MULTILINE
)
RUN_ID = re.compile(r"^SLURM run ID: (\S+)$", re.MULTILINE)
MIDDLE = 0.4  # share of a stage's steps after which it may be stopped
PATIENCE = 1800.0  # seconds until a case has gone wrong
STAGES = ("squeeze", "recover", "relabel", "validate")

FILES = {
    "config/config.yaml": """\
scale: paper
seeds: 1
runtime:
  device: cpu
  compile: never
  cpu_threads: 1
  checkpoint_seconds: 0
""",
    "config/datasets/digits.yaml": """\
name: digits
layout: image_folder
classes: 4
resolution: 8
mean: [0.5, 0.5, 0.5]
std: [0.25, 0.25, 0.25]
train_images: 96
val_images: 32
shards_per_job: 1
get: made by the test
""",
    "config/recipes/digits.yaml": """\
architecture:
  stem: small            # our choice: small images
  width: 0.125           # our choice: speed
squeeze:
  epochs: 20             # our choice: long enough to be hit
  batch_size: 32         # our choice
  lr: 0.1                # our choice
  augment: pad_crop      # our choice
  padding: 1             # our choice
  evaluate_every: 10     # our choice
recover:
  mode: curriculum       # our choice
  min_crop: 0.4          # our choice
  max_crop: 1.0          # our choice
  iterations: 60         # our choice: long enough to be hit
  block_size: 4          # our choice
  jitter: 1              # our choice
relabel:
  labels: stored         # our choice
  epochs: 60             # our choice: long enough to be hit
  mixing: cutmix         # our choice
  batch_size: 8          # our choice
  crop_scale: [0.4, 1.0] # our choice
validate:
  epochs: 30             # our choice: long enough to be hit
  batch_size: 4          # our choice
  optimizer: adamw       # our choice
  lr: 2.0e-3             # our choice
  temperature: 4.0       # our choice
  evaluate_every: 10     # our choice
methods:
  cda: {}
""",
    "config/experiments/tiny.yaml": """\
title: A small table
caption: One cell.
reported: 9
scales: [paper]
layout: {rows: [ipc], columns: [method]}
groups:
  - dataset: digits
    methods: [cda]
    recovery_models: [resnet18]
    ipc: [2]
    validation_models: [resnet18]
""",
    "config/reported.csv": """\
table,dataset,method,recovery_model,ipc,recovery_iterations,setting,validation_model,metric,value,std
9,digits,old,convnet3,1,,quoted,convnet3,top1,12.8,
""",
}


PYTHON = """\
#!/bin/sh
[ "$1 $2" != "-m cda" ] || {{ shift 2; exec {python} {stage} "$@"; }}
exec {python} "$@"
"""  # before Python itself on the PATH of a flow
STAGE = f"""\
import contextlib, os, pathlib, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import cda.files
from tests.slurm.flow import MIDDLE, position

atomic_write = cda.files.atomic_write

@contextlib.contextmanager
def holding(path):
    with atomic_write(path) as temporary:
        yield temporary
    if path.name in ("state.safetensors", "epochs.json"):
        done, total = position(sys.argv[1], path.parent)
        if done >= MIDDLE * total:
            hold(sys.argv[1], done)

def hold(stage, done):
    place = pathlib.Path(__file__).parent
    for mark in place.glob("hold-" + stage + "-*"):
        with contextlib.suppress(FileNotFoundError):  # another process took it
            mark.rename(place / ("taken-" + str(os.getpid())))
            (place / ("held-" + stage + "-" + str(os.getpid()))).write_text(str(done))
            os.kill(os.getpid(), signal.SIGSTOP)
            return

cda.files.atomic_write = holding
from cda.cli import main
sys.exit(main())
"""  # `cda`, which stops itself in the middle of a stage if a test wants it to


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def write_folder(folder: Path) -> None:
    """The workflow's configuration and its images."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "config" / "devices.yaml", folder / "config" / "devices.yaml")
    draws = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8)):
        for label in range(4):
            place = folder / "data" / "digits" / split / f"class-{label}"
            place.mkdir(parents=True)
            for index in range(count):
                pixels = draws.integers(0, 120, (8, 8, 3), dtype=np.uint8)
                pixels[2 * label : 2 * label + 2] += 100
                Image.fromarray(pixels).save(place / f"{index}.png")


def environment() -> dict[str, str]:
    """This process's variables without those that configure a run."""
    return {
        name: value for name, value in os.environ.items() if name not in ("CDA_CONFIG", "CDA_DATA")
    }


def accept_interrupt() -> None:
    """Accept SIGINT, which a shell makes its background jobs ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Flow:
    """One workflow folder, on a cluster or this machine, and what happened to it."""

    def __init__(
        self, folder: Path, cluster: Cluster | None = None, begun: Path | None = None
    ) -> None:
        """A folder with nothing made yet, or with the squeezed model of `begun`."""
        self.folder, self.calls = folder, 0
        self.partition = ""  # whose node has the name of the folder; without: the cluster's default
        self.hit = self.resumed = ""
        self.heads: list[subprocess.Popen[bytes]] = []
        write_folder(folder)
        if begun is not None:
            shutil.copytree(begun / "artifacts" / "squeeze", folder / "artifacts" / "squeeze")
        (folder / "slurm").symlink_to(ROOT / "workflow" / "profiles" / "slurm")
        self.program("python", PYTHON.format(python=sys.executable, stage=folder / "bin/stage.py"))
        self.program("stage.py", STAGE)
        self.use(cluster)

    def use(self, cluster: Cluster | None) -> None:
        """Submit to a cluster from now on."""
        self.cluster = cluster
        found = environment() | (cluster.environment if cluster else {})
        found["PATH"] = f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{found['PATH']}"
        self.environment = found

    def program(self, name: str, text: str) -> None:
        """Put a program before those of the same name."""
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def start(self, *more: str, limit: str = "60", memory: str = "") -> subprocess.Popen[bytes]:
        """Start snakemake, which prints to a file; `limit` is validate's in minutes, `memory` a
        stage's in MB.
        """
        self.calls += 1
        command = self.snakemake(TARGET)
        if self.cluster:
            command += ["--profile", "slurm", "--slurm-status-command", "squeue"]
            command += ["--slurm-init-seconds-before-status-checks", "1"]
            command += ["--seconds-between-status-checks", "1"]
        command += [*more, "--set-resources", f"validate:runtime={limit}"]
        command += [memory] * bool(memory)
        command += [f"{stage}:gpu=0" for stage in STAGES]
        if self.partition:
            placed = f"--nodelist={self.folder.name}"
            command += [f"{stage}:slurm_partition={self.partition}" for stage in STAGES]
            command += [f"{stage}:slurm_extra='{placed}'" for stage in STAGES]
        with self.log.open("wb") as log:
            head = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                preexec_fn=accept_interrupt,  # noqa: PLW1509 - it takes no lock
            )
        self.heads.append(head)
        return head

    def snakemake(self, *arguments: str) -> list[str]:
        """A call of snakemake."""
        snakefile = str(ROOT / "workflow" / "Snakefile")
        return [sys.executable, "-m", "snakemake", "-s", snakefile, *arguments]

    def kill(self, head: subprocess.Popen[bytes]) -> None:
        """End a snakemake with SIGKILL; the next call is refused until it is unlocked."""
        head.kill()
        head.wait()
        output = self.run(code=1)
        assert "cannot be locked" in output, output

    @property
    def run_id(self) -> str:
        """The name that the newest snakemake's jobs have in SLURM; empty before it chose one."""
        return "".join(RUN_ID.findall(self.log.read_text(encoding="utf-8"))[-1:])

    def cancel_all(self, run_id: str) -> None:
        """Cancel the jobs of a call, and wait until they are gone."""
        if not run_id:
            return
        self.slurm("scancel", "--name", run_id)
        wait_for(
            lambda: not self.slurm("squeue", "--noheader", "--name", run_id).strip(),
            "the end of the cancelled jobs",
        )

    def unlock(self) -> None:
        """Take off a killed snakemake's lock."""
        subprocess.run(
            self.snakemake("--unlock"),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            check=True,
        )

    def close(self) -> None:
        """Leave no snakemake running, whatever went wrong; a node that fails leaves its jobs'."""
        for head in self.heads:
            head.kill()
            head.wait()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (process / "cwd").readlink() == self.folder:
                    os.kill(int(process.name), signal.SIGKILL)

    @property
    def log(self) -> Path:
        """What the newest snakemake printed."""
        return self.folder / f"snakemake-{self.calls}.log"

    def end(self, head: subprocess.Popen[bytes], code: int = 0) -> str:
        """Wait until it ended, as it should; what it printed."""
        ended = head.wait(PATIENCE)
        output = self.log.read_text(encoding="utf-8")
        assert ended == code, f"snakemake ended with {ended}, not {code}:\n{output}"
        return output

    def run(self, *more: str, code: int = 0) -> str:
        """Run snakemake to its end; what it printed."""
        return self.end(self.start(*more), code)

    def cda(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """`cda …` in the folder, or in another."""
        command, place = [sys.executable, "-m", "cda", *arguments], cwd or self.folder
        return subprocess.run(
            command, cwd=place, env=self.environment, capture_output=True, text=True, check=False
        )

    def slurm(self, *command: str) -> str:
        """What one of SLURM's commands prints."""
        assert self.cluster is not None
        done = self.cluster.run(*command)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def mount(self, size: str) -> None:
        """Put a small file system in the place of `artifacts/`; needs root."""
        place = self.folder / "artifacts"
        place.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True
        )

    def hold(self, stage: str) -> int:
        """Have the stage's first process stop at a state saved in its middle; its number."""
        return self.hold_all(stage, 1)[0]

    def hold_all(self, stage: str, count: int) -> list[int]:
        """The same of `count` processes of the stage, which has not begun yet."""
        place = self.folder / "bin"
        for number in range(count):
            (place / f"hold-{stage}-{number}").touch()
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            steps = {path: path.read_text() for path in place.glob(f"held-{stage}-*")}
            pids = [int(path.name.rpartition("-")[2]) for path in steps]
            if len(steps) == count and all(map(is_stopped, pids)):
                hit = " and ".join(sorted(steps.values(), key=int))
                self.hit = f"{stage}, {UNIT[stage]} {hit} of {TOTAL[stage]}"
                return pids
            time.sleep(0.05)
        raise AssertionError(
            f"{stage} did not come to its middle:\n{self.log.read_text(encoding='utf-8')}"
        )

    def job_of(self, pid: int) -> str:
        """The SLURM job that a stopped process belongs to, by its environment."""
        environ = Path(f"/proc/{pid}/environ").read_text(encoding="utf-8").split("\0")
        return dict(line.split("=", 1) for line in environ if "=" in line)["SLURM_JOB_ID"]

    def preempt(self) -> None:
        """Have a job of higher priority take all of this folder's node for a moment."""
        place = ("--partition=urgent", f"--nodelist={self.folder.name}", "--exclusive")
        self.slurm("sbatch", *place, "--output=/dev/null", "--wrap", "sleep 3")

    def fail_node(self) -> None:
        """Have SLURM take this folder's node for dead and, once its jobs are gone, for well."""
        node = f"nodename={self.folder.name}"
        self.slurm("scontrol", "update", node, "state=down", "reason=test")
        wait_for(lambda: "RUNNING" not in self.states().values(), "the end of the node's jobs")
        assert self.cluster is not None
        self.cluster.run("scontrol", "update", node, "state=resume")  # it may be up by itself

    def states(self) -> dict[str, str]:
        """The state of each SLURM job of the newest call, ended ones too."""
        if not self.run_id:
            return {}
        options = ("--states=all", "--noheader", "--format=%A %T", "--name", self.run_id)
        return dict(line.split() for line in self.slurm("squeue", *options).splitlines())

    def wait_for_state(self, state: str, count: int) -> list[str]:
        """Wait until `count` jobs are in the state; their numbers."""
        wait_for(lambda: list(self.states().values()).count(state) >= count, f"{state} jobs")
        return [job for job, found in self.states().items() if found == state]

    def change_profile(self, *dropped: str) -> None:
        """Use a profile without some of its lines."""
        profile = self.folder / "slurm"
        text = (profile / "config.yaml").read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if not line.startswith(dropped)]
        assert len(lines) < len(text.splitlines())
        profile.unlink()
        profile.mkdir()
        (profile / "config.yaml").write_text("\n".join(lines), encoding="utf-8")

    def resumptions(self) -> list[str]:
        """Where jobs went on, by their logs."""
        logs = sorted((self.folder / "logs").rglob("*.log"))
        return [
            found
            for log in logs
            for found in re.findall(r"going on from (.*)", log.read_text(encoding="utf-8"))
        ]

    def jobs(self) -> dict[str, int]:
        """How many jobs of each rule all calls submitted to SLURM."""
        logs = [log.read_text(encoding="utf-8") for log in self.folder.glob("snakemake-*.log")]
        return dict(Counter(name for log in logs for name in SUBMITTED.findall(log)))

    def events(self) -> list[str]:
        """What happened, by the output of all calls, without this machine's times and places."""
        events: list[str] = []
        for call in range(1, self.calls + 1):
            lines = (self.folder / f"snakemake-{call}.log").read_text(encoding="utf-8").splitlines()
            events += [line.strip() for line in lines if EVENT.search(line)]
        events += [f"a job went on from {place}" for place in self.resumptions()]
        return [line.replace(str(self.folder), "FOLDER") for line in events]

    def went_on(self, stage: str, **jobs: int) -> None:
        """Check that the stage went on from where it was hit or later, and that nothing else was
        done twice.

        `jobs` are those of each rule, where there were more than in an undisturbed run.
        """
        self.resumed = " and ".join(sorted(self.resumptions()))
        hit, resumed = steps_of(self.hit, stage), steps_of(self.resumed, stage)
        assert len(hit) == len(resumed)
        assert all(on >= at > 0 for at, on in zip(hit, resumed, strict=True)), (
            f"hit at {self.hit}, went on from {self.resumed}"
        )
        self.made_once(**jobs)

    def made_once(self, **jobs: int) -> None:
        """Check that there were as many jobs as in an undisturbed run but for `jobs`."""
        begun = {} if self.jobs().get("squeeze") else {"squeeze": 0}
        expected = {name: count for name, count in (JOBS | begun | jobs).items() if count}
        assert self.jobs() == expected, f"{self.jobs()} instead of {expected}"


JOBS = {"squeeze": 1, "recover": 2, "relabel": 1, "validate": 1}
MARK = ".snakemake_timestamp"  # which Snakemake leaves in a folder that is an output
UNIT = {"squeeze": "step", "recover": "step", "relabel": "epoch", "validate": "step"}
TOTAL = {"squeeze": 60, "recover": 60, "relabel": 60, "validate": 60}
EPOCHS = {"squeeze": 20, "validate": 30}


def position(stage: str, work: Path) -> tuple[int, int]:
    """How far the work is by its checkpoint, and how far it will go."""
    total = TOTAL[stage]
    try:
        if stage == "relabel":
            return json.loads((work / "epochs.json").read_text(encoding="utf-8"))["done"], total
        with (work / "state.safetensors").open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        state = dict(json.loads(header["__metadata__"]["state"])["dict"])
        if stage == "recover":
            return state["done"], total
        epoch, step = state["at"]
        return epoch * total // EPOCHS[stage] + step, total
    except (OSError, ValueError, KeyError):
        return 0, total


def left(folder: Path) -> dict[str, Any]:
    """Everything that a workflow made: each file's bytes, of a JSON all but its provenance."""
    places = [folder / "artifacts" / stage for stage in STAGES[:3]]
    return contents(folder, *places, folder / "results")


def contents(folder: Path, *places: Path) -> dict[str, Any]:
    """The files in some places of a workflow's folder: their bytes, of a JSON all but its
    provenance.
    """
    found: dict[str, Any] = {}
    files = [
        file
        for place in places
        for file in place.rglob("*")
        if file.is_file() and file.name != MARK
    ]
    for path in sorted(files):
        content: Any = path.read_bytes()
        if path.suffix == ".json":
            content = json.loads(content)
            content.pop("provenance")
        found[str(path.relative_to(folder))] = content
    return found


def differences(folder: Path, reference: Path) -> list[str]:
    """The files that are not the same, or not in both folders."""
    made, expected = left(folder), left(reference)
    return sorted(
        name for name in made.keys() | expected.keys() if made.get(name) != expected.get(name)
    )


def steps_of(line: str, stage: str) -> list[int]:
    """The steps (relabel: epochs) in lines of jobs' logs or in `Flow.hit`, in order."""
    if found := re.findall(r"epoch (\d+) of (\d+), step (\d+)", line):
        return sorted(int(at) * TOTAL[stage] // int(of) + int(step) for at, of, step in found)
    return sorted(map(int, re.findall(r"\b(\d+)(?= and \d+ of| of)", line)))


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until it holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.05)


def plain(folder: Path) -> None:
    """The undisturbed workflow without SLURM and without Snakemake.

    Each stage as `cda` does it, in one process.
    """
    write_folder(folder)
    code = """
from cda.cli import main
from cda.experiments.experiment_set import ExperimentSet
from cda.config.load import load_settings
runs = {run.stage: run.id for run in ExperimentSet(load_settings()).runs().values()}
recover = [["recover", "--part", str(part)] for part in range(2)]
for stage in (["squeeze"], *recover, ["relabel"], ["validate"]):
    assert main([*stage, "--run", runs[stage[0]]]) == 0
assert main(["table", "tiny"]) == 0
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
