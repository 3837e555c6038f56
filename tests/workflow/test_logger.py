"""`snakemake --logger cda`: progress in one line, errors in full."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

SNAKEFILE = """\
rule good:
    output: "good.txt"
    shell: "touch {output}"

rule bad:
    input: "good.txt"
    output: "bad.txt"
    log: "bad.log"
    shell: "echo the reason > {log}; false"

rule orphan:
    input: "nowhere.txt"
    output: "orphan.txt"
    shell: "touch {output}"
"""
LONG = """\
rule short:
    output: "short.txt"
    log: "logs/short.log"
    shell: "touch {output}"

rule long:
    input: "short.txt"
    output: "long.txt"
    log: "logs/long.log"
    shell: "sleep 4; touch {output}"
"""
DONE = r"(\d) of 2 jobs done, 0:0\d elapsed"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE, encoding="utf-8")
    return tmp_path


def command(target):
    arguments = [target, "--cores", "1", "--show-failed-logs", "--logger", "cda"]
    return [sys.executable, "-m", "snakemake", *arguments]


def on_a_terminal(folder, target):
    """Exit status and what a terminal receives."""
    parent, child = pty.openpty()
    with subprocess.Popen(command(target), cwd=folder, stdout=child, stderr=child) as process:
        os.close(child)
        received = b""
        try:
            while piece := os.read(parent, 4096):
                received += piece
        except OSError:  # Linux: the other end was closed
            pass
        os.close(parent)
    return process.returncode, received.decode()


def visible(received):
    """The lines that a terminal is left with: each rewritten one at its last state."""
    return [line.split("\r\x1b[K")[-1] for line in received.replace("\r\n", "\n").split("\n")]


def test_a_file_gets_a_plain_line_for_each_job_and_the_failed_jobs_log(folder):
    done = subprocess.run(
        command("bad.txt"), cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert re.search(f"^{DONE}$", done.stderr, re.MULTILINE)[1] == "1"
    assert "Error in rule bad" in done.stderr
    assert "\nthe reason\n" in done.stderr
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr


def test_a_terminal_gets_one_line_that_is_rewritten_and_errors_stay(folder):
    status, received = on_a_terminal(folder, "bad.txt")
    assert status == 1
    assert re.search(rf"\r\x1b\[K{DONE}: good", received)
    assert re.search(rf"\r\x1b\[K{DONE}: bad", received)
    lines = visible(received)
    assert "the reason" in lines
    assert not any(re.match(DONE, line) for line in lines), "no half line is left"
    (complete,) = (line for line in lines if line.startswith("Complete log(s): "))
    assert Path(complete.removeprefix("Complete log(s): ")).is_file()


def test_a_long_job_names_its_log_once(folder):
    (folder / "Snakefile").write_text(LONG, encoding="utf-8")
    sooner = "import snakemake_logger_plugin_cda as plugin; plugin.LONG = 1\n"
    program = f"{sooner}from snakemake.cli import main; main()"
    words = ["long.txt", "--cores", "1", "--logger", "cda"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=folder, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines.count("long goes on; its log: logs/long.log") == 1
    assert not any("short goes on" in line for line in lines)


def test_a_terminal_shows_what_snakemake_refuses(folder):
    status, received = on_a_terminal(folder, "orphan.txt")
    assert status == 1
    assert any(
        line.startswith("MissingInputException in rule orphan") for line in visible(received)
    )
