rule score:
    """Classify distilled or real images with a model that took no part."""
    input:
        parts=ancient(PLAN.shards),
        model=ancient(PLAN.model),
        decoded=ancient(PLAN.decoded),
    output:
        measured=update("{results}/runs/{dataset}/{run,score-[^/]+}/seed-{seed}.json"),
    log:
        "logs/{results}/runs/{dataset}/{run}/seed-{seed}.log",
    benchmark:
        "logs/{results}/benchmarks/score/{dataset}/{run}/seed-{seed}.tsv"
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
        "python -m cda score --run {wildcards.run} --out {output.measured} &> {log}"
