"""A later task of a SLURM array does its own command, not the first one's."""

import base64
import json
import shlex
import zlib

import pytest
from snakemake_executor_plugin_slurm_jobstep import _decompress_array_task_call

from cda.pipeline.rules import ARRAY, array_task

COMMANDS = {
    "2": "cd '/a b' && python -m snakemake --target-jobs recover:part=1",
    "3": "python -m snakemake ü",
}
PACKED = base64.b64encode(
    json.dumps(
        {task: zlib.compress(command.encode()).hex() for task, command in COMMANDS.items()}
    ).encode()
).decode()
ARGUMENTS = shlex.split(f"snakemake --target-jobs recover:part=0 {ARRAY}={shlex.quote(PACKED)}")


@pytest.mark.parametrize("task", COMMANDS)
def test_a_later_task_has_the_command_that_the_plugin_packed_for_it(task):
    environment = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_MIN": "1"}
    assert (
        array_task(ARGUMENTS, environment)
        == COMMANDS[task]
        == _decompress_array_task_call(PACKED, int(task))
    )


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (
            ARGUMENTS,
            {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_MIN": "1"},
        ),  # the first: the command is its own
        (
            ARGUMENTS[:3],
            {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_MIN": "1"},
        ),  # one that gave way already
        (ARGUMENTS, {}),
    ],
)
def test_others_go_on_as_they_are(arguments, environment):
    assert array_task(arguments, environment) is None
