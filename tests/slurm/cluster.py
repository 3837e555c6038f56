"""A real SLURM of one node on this machine, for tests and for trying the profile: `make slurm-up`,
`make slurm-down`.

Needs the distribution's packages (Debian: slurm-wlm, munge). Everything lies in one folder:
configuration, munge's key, state and logs. Four GPUs are simulated by /dev/null and the like: SLURM
hands them out, and jobs compute on the CPU. The node claims twice the machine's cores, since small
jobs wait more than they compute; give each one thread. There is no accounting database. Tests start
further nodes, each a slurmd of its own, whose jobs a partition of higher priority preempts.

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
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

DAEMONS = ("munged", "slurmctld", "slurmd")
INSTALL = "SLURM (Debian: apt-get install slurm-wlm munge)"
GPU = "a100"  # the type that the simulated ones claim to be
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
AuthInfo=socket={folder}/munge.socket,cred_expire=20
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/{task}
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
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName=DEFAULT CPUs={cpus} RealMemory={memory} Gres=gpu:{gpu}:4
NodeName={host} NodeAddr=127.0.0.1 Port={ports[1]}
PartitionName=DEFAULT MaxTime=INFINITE PreemptMode=OFF
PartitionName=main Nodes={host} Default=YES
PartitionName=held Nodes={host} State=DOWN
"""
# Of the further nodes. `requeued` and `cancelled` are scavenger queues, which `urgent` preempts.
MORE = """PartitionName=several Nodes={nodes}
PartitionName=urgent Nodes={nodes} PriorityTier=9
PartitionName=requeued Nodes={nodes} PreemptMode=REQUEUE
PartitionName=cancelled Nodes={nodes} PreemptMode=CANCEL
"""
MEMORY = Path("/sys/fs/cgroup/memory")  # where jobs can be held to the memory that they requested


class ClusterError(Exception):
    """The cluster cannot be started: one line."""


class Job(NamedTuple):
    """What a job of the workflow requested from SLURM."""

    rule: str
    gpus: int
    minutes: int
    megabytes: int
    state: str
    generic: str  # its generic resources, as SLURM prints them


class Cluster:
    """The daemons, and the folder that they live in."""

    def __init__(self, folder: Path = STANDARD) -> None:
        self.folder = folder
        self.host = socket.gethostname().split(".")[0]

    @property
    def environment(self) -> dict[str, str]:
        """What SLURM's commands need to find this cluster, those of a job too."""
        path = f"{self.folder}/bin:{os.environ['PATH']}"
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}

    def up(
        self,
        cpus: int = CPUS,
        memory: int = 64_000,
        kill_wait: int = 30,
        nodes: Sequence[str] = (),
        limit_memory: bool = False,
    ) -> None:
        """Start the daemons; a node claims `memory` in MB. Raises ClusterError.

        `nodes` are further ones. With `limit_memory` the kernel kills a job that uses more than it
        requested; that needs root and control groups of version 1.
        """
        if missing := self.missing():
            raise ClusterError(f"{', '.join(missing)} not found; install {INSTALL}")
        self.down()
        for name in ("state", "bin", *(f"spool-{node}" for node in (self.host, *nodes))):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        limited = limit_memory and os.access(MEMORY, os.W_OK)
        self._configure(cpus, memory, kill_wait, nodes, limited)
        self._wrap_srun()
        self.start("munged")
        self.start("slurmctld")
        for node in (self.host, *nodes):
            self.start("slurmd", node)
        self._wait(1 + len(nodes))

    def missing(self) -> list[str]:
        """SLURM's programs that this machine lacks."""
        return [name for name in (*DAEMONS, "sbatch") if self._path(name) is None]

    def _configure(
        self, cpus: int, memory: int, kill_wait: int, nodes: Sequence[str], limited: bool
    ) -> None:
        user = subprocess.run(
            ["id", "-un"], capture_output=True, text=True, check=True
        ).stdout.strip()
        ports = _free_ports(2 + len(nodes))
        text = CONFIGURATION.format(
            host=self.host,
            user=user,
            folder=self.folder,
            ports=ports,
            cpus=cpus,
            memory=memory,
            kill_wait=kill_wait,
            task="cgroup" if limited else "none",
            gpu=GPU,
        )
        if nodes:
            text += "".join(
                f"NodeName={node} NodeHostName={self.host} NodeAddr=127.0.0.1 Port={port}\n"
                for node, port in zip(nodes, ports[2:], strict=True)
            )
            text += MORE.format(nodes=",".join(nodes))
        if limited:
            (self.folder / "cgroup.conf").write_text(
                "CgroupPlugin=cgroup/v1\nConstrainRAMSpace=yes\n", encoding="utf-8"
            )
        (self.folder / "slurm.conf").write_text(text, encoding="utf-8")
        (self.folder / "gres.conf").write_text(
            "".join(f"Name=gpu Type={GPU} File={device}\n" for device in GPUS), encoding="utf-8"
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

    def start(self, name: str, node: str = "") -> None:
        """Start one daemon, in the background; slurmd of `node`. Raises ClusterError."""
        folder, path = self.folder, self._path(name)
        munge = ["--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket"]
        munge += [
            f"--{what}={folder}/munged.{end}"
            for what, end in (("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"))
        ]
        arguments = {"munged": munge, "slurmctld": ["-i"], "slurmd": ["-N", node or self.host]}[
            name
        ]
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

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM, node: str = "") -> None:
        """End one daemon and wait until it is gone; jobs that slurmd started go on."""
        file = self.folder / f"{name if name != 'slurmd' else f'slurmd-{node or self.host}'}.pid"
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
        for file in self.folder.glob("slurmd-*.pid"):
            self.stop("slurmd", node=file.stem.removeprefix("slurmd-"))
        self.stop("slurmctld")
        self.stop("munged")
        if (self.folder / "cgroup.conf").exists():
            for spool in self.folder.glob("spool-*"):
                _remove_groups(MEMORY / f"slurm_{spool.name.removeprefix('spool-')}")
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

    def _wait(self, nodes: int) -> None:
        for _ in range(100):
            states = self.run("sinfo", "--noheader", "--Node", "--format=%N %T").stdout
            if len({line for line in states.splitlines() if line.endswith(" idle")}) == nodes:
                return
            time.sleep(0.2)
        raise ClusterError(
            f"a node does not come up; {self.folder}/slurmctld.log and slurmd-*.log say why"
        )

    def _path(self, name: str) -> str | None:
        return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _job(fields: dict[str, str]) -> Job:
    days, clock = (["0", *fields["TimeLimit"].split("-")])[-2:]
    hours, minutes, _seconds = map(int, clock.split(":"))
    requested = fields.get("TresPerJob") or fields.get("TresPerNode", "")  # by --gpus, by --gres
    gpus = re.search(r"gpu(?::[a-z]\w*)?:(\d+)", requested)
    return Job(
        rule=fields["Comment"].split("_wildcards_")[0].removeprefix("rule_"),
        gpus=int(gpus[1]) if gpus else 0,
        minutes=(int(days) * 24 + hours) * 60 + minutes,
        megabytes=int(re.search(r"mem=(\d+)M", fields["TRES"])[1]),
        state=fields["JobState"],
        generic=requested,
    )


def _remove_groups(group: Path) -> None:
    """Remove the control groups that slurmd leaves."""
    for folder in sorted(group.rglob("*/"), reverse=True):
        with contextlib.suppress(OSError):
            folder.rmdir()
    with contextlib.suppress(OSError):
        group.rmdir()


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
