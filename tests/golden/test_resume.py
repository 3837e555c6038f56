"""Whatever kills a job, and whenever: the next start ends with the bytes of an undisturbed run.

Jobs are processes of their own. They are forked from one that has loaded torch already, which is this file run as a
program: a job then takes a second instead of three. It dies by its own hand at an exact moment: before the n-th forward
pass, or before the n-th change to a file or folder. One test uses the installed `cda` and a signal from outside.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

STAGES = ("squeeze", "recover", "relabel", "validate")
EVERY_STEP = ("--config", "runtime.checkpoint_seconds=0")
SIGKILL, SIGTERM, SIGSTOP = int(signal.SIGKILL), int(signal.SIGTERM), int(signal.SIGSTOP)
Moment = tuple[str, int]  # "forward" or "file", and which one


# The process that jobs are forked from ---------------------------------------------------------------------------------


def serve() -> None:
    """A request a line on stdin, an answer a line on stdout: start a job, or wait for one."""
    import cda.stages.recover
    import cda.stages.relabel
    import cda.stages.squeeze
    import cda.stages.validate  # noqa: F401 (loaded for the jobs)

    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], os.WUNTRACED)
            answer = "stopped" if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork() or job(request)
        print(json.dumps(answer), flush=True)


def job(request: dict[str, Any]) -> None:
    from cda.cli import main

    os.chdir(request["cwd"])
    for stream in (1, 2):
        os.dup2(os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    if request["limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], request["limit"]))
    code = 99
    try:
        moments = count_moments(*request["die"])
        code = main(request["argv"])
        print(f"file moments: {moments['file']}")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def count_moments(kind: str, wanted: int, number: int) -> dict[str, int]:
    """Count this process's moments, and send it signal `number` before the wanted one."""
    from torch.nn.modules.module import register_module_forward_pre_hook

    from cda.models import ResNet

    seen = {"forward": 0, "file": 0}

    def tick(what: str) -> None:
        seen[what] += 1
        if (what, seen[what]) == (kind, wanted):
            os.kill(os.getpid(), number)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir") or (
            writes and str(arguments[0]).startswith(("artifacts", "results"))
        ):
            tick("file")

    register_module_forward_pre_hook(lambda module, _: tick("forward") if isinstance(module, ResNet) else None)
    sys.addaudithook(audit)
    return seen


# What tests do with it -------------------------------------------------------------------------------------------------


@dataclass
class Ended:
    code: int | str
    log: str

    @property
    def said(self) -> list[str]:
        """Its lines, but progress and our own count."""
        return [
            line for line in self.log.splitlines() if " spent, " not in line and not line.startswith("file moments")
        ]


class Jobs:
    def __init__(self, logs: Path) -> None:
        self.logs, self.count = logs, 0
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **request: Any) -> Any:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps(request), file=self.server.stdin, flush=True)
        return json.loads(self.server.stdout.readline())

    def start(self, cwd: Path, argv: tuple[str, ...], die: Moment, number: int, limit: int) -> tuple[int, Path]:
        self.count += 1
        log = self.logs / f"{self.count}.log"
        return self.ask(cwd=str(cwd), argv=argv, die=[*die, number], limit=limit, log=str(log)), log

    def run(self, cwd: Path, *argv: str, die: Moment = ("file", 0), number: int = SIGKILL, limit: int = 0) -> Ended:
        """`cda ARGV` in `cwd`, until it ends."""
        pid, log = self.start(cwd, (*argv, *EVERY_STEP), die, number, limit)
        return Ended(self.ask(wait=pid), log.read_text(encoding="utf-8"))


@dataclass
class Chain:
    """The four stages of one cell, finished once; tests copy its folder and make a stage again."""

    folder: Path
    runs: dict[str, Any]
    moments: dict[str, int]

    def output(self, stage: str, folder: Path) -> Path:
        run = self.runs[stage]
        places = {"squeeze": "", "recover": "part-0", "relabel": "labels", "validate": "seed-0.json"}
        top = "results/runs" if stage == "validate" else f"artifacts/{stage}"
        return folder / top / run.dataset / run.id / places[stage]

    def work(self, stage: str, folder: Path) -> Path:
        return folder / "artifacts" / "work" / stage / "digits" / self.runs[stage].id

    def without(self, stage: str, folder: Path) -> Path:
        """A copy of the chain in `folder` that lacks the stage's output."""
        shutil.copytree(self.folder, folder)
        output = self.output(stage, folder)
        output.unlink() if output.is_file() else shutil.rmtree(output)
        return folder

    def command(self, stage: str) -> tuple[str, ...]:
        return (stage, "--run", self.runs[stage].id)


