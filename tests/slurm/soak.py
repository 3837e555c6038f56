"""A night's work in small: flow.py's workflow on a real SLURM, over and over, while faults are
injected at random: `make soak MINUTES=45`.

Four lanes work at a time, each in a folder whose `artifacts/` is a small file system of its own. A
round of a lane starts from nothing. While its snakemake works, faults hit it; when it ends without
success, the soak does what the printed lines say (it deletes the file that was refused, takes off a
lock) and makes the same call again. A round is over once a call succeeds that no fault hit. Then
the run JSON, but for its provenance, and the table must be those of an undisturbed run.

Which fault comes when is drawn from the printed seed; what it hits depends on the machine's speed.
Usage: python -m tests.slurm.soak MINUTES [SEED]; needs root. `--page` writes docs/survival.md
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.slurm.cluster import Cluster
from tests.slurm.flow import ROOT, TARGET, Flow, contents, plain
from tests.slurm.survival import SOAK, fill, started

LANES = 4
FAULTS = 6  # of a round at most; then it may end
PAUSE = (3.0, 20.0)  # seconds between two faults
PATIENCE = 600.0  # seconds after which a call that no fault hits hangs
CALLS = 15  # of a round at most
LINE = re.compile(r"^\s*cda: (.*)$", re.MULTILINE)
REFUSED = re.compile(r"^(\S+?): .*\bdelete (it|\S+/\S+)\b")


@dataclass
class Tally:
    """What all lanes did to the workflow, and what came of it."""

    faults: Counter[str] = field(default_factory=Counter)
    followed: Counter[str] = field(default_factory=Counter)  # printed lines, by what they ask for
    rounds: int = 0
    calls: int = 0
    jobs: int = 0
    failures: list[str] = field(default_factory=list)


class Lane:
    """One folder after another, each with a workflow that faults hit."""

    def __init__(self, place: Path, cluster: Cluster, draws: random.Random, tally: Tally) -> None:
        self.place, self.cluster, self.draws, self.tally = place, cluster, draws, tally
        self.expected = results(place.parent / "plain")
        self.flow: Flow
        self.kinds: dict[str, Callable[[], bool]] = {
            "SIGKILL to a stage": self.kill_stage,
            "SIGKILL to snakemake": self.kill_head,
            "scancel": self.cancel,
            "scontrol requeue": self.requeue,
            "full disk": self.fill_disk,
            "truncated file": self.truncate,
            "file times in the past": lambda: self.set_times(self.draws.uniform(0, 1.6e9)),
            "file times now": lambda: self.set_times(time.time()),
        }

    def work(self, end: float) -> None:
        """Do rounds until `end` on the monotonic clock."""
        number = 0
        while time.monotonic() < end:
            number += 1
            folder = self.place / f"round-{number}"
            self.flow = Flow(folder, self.cluster)
            self.flow.mount("40m")
            try:
                self.play(end)
            except Exception as error:  # the other rounds go on
                self.fail(f"{type(error).__name__}: {error}")
            finally:
                self.flow.close()
                self.flow.cancel_all(self.flow.run_id)
                self.tally.jobs += sum(self.flow.jobs().values())
                subprocess.run(["umount", "--lazy", str(folder / "artifacts")], check=True)
                if not any(str(folder) in line for line in self.tally.failures):
                    shutil.rmtree(folder, ignore_errors=True)

    def fail(self, what: str) -> None:
        """Note a failure."""
        line = f"{self.flow.folder} (call {self.flow.calls}): {what}"
        print(line, flush=True)
        self.tally.failures.append(line)

    def play(self, end: float) -> None:
        """One round: calls until one succeeds that no fault hit."""
        remaining, output = self.draws.randint(FAULTS // 2, FAULTS), ""
        for _ in range(CALLS):
            remaining = remaining if time.monotonic() < end else 0
            undisturbed, head = remaining == 0, self.flow.start()
            self.tally.calls += 1
            remaining = self.disturb(head, remaining)
            try:
                head.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                return self.fail(f"no end within {PATIENCE:.0f} s")
            output = self.flow.log.read_text(encoding="utf-8")
            if "Traceback (most recent call last)" in output:
                self.fail(f"a traceback:\n{output}")
            if head.returncode == 0 and undisturbed:
                return self.compare()
            if head.returncode:
                self.follow(output, killed=head.returncode == -signal.SIGKILL)
        return self.fail(f"not done after {CALLS} calls:\n{output}")

    def compare(self) -> None:
        """Compare what a round left with an undisturbed run's."""
        found = results(self.flow.folder)
        names = found.keys() | self.expected.keys()
        wrong = [name for name in names if found.get(name) != self.expected.get(name)]
        self.tally.rounds += 1
        if wrong:
            self.fail(f"differs from an undisturbed run: {', '.join(wrong)}")

    def disturb(self, head: subprocess.Popen[bytes], remaining: int) -> int:
        """Inject faults while a call works; how many of the round remain."""
        while remaining and head.poll() is None:
            pause = time.monotonic() + self.draws.uniform(*PAUSE)
            while time.monotonic() < pause and head.poll() is None:
                time.sleep(0.1)
            for kind in self.draws.sample(list(self.kinds), len(self.kinds)):
                with contextlib.suppress(OSError, AssertionError, ValueError):  # it was just gone
                    if head.poll() is None and self.kinds[kind]():
                        self.tally.faults[kind] += 1
                        remaining -= 1
                        break
        return 0 if head.poll() == 0 else remaining

    # What can happen

    def kill_stage(self) -> bool:
        """SIGKILL to a process at work."""
        leases = sorted(self.flow.folder.glob("artifacts/work/*/*/*/*/lease.json"))
        if not leases:
            return False
        lease = json.loads(self.draws.choice(leases).read_text(encoding="utf-8"))
        os.kill(int(lease["pid"]), signal.SIGKILL)
        return True

    def kill_head(self) -> bool:
        """SIGKILL to snakemake; `follow` then does what docs/cluster.md says."""
        self.flow.heads[-1].kill()
        self.flow.heads[-1].wait()
        return True

    def cancel(self) -> bool:
        """`scancel` of a running job."""
        return self._to_job("scancel")

    def requeue(self) -> bool:
        """`scontrol requeue` of a running job."""
        return self._to_job("scontrol", "requeue")

    def _to_job(self, *command: str) -> bool:
        jobs = [job for job, state in sorted(self.flow.states().items()) if state == "RUNNING"]
        if jobs:
            self.flow.slurm(*command, self.draws.choice(jobs))
        return bool(jobs)

    def fill_disk(self) -> bool:
        """No room in `artifacts/` for some seconds."""
        ballast = self.flow.folder / "artifacts" / "ballast"
        fill(ballast)
        time.sleep(self.draws.uniform(2, 15))
        ballast.unlink()
        return True

    def truncate(self) -> bool:
        """Cut a finished file."""
        files = [path for path in self._finished() if path.is_file() and path.stat().st_size]
        if not files:
            return False
        path = self.draws.choice(files)
        os.truncate(path, self.draws.choice([0, self.draws.randrange(path.stat().st_size)]))
        return True

    def set_times(self, seconds: float) -> bool:
        """Give some finished files and folders another time."""
        paths = self._finished()
        for path in self.draws.sample(paths, (len(paths) + 1) // 2):
            os.utime(path, (seconds, seconds))
        return bool(paths)

    def _finished(self) -> list[Path]:
        places = ["artifacts/squeeze", "artifacts/recover", "artifacts/relabel", "results/runs"]
        found = [path for place in places for path in (self.flow.folder / place).rglob("*")]
        return sorted(path for path in found if not path.name.startswith("."))

    # What a user does then

    def follow(self, output: str, killed: bool) -> None:
        """Do what the printed lines say, before the same call."""
        if killed:
            self.tally.followed["scancel, --unlock"] += 1
            self.flow.cancel_all(self.flow.run_id)
            self.flow.unlock()
        for line in set(LINE.findall(output)):
            refused = REFUSED.match(line)
            if not refused:
                continue
            path, what = self.flow.folder / refused[1], refused[2]
            if what != "it":
                path = self.flow.folder / what
            self.tally.followed["delete " + re.sub(r"\S+/\S+", "FOLDER", what)] += 1
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def results(folder: Path) -> dict[str, object]:
    """The run JSONs, but for their provenance, and the table."""
    return contents(folder, folder / "results")


def soak(minutes: float, seed: int) -> Tally:
    """All lanes, on a cluster of their own."""
    tally, end = Tally(), time.monotonic() + 60 * minutes
    with (
        tempfile.TemporaryDirectory(prefix="cda-soak-") as place,
        started(Path(place), nodes=()) as cluster,
    ):
        plain(Path(place) / "plain")
        lanes = []
        for number in range(LANES):
            (Path(place) / f"lane-{number}").mkdir()
            draws = random.Random(f"{seed} {number}")
            lanes.append(Lane(Path(place) / f"lane-{number}", cluster, draws, tally))
        with ThreadPoolExecutor(LANES) as pool:
            list(pool.map(lambda lane: lane.work(end), lanes))
    return tally


def summary(tally: Tally, minutes: float, seed: int) -> str:
    """The counts, as Markdown."""
    rows = "\n".join(f"| {kind} | {count} |" for kind, count in sorted(tally.faults.items()))
    followed = ", ".join(f"{what}: {count}" for what, count in sorted(tally.followed.items()))
    failures = "".join(f"\n- {line.splitlines()[0]}" for line in tally.failures)
    return f"""\
{minutes:g} minutes with seed {seed}: {tally.rounds} rounds ended, in {tally.calls} calls of
snakemake and {tally.jobs} SLURM jobs. {sum(tally.faults.values())} faults were injected;
{len(tally.failures)} rounds failed.{failures}

| fault | count |
|---|---|
{rows}

What printed lines asked for, and the soak did: {followed or "nothing"}.
"""


def main(arguments: list[str]) -> int:
    """Soak, print the counts, and on request write them into docs/survival.md."""
    numbers = [word for word in arguments if word != "--page"]
    minutes, seed = float(numbers[0]), int(numbers[1]) if len(numbers) > 1 else int(time.time())
    print(f"soak of {TARGET}: {minutes:g} minutes, seed {seed}", flush=True)
    tally = soak(minutes, seed)
    text = summary(tally, minutes, seed)
    print(text)
    if "--page" in arguments:
        page = ROOT / "docs" / "survival.md"
        before = page.read_text(encoding="utf-8").split(SOAK)[0].rstrip("\n")
        page.write_text(f"{before}\n\n{SOAK}\n{INTRODUCTION}\n{text}", encoding="utf-8")
    return int(bool(tally.failures) or not tally.rounds)


INTRODUCTION = """\
`make soak MINUTES=45` works on the same workflow, from nothing, over and over, in four folders at
a time whose `artifacts/` is a tmpfs of 40 MB (`tests/slurm/soak.py`). Faults hit it at random
times. When a call of snakemake fails, the soak does what the printed lines say and makes the same
call again; once a call succeeds that no fault hit, every run JSON, but for its provenance, and
the table must be those of an undisturbed run. CI does three minutes of it.
"""

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
