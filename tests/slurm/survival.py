"""What a cluster does to jobs, done to a small workflow (flow.py) on a real SLURM: `make
slurm-matrix`.

Each case runs in a folder of its own, and something happens to it on the way. What it leaves must
be, byte for byte, what an undisturbed run leaves.

Usage: python -m tests.slurm.survival [--page] [CASE …], by default all cases; `--page` writes their
lines of docs/survival.md and docs/survival.log
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.slurm.cluster import Cluster
from tests.slurm.flow import (
    JOBS,
    ROOT,
    STAGE,
    Flow,
    differences,
    left,
    plain,
    steps_of,
    wait_for,
    write_folder,
)

TOGETHER = 6  # cases at a time: they wait more than they compute


# The cases
# -----------------------------------------------------------------------------


def undisturbed(flow: Flow) -> None:
    """Nothing happens."""
    flow.run()
    flow.hit = flow.resumed = "–"
    flow.made_once()


def cancelled(flow: Flow, stage: str) -> None:
    """`scancel` in the middle of {stage}; Snakemake submits the job again."""
    head = flow.start()
    flow.slurm("scancel", flow.job_of(flow.hold(stage)))
    flow.end(head)
    flow.went_on(stage, **{stage: JOBS[stage] + 1})


def out_of_time(flow: Flow) -> None:
    """validate's time limit (1 minute) is over: SIGTERM, which it answers.

    Submitted again with more.
    """
    head = flow.start(limit="1 + 9 * (attempt - 1)")
    flow.hold("validate")
    flow.end(head)
    flow.went_on("validate", validate=2)


DEAF = """\
import os, signal

set_handler = signal.signal

def hang(*_):
    os.kill(os.getpid(), signal.SIGSTOP)

def set_hanging(number, handler):
    return set_handler(number, hang if number == signal.SIGTERM else handler)

