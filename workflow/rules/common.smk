import os
import sys

from cda.errors import CdaError
from cda.pipeline.rules import Plan, array_task, one_of

if command := array_task(sys.argv, os.environ):
    os.execvp("sh", ["sh", "-c", command])

try:
    PLAN = Plan(config, sys.argv[1:])
    print(PLAN.summary(), file=sys.stderr)
except CdaError as error:
    sys.exit(f"cda: {error}")


# Jobs resolve their runs with the configuration that this call was given.
shell.prefix(PLAN.prefix)


wildcard_constraints:
    artifacts=PLAN.layout.artifacts,
    results=PLAN.layout.results,
    dataset=r"[\w-]+",
    run=r"[\w.-]+",
    part=r"\d+",
    seed=r"\d+",
    table=one_of(PLAN.experiments.tables),
