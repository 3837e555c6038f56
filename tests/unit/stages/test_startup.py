"""What a job imports: nothing that takes seconds and is not used."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

HEAVY = (
    "torch._dynamo", "torch._inductor", "torchvision", "timm", "pandas", "scipy", "sklearn",
    "matplotlib", "snakemake", "dvc",
)  # fmt: skip
PROGRAM = """
import json, sys
from cda.cli import main
for argv in json.loads(sys.argv[1]):
    assert main(argv) == 0
    loaded = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
    assert loaded == [], (argv[0], loaded)
"""


def test_a_job_that_compiles_nothing_loads_no_compiler_and_no_other_heavy_library(tree: Any):
    tree.few_images()
    runs = tree.runs()
    stages = ("squeeze", "recover", "relabel", "validate")
    argvs = json.dumps([[stage, "--run", runs[stage].id] for stage in stages])
    command = [sys.executable, "-c", PROGRAM, argvs, json.dumps(HEAVY)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
