from cda.workflow import Plan, growing

PLAN = Plan(config)
OPTIONS = PLAN.options


wildcard_constraints:
    artifacts=PLAN.layout.artifacts,
    results=r"results(/[a-z]+)?",
    dataset=r"\w+",
    run=r"[\w.-]+",
    part=r"\d+",
    seed=r"\d+",
    table=r"[a-z]+\d*",
