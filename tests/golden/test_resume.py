"""Whatever kills a job, and whenever: the next start ends with the bytes of an undisturbed run.

Jobs are processes of their own. They are forked from one that has loaded torch already, which is
this file run as a program: a job then takes less than a second instead of three. It is killed at an
exact moment: before its n-th forward pass, or before the n-th change to a file whose path holds
a text. Two tests start the program itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import pickle
import re
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
Moment = tuple[str, int]  # "forward" or a text in the path of a file, and which one
NEVER: Moment = ("", 0)


# The process that jobs are forked from
# --------------------------------------------------------------------------------


def serve() -> None:
    """A request a line on stdin, an answer a line on stdout: start a job, or wait for one."""
    import torch  # noqa: F401 (loaded once for all jobs)

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
    from cda.engine import lock

    os.chdir(request["cwd"])
    for stream in (1, 2):
        os.dup2(os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    if request["limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], request["limit"]))
    code = 99
    try:
        signal_at(*request["moment"])
        lock.PATIENCE_SECONDS = request["patience"]
        code = main(request["argv"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def signal_at(what: str, nth: int, number: int) -> None:
    """Send this process signal `number` at a moment to come."""
    from torch.nn.modules.module import register_module_forward_pre_hook

    from cda.method.networks import ResNet

    count = itertools.count(1)

    def changes(event: str, arguments: tuple[Any, ...]) -> str:
        """The paths that an audited event is about to change."""
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        changed = writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
        return " ".join(map(str, arguments[:2])) if changed else ""

    def forward(module: Any, _: Any) -> None:
        if isinstance(module, ResNet) and next(count) == nth:
            os.kill(os.getpid(), number)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if what in changes(event, arguments) and next(count) == nth:
            os.kill(os.getpid(), number)

    if what == "forward":
        register_module_forward_pre_hook(forward)
    elif what:
        sys.addaudithook(audit)


# What tests do with it
# ------------------------------------------------------------------------------------------------


@dataclass
class Ended:
    code: int | str
    log: str

    @property
    def lines(self) -> list[str]:
        """Its output lines, without those of progress and of a missing compiler."""
        return [
            line
            for line in self.log.splitlines()
            if not re.search(r" spent, | going on from | done already$|^no C compiler ", line)
        ]

    @property
    def went_on(self) -> bool:
        """Whether it logged that it continued what an earlier start had done."""
        return bool(
            re.search(
                r" going on from (epoch|step) \d+ of | blocks are done already$",
                self.log,
                re.MULTILINE,
            )
        )


class Jobs:
    def __init__(self, logs: Path) -> None:
        self.logs, self.count = logs, 0
        command = [sys.executable, __file__]
        self.server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def request(self, **request: Any) -> Any:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps(request), file=self.server.stdin, flush=True)
        return json.loads(self.server.stdout.readline())

    def start(
        self,
        cwd: Path,
        argv: tuple[str, ...],
        moment: Moment,
        number: int,
        limit: int,
        patience: float = 0.0,
    ) -> tuple[int, Path]:
        self.count += 1
        log = self.logs / f"{self.count}.log"
        values = {
            "cwd": str(cwd),
            "argv": argv,
            "moment": [*moment, number],
            "limit": limit,
            "log": str(log),
        }
        return self.request(**values, patience=patience), log

    def run(
        self,
        cwd: Path,
        argv: tuple[str, ...],
        kill: Moment = NEVER,
        number: int = SIGKILL,
        limit: int = 0,
    ) -> Ended:
        """`cda ARGV` in `cwd` until it ends, with signal `number` at a moment or no file larger
        than `limit`.
        """
        pid, log = self.start(cwd, argv, kill, number, limit)
        return Ended(self.request(wait=pid), log.read_text(encoding="utf-8"))

    def finish(self, cwd: Path, argv: tuple[str, ...]) -> Ended:
        ended = self.run(cwd, argv)
        assert ended.code == 0, ended.log
        return ended


@dataclass
class Chain:
    """The four stages of one cell, made once; tests copy its folder and make a stage again."""

    folder: Path
    runs: dict[str, Any]

    def command(self, stage: str) -> tuple[str, ...]:
        return (stage, "--run", self.runs[stage].id, *EVERY_STEP)

    def output(self, stage: str, folder: Path) -> Path:
        run = self.runs[stage]
        name = {"squeeze": "", "recover": "part-0", "relabel": "labels", "validate": "seed-0.json"}[
            stage
        ]
        top = "results/runs" if stage == "validate" else f"artifacts/{stage}"
        return folder / top / "digits" / run.id / name

    def work(self, stage: str, folder: Path) -> Path:
        name = {"squeeze": "model", "recover": "part-0", "relabel": "labels", "validate": "seed-0"}[
            stage
        ]
        return folder / "artifacts" / "work" / stage / "digits" / self.runs[stage].id / name

    def without(self, stage: str, folder: Path) -> Path:
        """A copy of the chain at `folder`, without the stage's output."""
        shutil.copytree(self.folder, folder)
        output = self.output(stage, folder)
        shutil.rmtree(output if stage == "squeeze" else output.parent)
        return folder

    def made(self, stage: str, folder: Path) -> dict[str, Any]:
        """Every file of the stage's output in `folder`, litter too.

        Its bytes, of a JSON all but its provenance.
        """
        output = self.output(stage, folder)
        place = output if stage == "squeeze" else output.parent
        return {
            str(path.relative_to(place)): content(path)
            for path in sorted(place.rglob("*"))
            if path.is_file()
        }

    def wanted(self, stage: str) -> dict[str, Any]:
        return self.made(stage, self.folder)


