rule distill:
    """Make the images of every class by matching: networks learn from them as from real ones."""
    input:
        experts=ancient(PLAN.experts),
    output:
        part=directory("{artifacts}/distill/{dataset}/{run}/part-0"),
    log:
        "logs/{artifacts}/distill/{dataset}/{run}/part-0.log",
    benchmark:
        "logs/{artifacts}/benchmarks/distill/{dataset}/{run}/part-0.tsv"
    conda:
        "../../environment.yml"
    threads: PLAN.threads
    resources:
        gpu=PLAN.gpus,
        runtime=PLAN.minutes,
        mem_mb=PLAN.memory,
    params:
        recipe=PLAN.recipe,
    shell:
        "python -m cda distill --run {wildcards.run} --out {output.part} &> {log}"
