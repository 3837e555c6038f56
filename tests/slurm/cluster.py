"""A real SLURM of one node on this machine, for tests and for trying the profile: `make slurm-up`,
`make slurm-down`.

Needs the distribution's packages (Debian: slurm-wlm, munge). Everything lies in one folder:
configuration, munge's key, state and logs. Four GPUs are simulated by /dev/null and the like: SLURM
hands them out, and jobs compute on the CPU. The node claims twice the machine's cores, since small
jobs wait more than they compute; give each one thread. There is no accounting database.

Usage: python tests/slurm/cluster.py up|down|env|jobs [FOLDER]; `jobs` lists those of the last hour,
ended ones too.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

DAEMONS = ("munged", "slurmctld", "slurmd")
INSTALL = "SLURM (Debian: apt-get install slurm-wlm munge)"
GPUS = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")
CPUS = 2 * (os.cpu_count() or 1)
STANDARD = Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp") / f"cda-slurm-{os.getuid()}"

CONFIGURATION = """\
ClusterName=cda
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=60
KillWait={kill_wait}
MinJobAge=3600
MaxArraySize=10001
MaxJobCount=20000
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:4 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=held Nodes={host} MaxTime=INFINITE State=DOWN
"""


class ClusterError(Exception):
    """The cluster cannot be started: one line."""


class Job(NamedTuple):
    """What a job of the workflow requested from SLURM."""

    rule: str
    gpus: int
    minutes: int
    megabytes: int
    state: str


class Cluster:
    """The daemons, and the folder that they live in."""

    def __init__(self, folder: Path = STANDARD) -> None:
        self.folder = folder

    @property
    def environment(self) -> dict[str, str]:
        """What SLURM's commands need to find this cluster, those of a job too."""
        path = f"{self.folder}/bin:{os.environ['PATH']}"
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}

    def up(self, cpus: int = CPUS, memory: int = 64_000, kill_wait: int = 30) -> None:
        """Start the daemons; `memory` in MB is what the node claims. Raises ClusterError."""
        if missing := self.missing():
            raise ClusterError(f"{', '.join(missing)} not found; install {INSTALL}")
        self.down()
        for name in ("state", "spool", "bin"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        self._configure(cpus, memory, kill_wait)
        self._wrap_srun()
        self.start("munged")
        self.start("slurmctld")
        self.start("slurmd")
        self._wait()

    def missing(self) -> list[str]:
        """SLURM's programs that this machine lacks."""
        return [name for name in (*DAEMONS, "sbatch") if self._path(name) is None]

    def _configure(self, cpus: int, memory: int, kill_wait: int) -> None:
        host = socket.gethostname().split(".")[0]
        user = subprocess.run(
            ["id", "-un"], capture_output=True, text=True, check=True
        ).stdout.strip()
        text = CONFIGURATION.format(
            host=host,
            user=user,
            folder=self.folder,
            ports=_free_ports(2),
            cpus=cpus,
            memory=memory,
            kill_wait=kill_wait,
        )
        (self.folder / "slurm.conf").write_text(text, encoding="utf-8")
        (self.folder / "gres.conf").write_text(
            "".join(f"Name=gpu File={device}\n" for device in GPUS), encoding="utf-8"
        )
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)

    def _wrap_srun(self) -> None:
        """Put an `srun` first on the path that finds the cluster.

        The executor clears SLURM_CONF within its jobs.
        """
        program = self.folder / "bin" / "srun"
        conf = self.environment["SLURM_CONF"]
        program.write_text(
            f'#!/bin/sh\nSLURM_CONF="{conf}" exec "{self._path("srun")}" "$@"\n', encoding="utf-8"
        )
        program.chmod(0o755)

    def start(self, name: str) -> None:
        """Start one daemon, in the background. Raises ClusterError."""
        folder, path = self.folder, self._path(name)
        munge = ["--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket"]
        munge += [
            f"--{what}={folder}/munged.{end}"
            for what, end in (("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"))
        ]
        arguments = {"munged": munge, "slurmctld": ["-i"], "slurmd": []}[name]
        with (self.folder / f"{name}.out").open("ab") as out:
            done = subprocess.run(
                [str(path), *arguments],
                env=os.environ | self.environment,
                stdout=out,
                stderr=out,
                check=False,
            )
        if done.returncode:
            raise ClusterError(f"{name} does not start; {self.folder}/{name}.out and .log say why")

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """End one daemon and wait until it is gone; jobs that slurmd started go on."""
        file = self.folder / f"{name}.pid"
        with contextlib.suppress(OSError, ValueError):
            pid = int(file.read_text())
            os.kill(pid, how)
            for _ in range(200):
                os.kill(pid, 0)
                time.sleep(0.05)
            os.kill(pid, signal.SIGKILL)

    def down(self) -> None:
        """Cancel all jobs, end the daemons and remove the folder."""
        if (self.folder / "slurm.conf").exists():
            with contextlib.suppress(subprocess.TimeoutExpired, OSError):
                self.run(
                    "scancel", "--state=PENDING", "--quiet", "--user", str(os.getuid()), timeout=30
                )
                self.run("scancel", "--quiet", "--user", str(os.getuid()), timeout=30)
                self.idle(10)
        for name in reversed(DAEMONS):
            self.stop(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def idle(self, seconds: float) -> bool:
        """Wait until there is no job; whether there is none."""
        end = time.monotonic() + seconds
        while self.run("squeue", "--noheader").stdout.strip():
            if time.monotonic() > end:
                return False
            time.sleep(0.2)
        return True

    def run(self, *command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """One of SLURM's commands, with what it printed."""
        environment = os.environ | self.environment
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def jobs(self) -> list[Job]:
        """The workflow's jobs of the last hour."""
        lines = self.run("scontrol", "--oneliner", "show", "jobs").stdout.splitlines()
        return [
            _job(dict(re.findall(r"([\w/:]+)=(\S+)", line)))
            for line in lines
            if "Comment=rule_" in line
        ]

    def _wait(self) -> None:
        for _ in range(100):
            if "idle" in self.run("sinfo", "--noheader", "--format=%T").stdout:
                return
            time.sleep(0.2)
        raise ClusterError(
            f"the node does not come up; {self.folder}/slurmctld.log and slurmd.log say why"
        )

    def _path(self, name: str) -> str | None:
        return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _job(fields: dict[str, str]) -> Job:
    days, clock = (["0", *fields["TimeLimit"].split("-")])[-2:]
    hours, minutes, _seconds = map(int, clock.split(":"))
    gpus = re.search(r"gpu(?::[a-z]\w*)?:(\d+)", fields.get("TresPerJob", ""))
    return Job(
        rule=fields["Comment"].split("_wildcards_")[0].removeprefix("rule_"),
        gpus=int(gpus[1]) if gpus else 0,
        minutes=(int(days) * 24 + hours) * 60 + minutes,
        megabytes=int(re.search(r"mem=(\d+)M", fields["TRES"])[1]),
        state=fields["JobState"],
    )


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def main(arguments: list[str]) -> int:
    """Start or end the cluster; print what a shell needs to use it, or its jobs."""
    if not arguments or arguments[0] not in ("up", "down", "env", "jobs") or len(arguments) > 2:
        print("usage: python tests/slurm/cluster.py up|down|env|jobs [FOLDER]", file=sys.stderr)
        return 2
    cluster = Cluster(Path(arguments[1]).resolve() if len(arguments) == 2 else STANDARD)
    try:
        if arguments[0] == "up":
            cluster.up()
        if arguments[0] == "down":
            cluster.down()
        elif arguments[0] == "jobs":
            print(
                "\n".join(
                    " ".join(f"{name}={value}" for name, value in job._asdict().items())
                    for job in cluster.jobs()
                )
            )
        else:
            print(
                "\n".join(f"export {name}={value}" for name, value in cluster.environment.items())
            )
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