def content(path: Path) -> Any:
    if path.suffix != ".json":
        return path.read_bytes()
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record.pop("provenance")
    return record


def pngs(shard: Path) -> dict[str, bytes]:
    with tarfile.open(shard) as tar:
        return {
            member.name: tar.extractfile(member).read()
            for member in tar
            if member.name.endswith(".png")
        }  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    started = Jobs(tmp_path_factory.mktemp("logs"))
    yield started
    assert started.server.stdin is not None
    started.server.stdin.close()
    assert started.server.wait(10) == 0


@pytest.fixture(scope="module")
def chain(jobs: Jobs, config_tree: Any, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("chain")
    with contextlib.chdir(folder):
        tree = config_tree()
        tree.few_images()
        tree.edit("recipes/digits.yaml", "batch_size: 256", "batch_size: 10")
        made = Chain(folder, tree.runs(ipc=2))
    for stage in STAGES:
        jobs.finish(folder, made.command(stage))
    return made


# Killed and started again
# ---------------------------------------------------------------------------------------------

KILLS: dict[str, list[Moment]] = {
    "squeeze": [("forward", 3), ("state.safetensors", 3), ("forward", 8)],
    "recover": [
        ("forward", 5),
        ("state.safetensors", 6),
        ("step-3.npy", 2),
        ("forward", 8),
        (".json", 3),
    ],
    "relabel": [("logits.npy", 1), ("forward", 3), ("forward", 2)],
    "validate": [("forward", 2), ("state.safetensors", 7), ("forward", 8)],
}
STOPS: dict[str, list[Moment]] = {
    "squeeze": [("forward", 4), ("state.safetensors", 7)],
    "recover": [("forward", 2), ("state.safetensors", 9), ("forward", 9)],
    "relabel": [("forward", 2), ("forward", 1)],
    "validate": [("forward", 7), ("state.safetensors", 6)],
}
STOPPED = "cda: stopped by SIGTERM; what is done is saved, start it again to go on"


@pytest.mark.parametrize("stage", STAGES)
def test_a_job_killed_again_and_again_leaves_the_bytes_of_an_undisturbed_one(
    stage, chain, jobs, tmp_path
):
    folder = chain.without(stage, tmp_path / "again")
    for moment in KILLS[stage]:
        ended = jobs.run(folder, chain.command(stage), kill=moment)
        assert ended.code == -SIGKILL, ended.log
        assert chain.made(stage, folder) == {}
    ended = jobs.finish(folder, chain.command(stage))
    assert (ended.lines, ended.went_on) == ([], True)
    assert chain.made(stage, folder) == chain.wanted(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stopped_job_prints_one_line_and_continues_to_the_same_bytes(
    stage, chain, jobs, tmp_path
):
    folder = chain.without(stage, tmp_path / "again")
    for moment in STOPS[stage]:
        ended = jobs.run(folder, chain.command(stage), kill=moment, number=SIGTERM)
        assert (ended.code, ended.lines) == (143, [STOPPED])
        assert chain.made(stage, folder) == {}
    jobs.finish(folder, chain.command(stage))
    assert chain.made(stage, folder) == chain.wanted(stage)
    assert not chain.work(stage, folder).exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_other_signals_stop_a_job_too_and_set_the_exit_status(number, code, chain, jobs, tmp_path):
    folder = chain.without("recover", tmp_path / "again")
    ended = jobs.run(folder, chain.command("recover"), kill=("forward", 3), number=int(number))
    assert (ended.code, ended.lines) == (code, [STOPPED.replace("SIGTERM", number.name)])


LATE = {"squeeze": 10, "recover": 15, "relabel": 4, "validate": 10}


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_job_does_not_start_from_scratch(stage, chain, jobs, tmp_path):
    folder = chain.without(stage, tmp_path / "again")
    late = ("forward", LATE[stage])
    assert jobs.run(folder, chain.command(stage), kill=late).code == -SIGKILL
    assert jobs.run(folder, chain.command(stage), kill=late).code == 0  # less than that was left
    assert chain.made(stage, folder) == chain.wanted(stage)


FIRST_OF_OUTPUT = {
    "squeeze": "artifacts/squeeze",
    "recover": "/out",
    "relabel": "/out",
    "validate": "results/runs",
}


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_any_change_of_a_file_while_it_finishes(stage, chain, jobs, tmp_path):
    wanted = chain.wanted(stage)
    complete = [{}, wanted]
    if stage == "squeeze":  # two files, the description last
        complete.append({"model.safetensors": wanted["model.safetensors"]})
    nearly = chain.without(stage, tmp_path / "nearly")
    ended = jobs.run(nearly, chain.command(stage), kill=(FIRST_OF_OUTPUT[stage], 1))
    for moment in itertools.count(1, 5 if stage == "recover" else 4):
        if ended.code != -SIGKILL:
            break
        folder = shutil.copytree(nearly, tmp_path / str(moment))
        ended = jobs.run(folder, chain.command(stage), kill=("s/", moment))
        left = {
            name: file
            for name, file in chain.made(stage, folder).items()
            if not name.startswith(".")
        }
        assert left in complete, f"half written at moment {moment}"
        jobs.finish(folder, chain.command(stage))
        assert chain.made(stage, folder) == wanted, f"killed at moment {moment}"
    assert (ended.code, moment > 3) == (0, True), ended.log


def test_the_program_stops_with_status_143(chain, tmp_path):
    folder = chain.without("recover", tmp_path / "again")
    program = Path(sys.executable).with_name("cda")
    with (tmp_path / "log").open("w") as log:
        started = subprocess.Popen([program, *chain.command("recover")], cwd=folder, stderr=log)
    until = time.monotonic() + 60
    while (
        not list(folder.glob("artifacts/work/recover/*/*/*/state.safetensors"))
        and time.monotonic() < until
    ):
        time.sleep(0.002)
    started.send_signal(SIGTERM)
    assert started.wait(30) == 143
    assert Ended(143, (tmp_path / "log").read_text(encoding="utf-8")).lines == [STOPPED]
    assert (chain.work("recover", folder) / "state.safetensors").exists()
    assert chain.made("recover", folder) == {}


def test_a_damaged_checkpoint_costs_its_block_and_not_the_result(chain, jobs, tmp_path):
    folder = chain.without("recover", tmp_path / "again")
    assert jobs.run(folder, chain.command("recover"), kill=("forward", 10)).code == -SIGKILL
    state = chain.work("recover", folder) / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-7])
    (line,) = jobs.finish(folder, chain.command("recover")).lines
    assert "damaged checkpoint" in line
    assert chain.made("recover", folder) == chain.wanted("recover")


