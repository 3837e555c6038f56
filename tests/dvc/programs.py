"""DVC, git and Snakemake as processes of their own, and an S3 that stops on demand."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

ROOT = Path(__file__).parents[2]
KEYS = {
    "AWS_ACCESS_KEY_ID": "made-up",
    "AWS_SECRET_ACCESS_KEY": "made-up",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def program(*command, cwd=None, ok=True, shell=False):
    """What a program prints; `ok` is whether it must succeed. A shell takes its line as a word."""
    environment = os.environ | KEYS
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", *command] if shell else command,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    printed = done.stdout + done.stderr
    assert (done.returncode == 0) == ok, printed
    return printed


def dvc(*arguments, **more):
    return program(sys.executable, "-m", "dvc", *arguments, **more)


def git(*arguments, **more):
    return program("git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments, **more)


def dry_run(target, *config, **more):
    """What `snakemake -n` prints for a target."""
    return program(sys.executable, "-m", "snakemake", "-n", target, "--config", *config, **more)


def planned(printed):
    """Jobs per rule of a dry run."""
    table = re.search(
        r"^Job stats:\njob +count\n[- ]+\n(.*?)^total", printed, re.MULTILINE | re.DOTALL
    )
    counts = re.findall(r"^(\w+) +(\d+)", table[1], re.MULTILINE)
    return {name: int(count) for name, count in counts}


def damage(file, place=2):
    """Flip a bit of one byte; size, time and mode stay."""
    before = file.stat()
    file.chmod(0o644)
    with file.open("r+b") as opened:
        opened.seek(place)
        byte = opened.read(1)[0]
        opened.seek(place)
        opened.write(bytes([byte ^ 1]))
    file.chmod(stat.S_IMODE(before.st_mode))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


class Gate:
    """Moto's S3: it records objects sent and fetched, and on demand blocks at the n-th of them."""

    def __init__(self):
        self.application = DomainDispatcherApplication(create_backend_app)
        self.transfers = {"PUT": [], "GET": []}
        self.stop_at = {}
        self.stopped, self.go_on = threading.Event(), threading.Event()
        self.server = make_server("127.0.0.1", 0, self, threaded=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def __call__(self, environ, start_response):
        method, key = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        # The lists of runs' files are read more than once.
        listed = method == "GET" and key.endswith(".dir")
        if method in self.transfers and "/files/md5/" in key and not listed:
            if len(self.transfers[method]) >= self.stop_at.get(method, 10**9):
                self.stopped.set()
                self.go_on.wait(120)
                start_response("503 Killed", [])
                return []
            self.transfers[method].append(key)
        return self.application(environ, start_response)

    def killed_at(self, method, count, *command):
        """What DVC transferred, one object at a time, before SIGKILL at object `count`."""
        self.transfers[method].clear()
        self.stop_at[method] = count
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", *command, "--jobs", "1"], env=os.environ | KEYS
        )
        assert self.stopped.wait(120)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        self.go_on.set()
        self.stop_at.clear()
        self.stopped.clear()
        done = self.transfers[method][:]
        self.go_on.clear()
        self.transfers[method].clear()
        return done

    def transferred(self, method):
        done = self.transfers[method][:]
        self.transfers[method].clear()
        return done