signal.signal = set_hanging
"""  # before a stage


def out_of_grace(flow: Flow) -> None:
    """validate's time limit is over and it hangs at the SIGTERM: SIGKILL after KillWait.

    Submitted again with more.
    """
    flow.program("stage.py", DEAF + STAGE)
    head = flow.start(limit="1 + 9 * (attempt - 1)")
    flow.hold("validate")
    flow.end(head)
    flow.went_on("validate", validate=2)


def head_killed(flow: Flow) -> None:
    """SIGKILL to snakemake during recover; one part is stopped, the other ends by itself.

    `scancel --name RUN_ID`, `snakemake --unlock`, and the same call.
    """
    head = flow.start()
    flow.hold("recover")
    run_id = flow.run_id
    flow.kill(head)
    wait_for(
        lambda: len(flow.slurm("squeue", "--noheader", "--name", run_id).splitlines()) == 1,
        "the end of the other part's job",
    )
    flow.cancel_all(run_id)
    flow.unlock()
    flow.run()
    flow.went_on("recover", recover=3)


def slurmd_killed(flow: Flow) -> None:
    """slurmd is killed with SIGKILL under a running part of recover and started again."""
    head = flow.start()
    pid = flow.hold("recover")
    flow.cluster.stop("slurmd", signal.SIGKILL)
    flow.cluster.start("slurmd")
    os.kill(pid, signal.SIGCONT)
    flow.end(head)
    flow.resumed = "not stopped"
    flow.made_once()


def disk_full(flow: Flow) -> None:
    """`artifacts/` (a tmpfs of 40 MB) is full during recover: one line.

    Room is made, and snakemake started again.
    """
    flow.mount("40m")
    head = flow.start("--retries", "0")
    pid = flow.hold("recover")
    ballast = flow.folder / "artifacts" / "ballast"
    fill(ballast)
    os.kill(pid, signal.SIGCONT)
    output = flow.end(head, code=1)
    lines = [line for line in output.splitlines() if "No space left on device" in line]
    assert lines, output
    clear = (
        r"cda: artifacts/work/recover/\S+: cannot be written \(.*\); make room or allow writing, "
        r".* it goes on"
    )
    assert all(re.fullmatch(clear, line) for line in lines), lines
    ballast.unlink()
    flow.run()
    (flow.resumed, *_) = flow.resumptions()
    assert steps_of(flow.resumed, "recover") >= steps_of(flow.hit, "recover") > [0]


def two_at_once(flow: Flow) -> None:
    """During squeeze: a second snakemake; the job by hand, here and in a clone with its files."""
    head = flow.start()
    pid = flow.hold("squeeze")
    second = flow.run(code=1)
    assert "cannot be locked" in second, second
    (work,) = flow.folder.glob("artifacts/work/squeeze/*/*/model")
    clone = flow.folder / "clone"
    write_folder(clone)
    (clone / "artifacts").symlink_to(flow.folder / "artifacts")
    for place in (flow.folder, clone):
        again = flow.cda("squeeze", "--run", work.parent.name, cwd=place)
        assert (again.returncode, "lease.json: another job works here" in again.stderr) == (
            1,
            True,
        ), again
    os.kill(pid, signal.SIGCONT)
    flow.end(head)
    flow.resumed = "not stopped"
    flow.made_once()


def requeued(flow: Flow, stage: str, count: int) -> None:
    """`scontrol requeue` in the middle of {stage}; SLURM starts the same job again."""
    head = flow.start()
    for pid in flow.hold_all(stage, count):
        flow.slurm("scontrol", "requeue", flow.job_of(pid))
    flow.end(head)
    flow.went_on(stage)


def preempted(flow: Flow, stage: str, count: int) -> None:
    """Preempted in the middle of {stage} (PreemptMode=REQUEUE); SLURM starts the same job again."""
    flow.partition = "requeued"
    head = flow.start()
    flow.hold_all(stage, count)
    flow.preempt()
    flow.end(head)
    flow.went_on(stage)


def preempted_for_good(flow: Flow, stage: str, count: int) -> None:
    """Preempted in the middle of {stage} (PreemptMode=CANCEL).

    The line of docs/cluster.md has SLURM start the same job again.
    """
    flow.partition = "cancelled"
    head = flow.start()
    flow.hold_all(stage, count)
    flow.preempt()
    ended = flow.wait_for_state("PREEMPTED", count)
    for job in ended:
        flow.slurm("scontrol", "requeue", job)
    flow.end(head)
    flow.went_on(stage)


def preempted_and_interrupted(flow: Flow, stage: str, count: int) -> None:
    """Preempted in the middle of {stage} (PreemptMode=CANCEL); Ctrl-C, and the same call."""
    flow.partition = "cancelled"
    head = flow.start()
    flow.hold_all(stage, count)
    flow.preempt()
    flow.wait_for_state("PREEMPTED", count)
    head.send_signal(signal.SIGINT)
    flow.end(head, code=1)
    flow.run()
    flow.went_on(stage, **{stage: JOBS[stage] + count})


def node_failed(flow: Flow, stage: str, count: int) -> None:
    """The node goes down in the middle of {stage}; SLURM starts the same job again."""
    flow.partition = "several"
    head = flow.start()
    flow.hold_all(stage, count)
    flow.fail_node()
    flow.end(head)
    flow.went_on(stage)


def node_failed_for_good(flow: Flow, stage: str, count: int) -> None:
    """The node goes down in the middle of {stage}, of jobs that may not be requeued (NODE_FAIL).

    Snakemake submits them again.
    """
    flow.partition = "several"
    flow.change_profile("slurm-requeue:")
    head = flow.start("--slurm-no-requeue")
    flow.hold_all(stage, count)
    flow.fail_node()
    flow.end(head)
    assert list(flow.states().values()).count("NODE_FAIL") == count
    flow.went_on(stage, **{stage: JOBS[stage] + count})


def out_of_memory(flow: Flow, stage: str, count: int) -> None:
    """The kernel kills jobs of {stage}, which request 150 MB. Submitted again with more."""
    flow.partition = "several"
    head = flow.start(memory=f"{stage}:mem_mb=150 + 4000 * (attempt - 1)")
    flow.end(head)
    states = list(flow.states().values())
    flow.hit, flow.resumed = f"{stage}, its start", "its start"
    assert states.count("OUT_OF_MEMORY") == count, states
    flow.made_once(**{stage: JOBS[stage] + count})


def controller_restarted(flow: Flow) -> None:
    """slurmctld is away during recover when Snakemake looks at the queue; the jobs end meanwhile.

    Snakemake waits without end. Ctrl-C, and the same call.
    """
    own = Cluster(flow.folder / "cluster")
    own.up(cpus=4)
    flow.use(own)
    try:
        head = flow.start()
        pid = flow.hold("recover")
        own.stop("slurmctld")
        wait_for(lambda: "Falling back to 'sacct'" in flow.log.read_text("utf-8"), "a look")
        own.start("slurmctld")
        os.kill(pid, signal.SIGCONT)
        wait_for(lambda: "COMPLETED" in flow.states().values() and own.idle(1), "the jobs' end")
        head.send_signal(signal.SIGINT)
        flow.end(head, code=1)
        flow.run()
        flow.resumed = "not stopped"
        flow.made_once()
    finally:
        flow.close()
        own.down()


class Disturbed(NamedTuple):
    """A case of one job (validate) or of several at once (both parts of recover)."""

    function: Callable[[Flow, str, int], None]
    stage: str
    count: int

    def __call__(self, flow: Flow) -> None:
        self.function(flow, self.stage, self.count)


DISTURBANCES = {
    "requeued": requeued,
    "preempted": preempted,
    "preempted-cancel": preempted_for_good,
    "preempted-ctrl-c": preempted_and_interrupted,
    "node-down": node_failed,
    "node-fail": node_failed_for_good,
    "out-of-memory": out_of_memory,
}
DISTURBED = {
    f"{name}-{words}": Disturbed(function, stage, count)
    for name, function in DISTURBANCES.items()
    for words, stage, count in (("one", "validate", 1), ("several", "recover", 2))
}
CASES: dict[str, Callable[[Flow], None]] = {
    "undisturbed": undisturbed,
    "scancel-squeeze": lambda flow: cancelled(flow, "squeeze"),
    "scancel-recover": lambda flow: cancelled(flow, "recover"),
    "scancel-relabel": lambda flow: cancelled(flow, "relabel"),
    "scancel-validate": lambda flow: cancelled(flow, "validate"),
    "time-limit": out_of_time,
    "time-limit-deaf": out_of_grace,
    "snakemake-killed": head_killed,
    "slurmd-killed": slurmd_killed,
    "disk-full": disk_full,
    "two-at-once": two_at_once,
    "slurmctld-restarted": controller_restarted,
    **DISTURBED,
}
TESTED = ("scancel-recover", "snakemake-killed", "preempted-several")  # by make test
FROM_SQUEEZE = (
    "undisturbed",
    "scancel-squeeze",
    "two-at-once",
    "disk-full",
)  # the others begin with its model


def what_happens(name: str) -> str:
    """A case in a sentence or two."""
    case = CASES[name]
    disturbed = isinstance(case, Disturbed)
    text = (case.function if disturbed else case).__doc__ or cancelled.__doc__ or ""
    stage = case.stage if disturbed else name.rsplit("-", maxsplit=1)[-1]
    parts = "both parts of " if disturbed and case.count == 2 else ""
    return " ".join(text.split()).replace("{stage}", parts + stage)


def fill(ballast: Path) -> None:
    """Leave no room on a file system."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