def make_another_model(folder: Path) -> None:
    """The squeezed model in `folder`, made again with other bytes."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["fc.bias"] += 1.0
    save_file(tensors, path)
    record = json.loads((folder / "squeeze.json").read_text(encoding="utf-8"))
    record["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "squeeze.json").write_text(json.dumps(record), encoding="utf-8")


@pytest.mark.parametrize("stage", ["recover", "relabel"])
def test_work_begun_with_another_model_is_not_gone_on_with(stage, chain, jobs, tmp_path):
    begun, fresh = (
        chain.without(stage, tmp_path / "begun"),
        chain.without(stage, tmp_path / "fresh"),
    )
    assert jobs.run(begun, chain.command(stage), kill=("forward", LATE[stage])).code == -SIGKILL
    for folder in (begun, fresh):
        make_another_model(chain.output("squeeze", folder))
        jobs.finish(folder, chain.command(stage))
    assert chain.made(stage, begun) == chain.made(stage, fresh)
    assert chain.made(stage, begun) != chain.wanted(stage)


def test_a_second_job_at_the_same_work_is_refused_and_harms_nothing(chain, jobs, tmp_path):
    folder = chain.without("recover", tmp_path / "again")
    first, _ = jobs.start(folder, chain.command("recover"), ("forward", 5), SIGSTOP, 0)
    assert jobs.request(wait=first) == "stopped"
    second = jobs.run(folder, chain.command("recover"))
    (line,) = second.lines
    assert second.code == 1
    assert "lease.json: another job works here" in line
    os.kill(first, signal.SIGCONT)
    assert jobs.request(wait=first) == 0
    assert chain.made("recover", folder) == chain.wanted("recover")


@pytest.mark.parametrize("ends", ["stopped", "finished"])
def test_a_job_that_is_started_while_another_ends_waits_for_it(ends, chain, jobs, tmp_path):
    folder = chain.without("recover", tmp_path / "again")
    first, _ = jobs.start(folder, chain.command("recover"), ("forward", 5), SIGSTOP, 0)
    assert jobs.request(wait=first) == "stopped"
    second, log = jobs.start(folder, chain.command("recover"), NEVER, SIGKILL, 0, patience=600.0)
    while not log.exists() or "another job has this work; waiting" not in log.read_text(
        encoding="utf-8"
    ):
        time.sleep(0.01)
    if ends == "stopped":
        os.kill(first, SIGTERM)
    os.kill(first, signal.SIGCONT)
    assert jobs.request(wait=first) == (143 if ends == "stopped" else 0)
    assert jobs.request(wait=second) == 0
    ended = Ended(0, log.read_text(encoding="utf-8"))
    assert ended.went_on == (ends == "stopped")
    assert ("another job has just finished this work" in ended.lines[-1]) == (ends == "finished")
    assert chain.made("recover", folder) == chain.wanted("recover")
    assert list(chain.work("recover", folder).parent.iterdir()) == []


LARGEST_FILE = [("squeeze", 200_000), ("recover", 4_000), ("relabel", 600), ("validate", 200_000)]


@pytest.mark.parametrize(("stage", "limit"), LARGEST_FILE)
def test_a_file_that_cannot_be_written_ends_in_one_line_and_the_next_start_goes_on(
    stage, limit, chain, jobs, tmp_path
):
    folder = chain.without(stage, tmp_path / "again")
    ended = jobs.run(folder, chain.command(stage), limit=limit)
    assert (ended.code, len(ended.lines)) == (1, 1), ended.log
    assert ended.lines[0].startswith("cda: artifacts/")
    assert "cannot be written" in ended.lines[0]
    jobs.finish(folder, chain.command(stage))
    assert chain.made(stage, folder) == chain.wanted(stage)


# Several seeds in one process
# ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(chain: Chain, jobs: Jobs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What seeds 1 and 2 measure, each in a process of its own."""
    folder = chain.without("validate", tmp_path_factory.mktemp("alone") / "chain")
    for seed in ("1", "2"):
        jobs.finish(folder, (*chain.command("validate"), "--seed", seed))
    return chain.made("validate", folder)