def contents(output: Path) -> dict[str, Any]:
    """Every file below (or at) `output`: its bytes, of JSON what it says outside its provenance."""
    files = [output] if output.is_file() else sorted(path for path in output.rglob("*") if path.is_file())
    return {str(path.relative_to(output)): content(path) for path in files}


def content(path: Path) -> Any:
    if path.suffix != ".json":
        return path.read_bytes()
    told = json.loads(path.read_text(encoding="utf-8"))
    assert told.pop("provenance")
    return told


def images_of(shard: Path) -> dict[str, bytes]:
    with tarfile.open(shard) as tar:
        return {name: tar.extractfile(name).read() for name in tar.getnames() if name.endswith(".png")}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    started = Jobs(tmp_path_factory.mktemp("logs"))
    yield started
    started.server.stdin.close()
    assert started.server.wait(10) == 0


@pytest.fixture(scope="module")
def chain(jobs: Jobs, config_tree: Any, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    made = Chain(tmp_path_factory.mktemp("chain"), {}, {})
    with contextlib.chdir(made.folder):
        made.runs = config_tree().runs(ipc=2)
    for stage in STAGES:
        ended = jobs.run(made.folder, *made.command(stage))
        assert ended.code == 0, ended.log
        made.moments[stage] = int(ended.log.rpartition("file moments: ")[2])
    return made


# Killed and started again ----------------------------------------------------------------------------------------------

KILLS: dict[str, list[Moment]] = {
    "squeeze": [("forward", 3), ("file", 9), ("forward", 4)],
    "recover": [("forward", 5), ("file", 20), ("forward", 8), ("file", 44)],
    "relabel": [("file", 4), ("forward", 3), ("forward", 5)],
    "validate": [("forward", 2), ("file", 11), ("forward", 5)],
}
STOPS: dict[str, list[Moment]] = {
    "squeeze": [("forward", 4), ("file", 10)],
    "recover": [("forward", 2), ("file", 31), ("forward", 9)],
    "relabel": [("forward", 2), ("forward", 1)],
    "validate": [("forward", 7), ("file", 5)],
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_job_killed_several_times_leaves_the_bytes_of_an_undisturbed_one(stage, chain, jobs, tmp_path):
    folder = chain.without(stage, tmp_path / "again")
    for moment in KILLS[stage]:
        ended = jobs.run(folder, *chain.command(stage), die=moment)
        assert ended.code == -SIGKILL, ended.log
        assert not chain.output(stage, folder).exists() or not contents(chain.output(stage, folder))
    ended = jobs.run(folder, *chain.command(stage))
    assert (ended.code, ended.said) == (0, [])
    assert contents(chain.output(stage, folder)) == contents(chain.output(stage, chain.folder))


@pytest.mark.parametrize("stage", STAGES)
def test_a_job_told_to_stop_says_one_line_and_goes_on_to_the_same_bytes(stage, chain, jobs, tmp_path):
    folder = chain.without(stage, tmp_path / "again")
    for moment in STOPS[stage]:
        ended = jobs.run(folder, *chain.command(stage), die=moment, number=SIGTERM)
        assert ended.code == 143, ended.log
        assert ended.said == ["cda: stopped by SIGTERM; what is done is saved, start it again to go on"]
        assert not chain.output(stage, folder).exists() or not contents(chain.output(stage, folder))
    assert jobs.run(folder, *chain.command(stage)).code == 0
    assert contents(chain.output(stage, folder)) == contents(chain.output(stage, chain.folder))
    assert not chain.work(stage, folder).is_dir() or not list(chain.work(stage, folder).iterdir())


@pytest.mark.parametrize(
    ("stage", "before_the_end"), [("squeeze", 7), ("recover", 22), ("relabel", 8), ("validate", 5)]
)
def test_killed_at_any_change_of_a_file_while_it_finishes(stage, before_the_end, chain, jobs, tmp_path):
    wanted = contents(chain.output(stage, chain.folder))
    nearly = chain.without(stage, tmp_path / "nearly")
    ended = jobs.run(nearly, *chain.command(stage), die=("file", chain.moments[stage] - before_the_end))
    assert ended.code == -SIGKILL, ended.log
    moment = 0
    while ended.code == -SIGKILL:
        moment += 2
        folder = shutil.copytree(nearly, tmp_path / str(moment))
        ended = jobs.run(folder, *chain.command(stage), die=("file", moment))
        output = chain.output(stage, folder)
        left = contents(output) if output.exists() else {}
        assert left.items() <= wanted.items(), f"half written at moment {moment}"
        if ended.code == -SIGKILL:
            assert jobs.run(folder, *chain.command(stage)).code == 0
        assert contents(output) == wanted, f"killed at moment {moment}"
    assert ended.code == 0, ended.log


def test_the_installed_command_stops_with_status_143(chain, tmp_path):
    folder = chain.without("recover", tmp_path / "again")
    state = chain.work("recover", folder) / "part-0" / "state.safetensors"
    program = Path(sys.executable).with_name("cda")
    with (tmp_path / "log").open("w") as log:
        started = subprocess.Popen([program, *chain.command("recover"), *EVERY_STEP], cwd=folder, stderr=log)
    until = time.monotonic() + 60
    while not state.exists() and time.monotonic() < until:
        time.sleep(0.002)
    started.send_signal(SIGTERM)
    assert started.wait(30) == 143
    assert Ended(143, (tmp_path / "log").read_text()).said == [
        "cda: stopped by SIGTERM; what is done is saved, start it again to go on"
    ]
    assert state.exists()
    assert not chain.output("recover", folder).exists()


def test_a_damaged_checkpoint_costs_its_block_and_not_the_result(chain, jobs, tmp_path):
    folder = chain.without("recover", tmp_path / "again")
    assert jobs.run(folder, *chain.command("recover"), die=("forward", 10)).code == -SIGKILL
    state = chain.work("recover", folder) / "part-0" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-7])
    ended = jobs.run(folder, *chain.command("recover"))
    assert ended.code == 0
    (line,) = ended.said
    assert "damaged checkpoint" in line
    assert contents(chain.output("recover", folder)) == contents(chain.output("recover", chain.folder))