# All of them, and what is written of them
# -----------------------------------------------------------------------------


FLOWS: list[Flow] = []  # of the cases that were begun


@dataclass
class Outcome:
    """What became of a case."""

    case: str
    what: str
    hit: str
    resumed: str
    files: int
    different: list[str]
    seconds: float
    error: str
    log: list[str]

    @property
    def well(self) -> bool:
        """Whether it survived."""
        return not self.error and not self.different

    def row(self) -> str:
        """Its row of the table."""
        equal = f"{self.files} of {self.files}" if self.well else "**no**"
        return (
            f"| {self.case} | {self.what} | {self.hit} | {self.resumed} | {equal} | "
            f"{self.seconds:.0f} |"
        )


def outcome(case: str, folder: Path, cluster: Cluster, reference: Path) -> Outcome:
    """Run a case in a folder of its own and compare what it leaves with `reference`."""
    flow, error, began = (
        Flow(folder, cluster, None if case in FROM_SQUEEZE else reference),
        "",
        time.monotonic(),
    )
    FLOWS.append(flow)
    try:
        CASES[case](flow)
    except Exception as problem:  # a case that fails is a row of the table, and the others go on
        error = f"{type(problem).__name__}: {problem}"
    finally:
        flow.close()
    seconds, different = time.monotonic() - began, differences(folder, reference)
    made = Outcome(
        case,
        what_happens(case),
        flow.hit,
        flow.resumed,
        len(left(folder)),
        different,
        seconds,
        error,
        flow.events(),
    )
    verdict = "as undisturbed" if made.well else error or f"differs: {', '.join(different)}"
    print(
        f"{case}: hit at {made.hit}, went on from {made.resumed}, {seconds:.0f} s: {verdict}",
        flush=True,
    )
    return made