def together(chain: Chain) -> tuple[str, ...]:
    return (*chain.command("validate"), "--seeds", "1", "2")


def test_seeds_of_one_process_measure_what_they_measure_alone(chain, jobs, alone, tmp_path):
    assert alone["seed-1.json"]["curve"] != alone["seed-2.json"]["curve"]
    folder = chain.without("validate", tmp_path / "again")
    log = jobs.finish(folder, together(chain)).log
    assert chain.made("validate", folder) == alone
    assert re.findall(r"^validate \S+ (seed \d): ", log, re.MULTILINE)[::2] == ["seed 1", "seed 2"]
    assert not list(chain.work("validate", folder).parent.iterdir())
    first, second = (chain.output("validate", folder).parent / name for name in alone)
    between = second.stat().st_mtime - first.stat().st_mtime
    seconds = json.loads(second.read_text())["provenance"]["seconds"]
    assert 0 < seconds < between + 0.05  # neither the start nor the seed before is in them


def test_seeds_of_one_process_with_online_labels_measure_what_they_measure_alone(
    chain, jobs, tmp_path
):
    folder = chain.without("relabel", tmp_path / "again")
    online = "labels.max_gb=1e-9"
    jobs.finish(folder, (*chain.command("relabel"), online))
    measured = []
    for seeds in (["--seed", "1"], ["--seed", "2"]), (["--seeds", "1", "2"],):
        shutil.rmtree(chain.output("validate", folder).parent)
        for words in seeds:
            jobs.finish(folder, (*chain.command("validate"), online, *words))
        measured.append(chain.made("validate", folder))
    assert list(measured[0]) == ["seed-1.json", "seed-2.json"]
    assert measured[0] == measured[1]


