rule complete_part:
    """Add to an existing part what it lacks: a table reads more of its shards, or a file is lost."""
    input:
        model=ancient(PLAN.model),
        experts=ancient(PLAN.experts),
    output:
        file="{artifacts}/{making}/{dataset}/{run}/part-{part}/{file}",
    log:
        "logs/{artifacts}/{making}/{dataset}/{run}/part-{part}-{file}.log",
    benchmark:
        "logs/{artifacts}/benchmarks/{making}/{dataset}/{run}/part-{part}-{file}.tsv"
    conda:
        "../../environment.yml"
    threads: PLAN.threads
    resources:
        gpu=PLAN.gpus,
        runtime=PLAN.minutes,
        mem_mb=PLAN.memory,
    params:
        recipe=PLAN.recipe,
        part=PLAN.part_option,
    shell:
        "python -m cda {wildcards.making} --run {wildcards.run} {params.part} &> {log}"