SOAK = "## A soak\n"  # which soak.py writes
PAGE = """\
# What jobs survive

A workflow of six small jobs (squeeze, two parts of recover, relabel, validate, table;
`tests/slurm/flow.py`) on a real SLURM {version} on one machine, through `--profile slurm`. In each
case something happens to it on the way, at a checkpoint in the middle of a stage
(`tests/slurm/survival.py`). Then everything it left (model, shards, label store, run JSON but for
its provenance, table) is compared, byte for byte, with what the stages leave one after the other in
one process, without SLURM and Snakemake. `make slurm-matrix` made this page on {device};
[survival.log](survival.log) has what happened, case by case.

| case | what happens | hit at | went on from | equal files | seconds |
|---|---|---|---|---|---|
{rows}

A job that gets a signal saves a checkpoint, so it goes on from that very step or a later one; a
killed job goes on from its last checkpoint, written every `runtime.checkpoint_seconds`. No finished
stage ran again: each case counts its jobs. Most of the seconds are the executor's waits between two
looks at the queue.

Snakemake does not adopt the jobs of a snakemake that was killed. Cancel them, which has them save
their state, wait until they are gone, take off the lock, and repeat the call:

```bash
grep -h "SLURM run ID" .snakemake/log/*.log | tail -n 1   # RUN_ID: the name of its jobs
scancel --name RUN_ID
squeue --name RUN_ID                                      # until it lists none
snakemake --unlock
snakemake --profile slurm …                               # the same call
```

On a machine without SLURM, `snakemake --unlock` and the same call are enough: a job that is still
at work keeps its lease, and the new one waits for it (`tests/workflow/test_killed.py`).
"""


ROW = re.compile(r"^\| ([\w-]+) \| .*", re.MULTILINE)


def write_page(outcomes: list[Outcome], cluster: Cluster) -> None:
    """docs/survival.md and docs/survival.log; cases that were not run keep their lines there."""
    from cda.engine.provenance import cpu_name

    page, log = ROOT / "docs" / "survival.md", ROOT / "docs" / "survival.log"
    before, soaked, counts = page.read_text(encoding="utf-8").partition(SOAK)
    rows = {found[1]: found[0] for found in ROW.finditer(before)}
    rows |= {one.case: one.row() for one in outcomes}
    version = cluster.run("sinfo", "--version").stdout.split()[-1]
    listed = "\n".join(rows[case] for case in CASES if case in rows)
    text = PAGE.format(version=version, device=cpu_name(), rows=listed)
    page.write_text(f"{text}\n{soaked}{counts}" if soaked else text, encoding="utf-8")
    sections = (part.split("\n", 1) for part in log.read_text(encoding="utf-8").split("== ")[1:])
    events = {case: lines.strip("\n") for case, lines in sections}
    for one in outcomes:
        events[one.case] = "\n".join([*one.log, *([one.error] if one.error else [])])
    parts = [f"== {case}\n{events[case]}\n" for case in CASES if case in events]
    log.write_text("\n".join(parts), encoding="utf-8")


def main(words: list[str]) -> int:
    """Run cases, all by default, and write their rows of the page."""
    page, names = "--page" in words, [word for word in words if word != "--page"]
    if unknown := [name for name in names if name not in CASES]:
        print(
            f"survival: there is no case {unknown[0]}; there is {', '.join(CASES)}", file=sys.stderr
        )
        return 2
    with (
        tempfile.TemporaryDirectory(prefix="cda-survival-") as place,
        started(Path(place)) as cluster,
    ):
        plain(Path(place) / "plain")
        pool, done = ThreadPoolExecutor(TOGETHER), []
        running = [
            pool.submit(outcome, n, Path(place) / n, cluster, Path(place) / "plain")
            for n in names or CASES
        ]
        try:
            for _ in as_completed(running):
                done = [one.result() for one in running if one.done()]
                if page:
                    write_page(done, cluster)
        except BaseException:  # an interrupt, or a mistake in this file
            traceback.print_exc()
            _abandon(Path(place), cluster)
    return 0 if all(one.well for one in done) else 1


def _abandon(place: Path, cluster: Cluster) -> None:
    """Leave nothing running, and no thread to wait for."""
    try:
        for flow in FLOWS:
            flow.close()
        _end(place, cluster)
        shutil.rmtree(place, ignore_errors=True)
    finally:
        os._exit(128 + signal.SIGINT)


@contextmanager
def started(folder: Path, nodes: Sequence[str] = tuple(DISTURBED)) -> Iterator[Cluster]:
    """A cluster of the test's own, whose jobs have a short grace and never wait for a core."""
    cluster = Cluster(folder / "slurm")
    cluster.up(cpus=16, memory=200_000, kill_wait=10, nodes=nodes, limit_memory=bool(nodes))
    try:
        yield cluster
    finally:
        _end(folder, cluster)


def _end(folder: Path, cluster: Cluster) -> None:
    cluster.down()
    for mounted in (*folder.glob("*/artifacts"), *folder.glob("*/*/artifacts")):
        if mounted.is_mount():
            subprocess.run(["umount", str(mounted)], check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