def test_a_second_job_at_the_same_work_is_refused_and_harms_nothing(chain, jobs, tmp_path):
    folder = chain.without("recover", tmp_path / "again")
    first, _ = jobs.start(folder, (*chain.command("recover"), *EVERY_STEP), ("forward", 5), SIGSTOP, 0)
    assert jobs.ask(wait=first) == "stopped"
    second = jobs.run(folder, *chain.command("recover"))
    assert second.code == 1
    (line,) = second.said
    assert "lease.json: another job works here" in line
    os.kill(first, signal.SIGCONT)
    assert jobs.ask(wait=first) == 0
    assert contents(chain.output("recover", folder)) == contents(chain.output("recover", chain.folder))


# As killed as it gets: a full disk -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "limit"), [("squeeze", 200_000), ("recover", 4_000), ("relabel", 600), ("validate", 200_000)]
)
def test_a_disk_that_fills_ends_in_one_line_and_the_next_start_goes_on(stage, limit, chain, jobs, tmp_path):
    folder = chain.without(stage, tmp_path / "again")
    ended = jobs.run(folder, *chain.command(stage), limit=limit)
    assert ended.code == 1, ended.log
    (line,) = ended.said
    assert line.startswith("cda: artifacts/")
    assert "cannot be written" in line
    assert "make room" in line
    assert jobs.run(folder, *chain.command(stage)).code == 0
    assert contents(chain.output(stage, folder)) == contents(chain.output(stage, chain.folder))


# A shard depends on its run and its index alone ------------------------------------------------------------------------


def test_a_shard_is_the_same_whoever_made_it_and_when(chain, tmp_path):
    folder = chain.without("recover", tmp_path / "again")
    subprocess.run([sys.executable, "-m", "cda", *chain.command("recover")], cwd=folder, check=True)
    assert contents(chain.output("recover", folder)) == contents(chain.output("recover", chain.folder))


@pytest.mark.parametrize("lost", ["shard-0-class-5", "shard-1-class-0"])
def test_a_block_made_alone_has_the_bytes_it_has_among_others(lost, chain, jobs, tmp_path):
    folder = chain.without("recover", tmp_path / "again")
    ended = jobs.run(folder, *chain.command("recover"), die=("file", chain.moments["recover"] - 20))
    assert ended.code == -SIGKILL, ended.log
    blocks = chain.work("recover", folder) / "part-0" / "blocks"
    assert len(list(blocks.glob("*-class-?.npy"))) == 4
    (blocks / f"{lost}.npy").unlink()
    assert jobs.run(folder, *chain.command("recover")).code == 0
    assert contents(chain.output("recover", folder)) == contents(chain.output("recover", chain.folder))


def test_pixels_do_not_depend_on_how_shards_are_shared_out_among_jobs(chain, config_tree, jobs, tmp_path, monkeypatch):
    folder = chain.without("recover", tmp_path / "again")
    monkeypatch.chdir(folder)
    alone = config_tree()
    alone.edit("datasets/digits.yaml", "shards_per_job: 2", "shards_per_job: 1")
    run = alone.runs(ipc=2)["recover"]
    assert run.id != chain.runs["recover"].id
    together = chain.output("recover", chain.folder)
    for part in (0, 1):
        assert jobs.run(folder, "recover", "--run", run.id, "--part", str(part)).code == 0
        made = folder / "artifacts/recover/digits" / run.id / f"part-{part}" / f"ipc-00{part}.tar"
        assert len(images_of(made)) == 10
        assert images_of(made) == images_of(together / made.name)


if __name__ == "__main__":
    serve()