@pytest.mark.parametrize("number", [SIGKILL, SIGTERM])
def test_a_process_of_several_seeds_goes_on_with_the_seed_at_which_it_ended(
    number, chain, jobs, alone, tmp_path
):
    folder = chain.without("validate", tmp_path / "again")
    ended = jobs.run(folder, together(chain), kill=("forward", 20), number=number)
    assert ended.code == (143 if number == SIGTERM else -SIGKILL), ended.log
    assert chain.made("validate", folder) == {"seed-1.json": alone["seed-1.json"]}
    ended = jobs.finish(folder, together(chain))
    assert ended.went_on
    assert "seed 1" not in ended.log
    assert chain.made("validate", folder) == alone


def test_a_signal_while_a_seed_s_json_is_written_starts_no_other_seed(chain, jobs, alone, tmp_path):
    folder = chain.without("validate", tmp_path / "again")
    ended = jobs.run(folder, together(chain), kill=("results/runs", 1), number=SIGTERM)
    assert (ended.code, ended.lines) == (143, [STOPPED])
    assert chain.made("validate", folder) == {"seed-1.json": alone["seed-1.json"]}
    assert not list(chain.work("validate", folder).parent.iterdir())


def test_a_seed_that_another_job_works_on_does_not_cost_the_others(chain, jobs, alone, tmp_path):
    folder = chain.without("validate", tmp_path / "again")
    one = (*chain.command("validate"), "--seed", "1")
    first, _ = jobs.start(folder, one, ("forward", 5), SIGSTOP, 0)
    assert jobs.request(wait=first) == "stopped"
    second = jobs.run(folder, together(chain))
    assert second.code == 1
    assert "seed-1/lease.json: another job works here" in second.lines[-1]
    assert chain.made("validate", folder) == {"seed-2.json": alone["seed-2.json"]}
    os.kill(first, signal.SIGCONT)
    assert jobs.request(wait=first) == 0
    assert chain.made("validate", folder) == alone


def test_a_seed_that_another_job_finishes_does_not_cost_the_others(chain, jobs, alone, tmp_path):
    folder = chain.without("validate", tmp_path / "again")
    one = (*chain.command("validate"), "--seed", "1")
    first, _ = jobs.start(folder, one, ("forward", 5), SIGSTOP, 0)
    assert jobs.request(wait=first) == "stopped"
    second, log = jobs.start(folder, together(chain), NEVER, SIGKILL, 0, patience=600.0)
    while not log.exists() or "waiting for it to end" not in log.read_text(encoding="utf-8"):
        time.sleep(0.01)
    os.kill(first, signal.SIGCONT)
    assert jobs.request(wait=first) == jobs.request(wait=second) == 0
    assert "another job has just finished this work" in log.read_text(encoding="utf-8")
    assert "seed 1: " not in log.read_text(encoding="utf-8")
    assert chain.made("validate", folder) == alone


# What is not what it should be is refused by name
# ---------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def turn_to_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"harmless": 0}))


def of_another_run(path: Path) -> None:
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"run": "another-00000000"})
    )


def lacking_all_but_its_format(path: Path) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({key: record[key] for key in ("format", "run") if key in record}))


