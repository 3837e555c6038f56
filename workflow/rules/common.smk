import sys

sys.path.insert(0, f"{workflow.basedir}/../src")

from cda.errors import CdaError
from cda.pipeline.rules import Plan, one_of
from cda.pipeline.summary import summary

try:
    PLAN = Plan(config, workflow, sys.argv[1:])
    print(summary(PLAN.experiments, sys.argv[1:]), file=sys.stderr)
except CdaError as error:
    sys.exit(f"cda: {error}")


# Jobs use this call's configuration and this clone's source.
shell.prefix(PLAN.prefix)


wildcard_constraints:
    artifacts=PLAN.layout.artifacts,
    results=PLAN.layout.results,
    dataset=r"[\w-]+",
    run=r"[\w.-]+",
    part=r"\d+",
    making=r"recover|distill|expert",
    file=r"ipc-\d+\.tar|expert-\d+\.safetensors",
    seed=r"\d+",
    table=one_of(PLAN.experiments.tables),
