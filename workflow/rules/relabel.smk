rule relabel:
    """Store the relabel model's logits of every image in every epoch."""
    input:
        parts=ancient(PLAN.shards),
        model=ancient(PLAN.model),
    output:
        labels=directory("{artifacts}/relabel/{dataset}/{run}/labels"),
    log:
        "logs/{artifacts}/relabel/{dataset}/{run}.log",
    benchmark:
        "logs/{artifacts}/benchmarks/relabel/{dataset}/{run}.tsv"
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
        "python -m cda relabel --run {wildcards.run} --out {output.labels} &> {log}"