SPOILED = [
    ("recover", "squeeze", "model.safetensors", cut),
    ("recover", "squeeze", "model.safetensors", flip),
    ("recover", "squeeze", "model.safetensors", turn_to_pickle),
    ("recover", "squeeze", "model.safetensors", Path.unlink),
    ("recover", "squeeze", "squeeze.json", cut),
    ("recover", "squeeze", "squeeze.json", of_another_run),
    ("recover", "squeeze", "squeeze.json", lacking_all_but_its_format),
    ("recover", "squeeze", "squeeze.json", Path.unlink),
    ("relabel", "recover", "ipc-001.tar", cut),
    ("relabel", "recover", "ipc-001.tar", Path.unlink),
    ("validate", "relabel", "logits.npy", cut),
    ("validate", "relabel", "logits.npy", flip),
    ("validate", "relabel", "logits.npy", turn_to_pickle),
    ("validate", "relabel", "logits.npy", Path.unlink),
    ("validate", "relabel", "header.json", cut),
    ("validate", "relabel", "header.json", of_another_run),
    ("validate", "relabel", "header.json", lacking_all_but_its_format),
    ("validate", "relabel", "header.json", Path.unlink),
]


@pytest.mark.parametrize(
    ("stage", "maker", "name", "spoil"),
    SPOILED,
    ids=[f"{name} {spoil.__name__}" for _, _, name, spoil in SPOILED],
)
def test_a_spoiled_input_is_one_line_with_its_path(
    stage, maker, name, spoil, chain, jobs, tmp_path
):
    folder = chain.without(stage, tmp_path / "again")
    spoil(chain.output(maker, folder) / name)
    ended = jobs.run(folder, chain.command(stage))
    assert (ended.code, len(ended.lines)) == (1, 1), ended.log
    assert ended.lines[0].startswith(f"cda: artifacts/{maker}/digits/{chain.runs[maker].id}")
    assert chain.made(stage, folder) == {}


def test_labels_stored_under_another_setting_still_serve(chain, jobs, tmp_path):
    folder = chain.without("relabel", tmp_path / "again")
    shutil.rmtree(chain.output("validate", folder).parent)
    lines = jobs.finish(folder, (*chain.command("relabel"), "labels.max_gb=1e-9")).lines
    assert len(lines) == 1
    assert "the model will run while validating" in lines[0]
    ended = jobs.run(folder, chain.command("validate"))
    assert (ended.code, ended.lines) == (0, []), ended.log


# A shard depends on its run and its index alone
# -----------------------------------------------------------------------


def test_a_part_has_the_same_bytes_in_another_process(chain, tmp_path):
    folder = chain.without("recover", tmp_path / "again")
    program = (sys.executable, "-m", "cda", "recover", "--run", chain.runs["recover"].id)
    subprocess.run(program, cwd=folder, check=True, stderr=subprocess.DEVNULL)
    assert chain.made("recover", folder) == chain.wanted("recover")


@pytest.mark.parametrize("lost", ["shard-0-class-5", "shard-1-class-0"])
def test_a_block_made_alone_has_the_bytes_it_has_among_others(lost, chain, jobs, tmp_path):
    folder = chain.without("recover", tmp_path / "again")
    assert jobs.run(folder, chain.command("recover"), kill=("/out", 1)).code == -SIGKILL
    blocks = chain.work("recover", folder) / "blocks"
    assert len(list(blocks.glob("*-class-?.npy"))) == 4
    (blocks / f"{lost}.npy").unlink()
    jobs.finish(folder, chain.command("recover"))
    assert chain.made("recover", folder) == chain.wanted("recover")


def test_pixels_do_not_depend_on_how_shards_are_shared_out_among_jobs(
    chain, config_tree, jobs, tmp_path, monkeypatch
):
    folder = chain.without("validate", tmp_path / "again")
    monkeypatch.chdir(folder)
    tree = config_tree()
    tree.write(
        "recipes/digits.yaml",
        (chain.folder / "config/recipes/digits.yaml").read_text(encoding="utf-8"),
    )
    tree.edit("datasets/digits.yaml", "shards_per_job: 2", "shards_per_job: 1")
    run = tree.runs(ipc=2)["recover"]
    assert run.id != chain.runs["recover"].id
    for part in (0, 1):
        jobs.finish(folder, ("recover", "--run", run.id, "--part", str(part)))
        alone = folder / f"artifacts/recover/digits/{run.id}/part-{part}/ipc-00{part}.tar"
        assert len(pngs(alone)) == 10
        assert pngs(alone) == pngs(chain.output("recover", folder) / alone.name)


if __name__ == "__main__":
    serve()
